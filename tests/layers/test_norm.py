"""BatchNorm against torch's: values, gradients, running statistics, frozen and shared over devices; LRN likewise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from flaxzoo.layers import BatchNorm, local_response_norm
from tests.optional import torch


def variables(channels, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    draw = lambda low, high: jnp.asarray(rng.uniform(low, high, channels), dtype)  # noqa: E731
    return {
        'params': {'scale': draw(0.5, 1.5), 'bias': draw(-1, 1)},
        'batch_stats': {'mean': draw(-1, 1), 'var': draw(0.5, 1.5)},
    }


def torch_norm(v, **fields):
    norm = torch.nn.BatchNorm2d(len(v['params']['scale']), **fields).double()
    names = {'weight': v['params']['scale'], 'bias': v['params']['bias']}
    names |= {'running_mean': v['batch_stats']['mean'], 'running_var': v['batch_stats']['var']}
    norm.load_state_dict({k: torch.tensor(np.asarray(a)) for k, a in names.items()}, strict=True)
    return norm


@pytest.mark.parametrize('fields', [{}, {'eps': 1e-3, 'momentum': 0.01}])
@pytest.mark.parametrize('train', [False, True])
def test_is_torchs(train, fields):
    rng = np.random.default_rng(1)
    x, cotangent = rng.normal(3, 2, (2, 2, 5, 7, 4))
    with jax.enable_x64(True):
        v = variables(4)

        def run(params, x):
            return BatchNorm(**fields).apply({**v, 'params': params}, x, train, mutable=['batch_stats'])

        y, pull, new = jax.vjp(run, v['params'], jnp.asarray(x), has_aux=True)
        grads, grad_x = pull(jnp.asarray(cotangent))
    norm = torch_norm(v, **fields).train(train)
    inputs = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    out = norm(inputs)
    out.backward(torch.tensor(cotangent.transpose(0, 3, 1, 2)))
    pairs = [
        (y, out.detach().numpy().transpose(0, 2, 3, 1)),
        (grad_x, inputs.grad.numpy().transpose(0, 2, 3, 1)),
        (grads['scale'], norm.weight.grad.numpy()),
        (grads['bias'], norm.bias.grad.numpy()),
        (new['batch_stats']['mean'], norm.running_mean.numpy()),
        (new['batch_stats']['var'], norm.running_var.numpy()),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)


def test_frozen_normalises_with_running_statistics_and_keeps_them():
    v = variables(4, dtype=np.float32)
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    norm = BatchNorm(frozen=True)
    y, new = norm.apply(v, x, train=True, mutable=['batch_stats'])
    np.testing.assert_array_equal(y, norm.apply(v, x, train=False))
    np.testing.assert_array_equal(new['batch_stats']['mean'], v['batch_stats']['mean'])
    grads = jax.grad(lambda p: norm.apply({**v, 'params': p}, x, train=True).sum())(v['params'])
    assert all(jnp.abs(g).min() > 0 for g in grads.values())


def test_a_large_mean_does_not_cancel():
    """Mean 1e4 with variance 1 in float32: E[x^2] - E[x]^2 would lose every digit."""
    x = 1e4 + jax.random.normal(jax.random.key(0), (4, 16, 16, 2))
    y, _ = BatchNorm().init_with_output(jax.random.key(0), x, train=True)
    np.testing.assert_allclose(np.asarray(y, np.float64).var((0, 1, 2)), 1, rtol=2e-3)


def test_statistics_of_bfloat16_are_computed_in_float32():
    x = jax.random.normal(jax.random.key(0), (64, 32, 32, 2), jnp.bfloat16) + 4
    v = BatchNorm().init(jax.random.key(0), x)
    y, new = BatchNorm(momentum=1.0).apply(v, x, train=True, mutable=['batch_stats'])
    assert y.dtype == jnp.bfloat16
    assert new['batch_stats']['mean'].dtype == jnp.float32
    np.testing.assert_allclose(new['batch_stats']['mean'], np.asarray(x, np.float64).mean((0, 1, 2)), rtol=1e-5)


def test_one_value_a_channel_is_refused_in_training():
    norm = BatchNorm()
    x = jnp.ones((1, 1, 1, 4))
    v = norm.init(jax.random.key(0), x)
    norm.apply(v, x)
    with pytest.raises(ValueError, match=r'more than one value a channel in training, got x of shape \(1, 1, 1, 4\)'):
        norm.apply(v, x, train=True, mutable=['batch_stats'])


@pytest.mark.parametrize('wrap', ['pmap', 'shard_map'])
def test_shared_statistics_are_those_of_the_whole_batch(wrap):
    """8 devices with 2 images each against one device with 16: outputs, statistics and the input's gradient."""
    x = jax.random.normal(jax.random.key(0), (16, 3, 3, 4)) * 2 + 3
    w = jax.random.normal(jax.random.key(1), x.shape)
    v = variables(4, dtype=np.float32)

    whole = _value_and_grad(BatchNorm(), v, x, w)
    shared = partial(_value_and_grad, BatchNorm(axis_name='batch'), v)
    if wrap == 'pmap':
        split = lambda a: a.reshape(8, 2, *a.shape[1:])  # noqa: E731
        y, grad, stats = jax.pmap(shared, axis_name='batch')(split(x), split(w))
        y, grad, stats = y.reshape(x.shape), grad.reshape(x.shape), jax.tree.map(lambda s: s[0], stats)
    else:
        mesh = jax.make_mesh((8,), ('batch',), axis_types=(AxisType.Auto,))
        specs = (P('batch'), P('batch'))
        mapped = jax.shard_map(shared, mesh=mesh, in_specs=specs, out_specs=(*specs, P()), check_vma=False)
        y, grad, stats = jax.jit(mapped)(x, w)
    np.testing.assert_allclose(y, whole[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grad, whole[1], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(stats), jax.tree.leaves(whole[2]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def _value_and_grad(norm, v, x, w):
    def loss(x):
        y, new = norm.apply(v, x, train=True, mutable=['batch_stats'])
        return (y * w).sum(), (y, new['batch_stats'])

    grad, (y, stats) = jax.grad(loss, has_aux=True)(x)
    return y, grad, stats


@pytest.mark.parametrize('channels', [3, 7, 64])
@pytest.mark.parametrize('fields', [{'size': 5}, {'size': 4, 'alpha': 0.01, 'beta': 0.5, 'k': 2.0}])
def test_local_response_norm_is_torchs(channels, fields):
    x, cotangent = np.random.default_rng(0).normal(0, 30, (2, 2, 3, 4, channels))
    with jax.enable_x64(True):
        y, pull = jax.vjp(jax.jit(partial(local_response_norm, **fields)), jnp.asarray(x))
        (grad,) = pull(jnp.asarray(cotangent))
    inputs = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
    expected = torch.nn.functional.local_response_norm(inputs, **fields)
    expected.backward(torch.tensor(np.moveaxis(cotangent, -1, 1).copy()))
    np.testing.assert_allclose(y, np.moveaxis(expected.detach().numpy(), 1, -1), rtol=1e-12)
    np.testing.assert_allclose(grad, np.moveaxis(inputs.grad.numpy(), 1, -1), rtol=1e-11, atol=1e-12)
