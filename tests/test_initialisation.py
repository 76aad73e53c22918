"""`flaxzoo.init` gives what `model.init` gives, and compiles one random program a distribution for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flaxzoo
from flaxzoo.layers import initializers
from flaxzoo.layers.initializers import BLOCK, normal, uniform, variance_scaling
from tests.compiling import jit


def assert_close(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('name', ['squeezenet1_1', 'resnext29_32x4d', 'googlenet'])
def test_the_variables_are_those_of_the_model(name):
    model = flaxzoo.create(name, num_classes=7)
    key = jax.random.key(3)
    size = 64 if name == 'googlenet' else model.image_size
    assert_close(flaxzoo.init(model, key), jit(model.init)(key, jnp.zeros((1, size, size, 3))))


def test_arrays_are_concrete_and_can_be_trained():
    model = flaxzoo.create('resnext29_32x4d')
    variables = flaxzoo.init(model, jax.random.key(0))
    assert all(isinstance(leaf, jax.Array) and leaf.is_fully_addressable for leaf in jax.tree.leaves(variables))
    assert sorted(variables) == ['batch_stats', 'params']
    assert all((leaf == 0).all() or (leaf == 1).all() for leaf in jax.tree.leaves(variables['batch_stats']))


def test_the_image_says_how_many_channels():
    model = flaxzoo.create('squeezenet1_1')
    variables = flaxzoo.init(model, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32))
    assert variables['params']['features.0']['kernel'].shape == (3, 3, 1, 64)
    with pytest.raises(TypeError, match='the image has dtype uint8'):
        flaxzoo.init(model, jax.random.key(0), np.zeros((1, 32, 32, 3), np.uint8))


def test_one_random_program_serves_all_shapes():
    initializers._block.clear_cache()
    flaxzoo.init(flaxzoo.create('resnet18'), jax.random.key(0))
    assert initializers._block._cache_size() == 2  # the kernels are normal, the head and its bias uniform


def test_under_jit_and_vmap_the_numbers_are_the_same():
    init, shape = normal(0.5), (3, 5, 17, 200)
    key = jax.random.key(1)
    expected = init(key, shape)
    assert expected.size > 3 * BLOCK
    np.testing.assert_allclose(jit(lambda key: init(key, shape))(key), expected, rtol=1e-5, atol=1e-7)
    keys = jnp.stack([jax.random.key(0), key])
    np.testing.assert_allclose(jax.vmap(lambda key: init(key, shape))(keys)[1], expected, rtol=1e-5, atol=1e-7)


def test_no_number_comes_twice():
    numbers = np.asarray(uniform(1.0)(jax.random.key(0), (4, BLOCK)))
    assert len(np.unique(numbers)) > 0.99 * numbers.size


def test_another_key_gives_other_numbers():
    draw = normal(1.0)
    a, b = draw(jax.random.key(0), (100,)), draw(jax.random.key(1), (100,))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.4


TORCHS = {
    'kaiming_normal_, fan_out': (
        variance_scaling(2.0, 'fan_out', 'normal'),
        lambda w: torch.nn.init.kaiming_normal_(w, mode='fan_out', nonlinearity='relu'),
    ),
    'kaiming_uniform_': (variance_scaling(2.0, 'fan_in', 'uniform'), lambda w: torch.nn.init.kaiming_uniform_(w)),
    'kaiming_uniform_, a=sqrt(5)': (
        variance_scaling(1 / 3, 'fan_in', 'uniform'),
        lambda w: torch.nn.init.kaiming_uniform_(w, a=5**0.5),
    ),
    'normal_': (normal(0.01), lambda w: torch.nn.init.normal_(w, std=0.01)),
    'uniform_': (uniform(0.3), lambda w: torch.nn.init.uniform_(w, -0.3, 0.3)),
}


@pytest.mark.parametrize('name', TORCHS)
def test_distributions_are_torchs(name):
    ours, theirs = TORCHS[name]
    a = np.sort(np.asarray(ours(jax.random.key(0), (3, 5, 40, 70))).ravel())
    b = np.sort(theirs(torch.empty(70, 40, 3, 5)).numpy().ravel())
    quantiles = np.linspace(0.01, 0.99, 21)
    spread = b.std()
    np.testing.assert_allclose(np.quantile(a, quantiles), np.quantile(b, quantiles), atol=0.06 * spread)
    assert a.std() == pytest.approx(spread, rel=0.02)
    assert a.dtype == np.float32
