"""The step: the same numbers on one device and on eight, by pmap and by shard_map, and every option of it."""

import functools
from functools import partial
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxzoo
from tests.optional import torch
from train.augment import augment, normalise
from train.config import default_config
from train.optim import make_optimizer
from train.parallel import MeshParallel, PmapParallel
from train.state import TrainState, abstract_variables, build_model, make_state
from train.step import cross_entropy, make_train_step

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 255, (5, 16, 8, 8, 3), dtype=np.uint8)  # five steps of sixteen
LABELS = RNG.integers(0, 10, (5, 16)).astype(np.int32)
to_float = partial(normalise, mean=(0.5,), std=(0.25,), dtype=jnp.float32)
to_double = partial(normalise, mean=(0.5,), std=(0.25,), dtype=jnp.float64)


def resnext(sync_batch_norm: bool = True, freeze_batch_norm: bool = False) -> nn.Module:
    config = default_config()
    config.model, config.model_fields.layers, config.model_fields.groups = 'resnext29_32x4d', (1,), 4
    config.sync_batch_norm, config.freeze_batch_norm = sync_batch_norm, freeze_batch_norm
    return build_model(config, 10)


@functools.cache
def init(model: nn.Module) -> dict:
    """Variables for images of 8x8 pixels."""
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def train(parallel: MeshParallel, model: nn.Module, tx, steps: int = 5, x64: bool = False, **options):
    """(state, metrics of each step) after some steps from a fixed beginning, as host arrays."""
    variables = init(model)
    if x64:
        variables = jax.tree.map(lambda a: a.astype(jnp.float64), variables)
    state = parallel.replicate(make_state(variables, tx, options.get('ema_decay', 0.0)))
    options = {'augment': lambda keys, images: images, 'normalise': to_double if x64 else to_float} | options
    step = parallel.compile(make_train_step(model, tx, **options), donate_state=True)
    metrics = []
    for image, label in zip(IMAGES[:steps], LABELS[:steps], strict=True):
        state, values = step(state, parallel.shard({'image': image, 'label': label}))
        metrics.append(parallel.fetch(values))
    return parallel.fetch(state), metrics


def one_device() -> MeshParallel:
    return MeshParallel(jax.devices()[:1])


def assert_close(a, b, atol: float) -> None:
    chex.assert_trees_all_close(a, b, atol=atol, rtol=0)


MOMENTUM = optax.sgd(0.1, momentum=0.9, nesterov=True)


@pytest.fixture(scope='module')
def on_one_device():
    """Five steps on the whole batch on one device, in float64, with augmentation."""
    with jax.enable_x64(True):
        return train(one_device(), resnext(), MOMENTUM, x64=True, augment=partial(augment, pad=2, flip=True))


@pytest.mark.parametrize('parallel', [PmapParallel, MeshParallel])
def test_eight_devices_equal_one(parallel: type[MeshParallel], on_one_device):
    with jax.enable_x64(True):
        state, metrics = train(parallel(), resnext(), MOMENTUM, x64=True, augment=partial(augment, pad=2, flip=True))
    expected, expected_metrics = on_one_device
    assert parallel().device_count == 8
    assert_close(
        (state.params, state.batch_stats, state.opt_state),
        (expected.params, expected.batch_stats, expected.opt_state),
        1e-6,
    )
    assert_close(metrics, expected_metrics, 1e-6)
    assert state.step == 5


