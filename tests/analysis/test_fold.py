"""`fold_batch_norm`: which norms it takes, which it must leave alone, and what may be done with its result."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

import flaxzoo
from flaxzoo.layers import BatchNorm, Conv2d, ConvNormAct, Norm
from tests.models.test_folding import draw, norms

SHAPE = (2, 7, 9, 4)
conv = partial(Conv2d, 4, 3, padding=1)


class Net(nn.Module):
    """`body(x, train)` with the modules that it makes by name."""

    body: Callable
    norm_layer: Callable = BatchNorm

    @nn.compact
    def __call__(self, x, train=False):
        return self.body(self, x, train)


def plain(net, x, train):
    return net.norm_layer(name='bn')(conv(name='conv')(x), train)


def shared_conv(net, x, train):
    shared = conv(name='conv')
    return net.norm_layer(name='bn')(shared(shared(x)), train)


def shared_norm(net, x, train):
    shared = net.norm_layer(name='bn')
    return shared(conv(name='conv2')(shared(conv(name='conv1')(x), train)), train)


def norm_first(net, x, train):
    return conv(name='conv')(net.norm_layer(name='bn')(x, train))


def activation_between(net, x, train):
    return net.norm_layer(name='bn')(nn.relu(conv(name='conv')(x)), train)


def read_by_a_sum(net, x, train):
    x = conv(name='conv')(x)
    return x + net.norm_layer(name='bn')(x, train)


def read_by_another_module(net, x, train):
    x = conv(name='conv1')(x)
    return net.norm_layer(name='bn')(x, train) + conv(name='conv2')(x)


def read_by_two_norms(net, x, train):
    x = conv(name='conv')(x)
    return net.norm_layer(name='bn')(x, train) + net.norm_layer(name='bn2')(x, train)


def returned_too(net, x, train):
    x = conv(name='conv')(x)
    return jnp.stack([x, net.norm_layer(name='bn')(x, train)])


class Standardised(Conv2d):
    """Its kernel is not the parameter."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param('kernel', self.kernel_init, (3, 3, x.shape[-1], self.out_channels))
        return jax.lax.conv(x.transpose(0, 3, 1, 2), (kernel / kernel.std()).transpose(3, 2, 0, 1), (1, 1), 'SAME')


class Declared(Conv2d):
    """With a call of its own, linear in the kernel all the same."""

    foldable = True

    @nn.compact
    def __call__(self, x):
        return -super().__call__(-x)


class DeclaredNot(Conv2d):
    foldable = False


class Inheriting(Conv2d):
    """Another way to the same numbers, for example."""


class Leaky(BatchNorm):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.leaky_relu(super().__call__(x, train))


def subclass_of_the_norm(net, x, train):
    return Leaky(name='bn')(conv(name='conv')(x), train)


def subclass_that_says_no(net, x, train):
    return net.norm_layer(name='bn')(DeclaredNot(4, 3, name='conv')(x), train)


def subclass(net, x, train):
    return net.norm_layer(name='bn')(Standardised(4, 3, name='conv')(x).transpose(0, 2, 3, 1), train)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return ConvNormAct(4, 3, padding=1, name='layer')(x, train), None


def scanned(net, x, train):
    axes = {'params': 0, 'batch_stats': 0}
    layers = nn.scan(Layer, axes, split_rngs={'params': True}, length=3, in_axes=nn.broadcast)
    return layers(name='layers')(x, train)[0]


def build(body, dtype=np.float32, **fields):
    """A network, random variables of it and images."""
    net = Net(body, **fields)
    variables = draw(jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(SHAPE)), dtype=dtype)
    return net, variables, np.random.default_rng(1).normal(size=SHAPE).astype(dtype)


def fold(net, variables):
    return flaxzoo.fold_batch_norm(net, variables, input_shape=SHAPE)


