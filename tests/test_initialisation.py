"""`flaxzoo.init` gives what `model.init` gives, and compiles one random program a distribution for it."""

from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flaxzoo
from flaxzoo.layers import BatchNorm, Conv2d, initializers
from flaxzoo.layers.initializers import BLOCK, normal, uniform, variance_scaling
from tests.compiling import jit


def assert_close(ours, theirs):
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-7)


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


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x = BatchNorm()(Conv2d(3, 3, padding=1)(x))
        return nn.Dropout(0.5, deterministic=not self.has_rng('dropout'))(x)


class User(nn.Module):
    """A network of somebody else, without image_size: `body(x)` makes its modules."""

    body: Callable

    @nn.compact
    def __call__(self, x):
        return self.body(x)


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return Block()(x), None


class ReadsTheImage(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x * self.param('mean', lambda key: x.mean())


AXES = {'variable_axes': {'params': 0, 'batch_stats': 0}, 'split_rngs': {'params': True, 'dropout': True}}
BODIES = {
    'plain': lambda x: Block()(x),
    'remat': lambda x: nn.remat(Block)()(x),
    'remat within remat': lambda x: nn.remat(User)(lambda x: nn.remat(Block)()(x))(x),
    'scan': lambda x: nn.scan(Scanned, length=2, **AXES)()(x, None)[0],
    'vmap': lambda x: nn.vmap(Block, in_axes=None, axis_size=2, **AXES)()(x),
    'jit': lambda x: nn.jit(Block)()(x),
    'an initialiser that reads the image': lambda x: ReadsTheImage()(x),
    'spectral norm': lambda x: nn.SpectralNorm(nn.Dense(3))(x, update_stats=True),
}
IMAGE = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32)


def tree_of_first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


WAYS = {
    'eager': lambda init, key, x: init(key, x),
    'jit': lambda init, key, x: jax.jit(init)(key, x),
    'jit of constants': lambda init, key, x: jax.jit(lambda: init(key, x))(),
    'vmap over keys': lambda init, key, x: tree_of_first(jax.vmap(init, (0, None))(jax.random.split(key, 2), x)),
    'vmap over images': lambda init, key, x: tree_of_first(jax.vmap(init, (None, 0))(key, jnp.stack([x, x + 1]))),
}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('body', BODIES)
def test_of_any_module_and_under_any_transformation(body, way):
    model, key = User(BODIES[body]), jax.random.key(0)
    used = jax.random.split(key, 2)[0] if way == 'vmap over keys' else key
    expected = model.init(used, IMAGE)
    with jax.checking_leaks():
        ours = WAYS[way](lambda key, x: flaxzoo.init(model, key, x), key, jnp.asarray(IMAGE))
    assert_close(ours, expected)


def test_several_rngs_as_flax_takes_them():
    model, keys = User(BODIES['remat']), {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    assert_close(flaxzoo.init(model, keys, IMAGE), model.init(keys, IMAGE))


def test_a_module_that_looks_at_the_values_of_the_image():
    model = User(lambda x: nn.Dense(int(np.abs(x).max()) + 1)(x))
    assert_close(flaxzoo.init(model, jax.random.key(0), IMAGE), model.init(jax.random.key(0), IMAGE))


def test_recomputed_blocks_are_trained():
    model = flaxzoo.create('resnext29_32x4d', layers=(1, 1, 1), remat=True)
    variables = flaxzoo.init(model, jax.random.key(0))
    assert_close(variables, flaxzoo.init(model.clone(remat=False), jax.random.key(0)))
    assert jnp.isfinite(model.apply(variables, jnp.ones((1, 32, 32, 3)))).all()


def test_old_keys_are_taken():
    model = User(BODIES['plain'])
    assert_close(flaxzoo.init(model, jax.random.PRNGKey(0), IMAGE), model.init(jax.random.PRNGKey(0), IMAGE))
    key = np.array([0, 7], np.uint32)
    assert_close(flaxzoo.init(model, key, IMAGE), model.init(key, IMAGE))


@pytest.mark.parametrize(
    ('key', 'message'),
    [
        (3, r'init takes one random key, jax\.random\.key\(3\), got 3'),
        (None, 'got None'),
        (IMAGE, r'got an array of float32\[2, 5, 6, 3\]'),
        (jax.random.split(jax.random.key(0), 3), r'got an array of key<fry>\[3\]'),
        ({'params': 0}, 'got 0'),
    ],
)
def test_what_is_no_key_is_refused(key, message):
    with pytest.raises(TypeError, match=message):
        flaxzoo.init(User(BODIES['plain']), key, IMAGE)


def test_a_module_without_a_size_needs_an_image():
    with pytest.raises(TypeError, match=r'User does not say which images it takes .* give x'):
        flaxzoo.init(User(BODIES['plain']), jax.random.key(0))


@pytest.mark.parametrize('model', ['resnet18', User])
def test_what_is_no_module_is_refused(model):
    with pytest.raises(TypeError, match=r'init takes a linen module, got .*flaxzoo\.create'):
        flaxzoo.init(model, jax.random.key(0))


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


def test_a_shape_is_no_image():
    with pytest.raises(TypeError, match=r'jax\.ShapeDtypeStruct\(\(1, 32, 32, 3\), jnp\.float32\)'):
        flaxzoo.init(flaxzoo.create('squeezenet1_1'), jax.random.key(0), (1, 32, 32, 3))