def test_training_moves_everything(on_one_device):
    model = resnext()
    variables = init(model)
    state, metrics = on_one_device
    before = jax.tree.leaves((variables['params'], variables['batch_stats']))
    after = jax.tree.leaves((state.params, state.batch_stats))
    assert min(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 1e-4
    assert len({float(m['loss']) for m in metrics}) == 5


@pytest.mark.parametrize('parallel', [PmapParallel, MeshParallel])
def test_statistics_of_each_device_are_averaged(parallel: type[MeshParallel]):
    model = resnext(sync_batch_norm=False)
    variables = init(model)
    parts = [
        model.apply(variables, to_float(part), train=True, mutable=['batch_stats'])[1]['batch_stats']
        for part in IMAGES[0].reshape(8, 2, 8, 8, 3)
    ]
    state, _ = train(parallel(), model, optax.sgd(0.0), steps=1)
    assert_close(state.batch_stats, jax.tree.map(lambda *a: np.mean(a, 0), *parts), 1e-6)


def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_scale():
    model = resnext(freeze_batch_norm=True)
    before = init(model)
    state, _ = train(one_device(), model, MOMENTUM, steps=1)
    assert_close(state.batch_stats, before['batch_stats'], 0)
    assert np.abs(state.params['bn1']['scale'] - before['params']['bn1']['scale']).max() > 0


HEAD_ONLY = ('conv1.*', 'bn1.*', 'layer1.*')


def test_the_norm_of_the_gradient_is_that_of_the_trained_parameters():
    model = resnext(sync_batch_norm=False)

    def loss(params):
        variables = {**init(model), 'params': params}
        logits, _ = model.apply(variables, to_float(IMAGES[0]), train=True, mutable=['batch_stats'])
        return cross_entropy(logits, LABELS[0], 0.0).mean()

    grads = jax.jit(jax.grad(loss))(init(model)['params'])
    state, metrics = train(one_device(), model, frozen_sgd(model), steps=1, freeze=HEAD_ONLY)
    np.testing.assert_allclose(metrics[0]['grad_norm'], optax.tree.norm(grads['fc']), rtol=1e-4)
    assert metrics[0]['grad_norm'] < 0.99 * optax.tree.norm(grads)
    before = init(model)['params']
    assert_close({**state.params, 'fc': 0}, {**before, 'fc': 0}, 0)
    assert np.abs(state.params['fc']['kernel'] - before['fc']['kernel']).max() > 1e-5


def test_a_nan_in_the_gradient_of_a_frozen_parameter_is_no_divergence():
    """The root's derivative at zero is infinite; nothing needs it."""

    class Root(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            root = jnp.sqrt(jnp.abs(self.param('root', nn.initializers.zeros, (1, 1))))
            return nn.Dense(10, name='fc')(x.reshape(len(x), -1)) + root

    model = Root()
    for freeze, finite in (((), False), (('root',), True)):
        state, metrics = train(one_device(), model, frozen_sgd(model, freeze), steps=1, freeze=freeze)
        assert np.isfinite(metrics[0]['grad_norm']) == finite
        if finite:
            chex.assert_tree_all_finite(state.params)


@pytest.mark.parametrize('parallel', [PmapParallel, MeshParallel])
def test_the_backward_pass_ends_at_the_frozen_parameters(parallel):
    """Training the head alone costs a forward pass and little more."""
    model = resnext()

    def flops(freeze):
        options = {'augment': lambda keys, images: images, 'normalise': to_float, 'freeze': freeze}
        devices = parallel(jax.devices()[:1])
        step = devices.compile(make_train_step(model, frozen_sgd(model, freeze), **options))
        state = devices.replicate(make_state(init(model), frozen_sgd(model, freeze)))
        return step.lower(state, devices.shard({'image': IMAGES[0], 'label': LABELS[0]})).cost_analysis()['flops']

    forward = jax.jit(lambda v: model.apply(v, to_float(IMAGES[0]))).lower(init(model)).cost_analysis()['flops']
    everything, head, but_the_stem = flops(()), flops(HEAD_ONLY), flops(HEAD_ONLY[:2])
    assert head < 1.5 * forward < 2 * forward < but_the_stem < everything


def test_a_step_compiles_once():
    model = resnext()
    chex.clear_trace_counter()
    step = make_train_step(model, MOMENTUM, augment=lambda keys, images: images, normalise=to_float)
    parallel = one_device()
    compiled = parallel.compile(chex.assert_max_traces(step, n=1), donate_state=True)
    state = parallel.replicate(make_state(init(model), MOMENTUM))
    for image, label in zip(IMAGES[:3], LABELS[:3], strict=True):
        state, _ = compiled(state, parallel.shard({'image': image, 'label': label}))
    chex.assert_tree_all_finite(parallel.fetch(state).params)


def frozen_sgd(model: nn.Module, freeze=HEAD_ONLY) -> optax.GradientTransformation:
    config = default_config()
    config.freeze, config.weight_decay = freeze, 0.0
    return make_optimizer(config, optax.constant_schedule(0.1), init(model)['params'])


class Heads(NamedTuple):
    logits: jax.Array
    aux: jax.Array
    other: jax.Array


class Small(nn.Module):
    """Linear layers without BatchNorm, with auxiliary heads, dropout, and a check of the input's dtype."""

    heads: bool = False
    rate: float = 0.0
    dtype: jnp.dtype = jnp.float32
    aux_weight: float = 0.3

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False):
        assert self.is_initializing() or x.dtype == self.dtype
        x = x.reshape(len(x), -1)
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        heads = [nn.Dense(10, name=name)(x) for name in ('fc', 'aux', 'other')]
        return Heads(*heads) if train and self.heads else heads[0]


def test_auxiliary_losses_are_weighted_and_train_their_heads():
    model = Small(heads=True)
    params = init(model)
    heads = model.apply(params, to_float(IMAGES[0]), train=True)
    losses = [float(cross_entropy(logits, LABELS[0], 0.1).mean()) for logits in heads]
    state, metrics = train(one_device(), model, MOMENTUM, steps=1, label_smoothing=0.1)
    np.testing.assert_allclose(metrics[0]['loss'], losses[0] + 0.3 * (losses[1] + losses[2]), rtol=1e-5)
    for name in ('fc', 'aux', 'other'):
        assert np.abs(state.params[name]['kernel'] - params['params'][name]['kernel']).max() > 1e-4
    np.testing.assert_allclose(metrics[0]['accuracy'], (heads.logits.argmax(-1) == LABELS[0]).mean(), rtol=1e-6)


def test_a_network_without_batch_norm_trains():
    state, metrics = train(MeshParallel(), Small(), MOMENTUM)
    assert state.batch_stats == {}
    assert metrics[-1]['loss'] != metrics[0]['loss']


def test_average_of_the_variables_follows_them():
    model, decay = resnext(), 0.75
    first, second = (train(one_device(), model, MOMENTUM, steps=n, ema_decay=decay)[0] for n in (1, 2))
    average = init(model)
    for state in (first, second):
        now = {'params': state.params, 'batch_stats': state.batch_stats}
        average = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, average, now)
    assert_close(second.variables, average, 1e-6)
    assert np.abs(second.ema['params']['fc']['kernel'] - second.params['fc']['kernel']).max() > 1e-4


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    state, metrics = train(
        one_device(), Small(dtype=jnp.bfloat16), MOMENTUM, steps=1, normalise=partial(to_float, dtype=jnp.bfloat16)
    )
    assert {a.dtype for a in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    assert metrics[0]['loss'].dtype == np.float32
    assert np.isfinite(metrics[0]['loss'])


def test_dropout_differs_between_steps_and_devices_but_is_repeatable():
    def losses(parallel: MeshParallel, seed: int) -> list[float]:
        images = np.broadcast_to(IMAGES[0][:1], IMAGES[0].shape)
        model = Small(rate=0.5)
        step = parallel.compile(
            make_train_step(model, optax.sgd(0.0), augment=lambda k, x: x, normalise=to_float, seed=seed)
        )
        params = init(model)
        state, out = parallel.replicate(make_state(params, optax.sgd(0.0))), []
        for _ in range(3):
            batch = {'image': images, 'label': np.zeros(16, np.int32)}
            state, metrics = step(state, parallel.shard(batch))
            out.append(float(parallel.fetch(metrics)['loss']))
        return out

    first = losses(one_device(), 0)
    assert len(set(first)) == 3
    assert losses(one_device(), 0) == first
    assert losses(one_device(), 1) != first
    assert losses(MeshParallel(), 0) != first


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_cross_entropy_is_torchs(smoothing: float):
    logits, label = RNG.normal(size=(6, 10)).astype(np.float32) * 5, RNG.integers(0, 10, 6)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(label), label_smoothing=smoothing, reduction='none'
    )
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), label, smoothing), expected, rtol=1e-5)
    assert cross_entropy(jnp.asarray(logits, jnp.bfloat16), label, smoothing).dtype == jnp.float32