def assert_same(net, variables, folded, x):
    expected = net.apply(variables, x)
    np.testing.assert_allclose(net.apply(folded, x), expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('norm', [{}, {'eps': 0.1}, {'affine': False}])
def test_the_convolution_computes_what_both_did(bias, groups, norm):
    def body(net, x, train):
        return net.norm_layer(name='bn')(x=conv(bias=bias, groups=groups, name='conv')(x), train=train)

    with jax.enable_x64(True):
        net, variables, x = build(body, np.float64, norm_layer=partial(BatchNorm, **norm))
        folded = fold(net, variables)
        assert_same(net, variables, folded, x)
    assert folded.keys() == {'params'}
    assert folded['params']['bn'].keys() == {'folded_bias'}
    assert {leaf.dtype for leaf in jax.tree.leaves(folded)} == {np.dtype('float64')}


def test_a_bias_that_is_not_scaled_is_noticed():
    with jax.enable_x64(True):
        net, variables, x = build(plain, np.float64)
        folded = fold(net, variables)
        folded['params']['conv']['bias'] = variables['params']['conv']['bias']
        with pytest.raises(AssertionError, match='Not equal to tolerance'):
            assert_same(net, variables, folded, x)


@pytest.mark.parametrize(
    'body',
    [
        shared_conv,
        shared_norm,
        norm_first,
        activation_between,
        read_by_a_sum,
        read_by_another_module,
        read_by_two_norms,
        returned_too,
        subclass,
        subclass_of_the_norm,
        subclass_that_says_no,
        scanned,
    ],
)
def test_what_cannot_be_folded_stays(body):
    net, variables, _ = build(body)
    jax.tree.map(np.testing.assert_array_equal, fold(net, variables), variables)


def test_only_the_norms_after_a_convolution_are_folded():
    def body(net, x, train):
        return plain(net, net.norm_layer(name='first')(nn.remat(ConvNormAct)(4, 3, padding=1, name='block')(x)), train)

    with jax.enable_x64(True):
        net, variables, x = build(body, np.float64)
        folded = fold(net, variables)
        assert norms(folded) == {'first'}
        assert_same(net, variables, folded, x)


@pytest.mark.parametrize('kind', [Inheriting, Declared])
def test_a_subclass_is_folded_if_it_inherits_the_call_or_says_so(kind):
    def body(net, x, train):
        return net.norm_layer(name='bn')(kind(4, 3, bias=kind is Inheriting, name='conv')(x), train)

    with jax.enable_x64(True):
        net, variables, x = build(body, np.float64)
        folded = fold(net, variables)
        assert norms(folded) == set()
        assert_same(net, variables, folded, x)


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize('remat', [False, True])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('classes', [0, 5])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_options_crossed(frozen, remat, channels, classes, dtype):
    model = flaxzoo.create(
        'resnext29_32x4d',
        layers=(1, 1),
        groups=4,
        num_classes=classes,
        remat=remat,
        freeze_batch_norm=frozen,
        norm_layer=Norm(eps=1e-2),
    )
    image = (2, 16, 16, channels)
    variables = draw(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(image)))
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), variables)
    folded = flaxzoo.fold_batch_norm(model, variables)
    assert folded.keys() == {'params'}
    assert {leaf.dtype for leaf in jax.tree.leaves(folded)} == {jnp.dtype(dtype)}
    x = np.random.default_rng(1).normal(size=image).astype(np.float32)
    expected, ours = (np.asarray(model.apply(v, x)) for v in (variables, folded))
    error = np.abs(ours - expected).max() / np.abs(expected).max()
    assert error < (1e-5 if dtype == 'float32' else 0.05)


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_depthwise_and_grouped_convolutions(groups):
    def body(net, x, train):
        x = nn.relu(net.norm_layer(name='bn1')(Conv2d(8, 3, groups=groups, bias=False, name='conv1')(x), train))
        return net.norm_layer(name='bn2')(Conv2d(8, 3, groups=8, name='conv2')(x), train)

    with jax.enable_x64(True):
        net, variables, x = build(body, np.float64)
        folded = fold(net, variables)
        assert norms(folded) == set()
        assert_same(net, variables, folded, x)


def test_a_network_of_layer_norms_comes_back_unchanged():
    def body(net, x, train):
        return nn.LayerNorm(name='ln2')(nn.Dense(4, name='fc')(nn.LayerNorm(name='ln')(conv(name='conv')(x))))

    net, variables, _ = build(body)
    folded = fold(net, variables)
    assert all(a is b for a, b in zip(jax.tree.leaves(folded), jax.tree.leaves(variables), strict=True))


def test_under_jit_in_bfloat16_and_with_a_frozen_dict():
    net, variables, x = build(plain)
    folded = fold(net, freeze(variables))
    expected = np.asarray(net.apply(variables, x))
    np.testing.assert_allclose(jax.jit(net.apply)(folded, x), expected, atol=1e-5)
    rounded = jax.jit(net.apply)(folded, jnp.asarray(x, jnp.bfloat16))
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(rounded, np.float32), expected, atol=0.05 * np.abs(expected).max())


def test_the_original_is_left_as_it_was():
    net, variables, _ = build(plain)
    before = jax.tree.map(np.copy, variables)
    fold(net, variables)
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_images_of_one_channel():
    model = flaxzoo.create('resnext29_32x4d')
    image = (1, 32, 32, 1)
    variables = draw(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(image)))
    assert flaxzoo.fold_batch_norm(model, variables, input_shape=image).keys() == {'params'}


def test_folded_variables_are_not_trained():
    net, variables, x = build(plain)
    folded = fold(net, variables)
    with pytest.raises(ValueError, match=r'^bn: .*folded for inference .* cannot be trained'):
        net.apply(folded, x, train=True, mutable=['batch_stats'])
    frozen = net.clone(norm_layer=partial(BatchNorm, frozen=True))
    np.testing.assert_array_equal(frozen.apply(folded, x, train=True), net.apply(folded, x))


def test_folded_variables_are_not_folded_again():
    net, variables, _ = build(plain)
    with pytest.raises(ValueError, match='folded already'):
        fold(net, fold(net, variables))


def test_variables_that_do_not_fit():
    net, variables, _ = build(plain)
    with pytest.raises(ValueError, match='bn: there are no running statistics'):
        fold(net, {'params': variables['params']})
    with pytest.raises(ValueError, match=r'do not fit Net: .*conv1'):
        fold(build(shared_norm)[0], variables)


def test_folded_variables_have_no_torch_names(tmp_path):
    net, variables, _ = build(plain)
    folded = fold(net, variables)
    with pytest.raises(flaxzoo.ConversionError, match='params/bn/folded_bias: folded batch norms have no torch names'):
        flaxzoo.save(tmp_path / 'folded.safetensors', folded)
    assert not list(tmp_path.iterdir())