def test_every_registered_network_can_be_built_for_training():
    config = default_config()
    for name in flaxzoo.list_models():
        config.model = name
        model = build_model(config, 10)
        assert model.num_classes == 10
        assert model.axis_name == 'batch'


@pytest.mark.parametrize('name', ['googlenet', 'inception_v1', 'inception_v3', 'vgg11', 'squeezenet1_1'])
def test_the_step_takes_networks_of_other_forms(name: str):
    """Auxiliary heads or none, BatchNorm or none: traced at the network's own size, not computed."""
    config = default_config()
    config.model = name
    model = build_model(config, 10)
    shape = (model.image_size, model.image_size, 3)
    step = make_train_step(model, MOMENTUM, augment=partial(augment, pad=4, flip=True), normalise=to_float)
    state = jax.eval_shape(partial(make_state, tx=MOMENTUM), abstract_variables(model, shape))
    batch = {'image': jax.ShapeDtypeStruct((16, *shape), jnp.uint8), 'label': jax.ShapeDtypeStruct((16,), jnp.int32)}
    after, metrics = jax.eval_shape(MeshParallel().compile(step), state, batch)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), state)
    assert set(metrics) == {'loss', 'accuracy', 'grad_norm'}
    assert ('AuxLogits' in state.params or 'aux1' in str(list(state.params))) == model.has_aux == (model.aux_weight > 0)


def test_the_state_holds_no_average_unless_asked():
    params = {'params': {'fc': {'kernel': jnp.ones(2)}}}
    assert make_state(params, MOMENTUM).ema is None
    assert isinstance(make_state(params, MOMENTUM, 0.9), TrainState)
