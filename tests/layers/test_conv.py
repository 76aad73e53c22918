"""Convolution and linear layers against torch."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxzoo.layers import AveragedConv2d, Conv2d, Linear, SpaceToDepthConv2d, avg_pool2d
from tests.ops.convolutions import arrays, assert_equal, relative
from tests.optional import torch

pytestmark = pytest.mark.usefixtures('x64')


@pytest.mark.parametrize(
    ('inputs', 'outputs', 'kernel', 'fields'),
    [
        (3, 8, 3, {}),
        (3, 8, 7, {'stride': 2, 'padding': 3}),
        (8, 12, (1, 7), {'padding': (0, 3)}),
        (8, 12, (3, 5), {'stride': (2, 1), 'padding': (1, 0), 'dilation': (1, 2)}),
        (8, 12, 1, {}),
        (8, 12, 1, {'stride': 2}),
        (8, 12, 1, {'padding': 1}),
        (8, 12, 3, {'groups': 4, 'padding': 1}),
        (64, 64, 3, {'groups': 16, 'padding': 2, 'dilation': 2}),
        (8, 8, 3, {'groups': 8, 'padding': 1, 'stride': 2}),
        (8, 16, 3, {'groups': 8, 'padding': 1}),
        (8, 12, 3, {'bias': False}),
    ],
)
def test_conv2d_is_torchs(inputs, outputs, kernel, fields):
    reference = torch.nn.Conv2d(inputs, outputs, kernel, **fields).double()
    x = np.random.default_rng(0).normal(size=(2, inputs, 11, 14))
    params = {'kernel': jnp.asarray(reference.weight.detach().numpy().transpose(2, 3, 1, 0))}
    if reference.bias is not None:
        params['bias'] = jnp.asarray(reference.bias.detach().numpy())
    layer = Conv2d(outputs, kernel, **fields)
    y = layer.apply({'params': params}, jnp.asarray(x.transpose(0, 2, 3, 1)))
    assert relative(y, reference(torch.from_numpy(x)).detach().numpy().transpose(0, 2, 3, 1)) < 1e-13
    shapes = jax.tree.map(jnp.shape, layer.init(jax.random.key(0), jnp.zeros((1, 11, 14, inputs)))['params'])
    assert shapes == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize(
    ('kernel', 'fields'),
    [
        (7, {'stride': 2, 'padding': 3}),
        (3, {'stride': 2}),
        ((4, 3), {'stride': (2, 3), 'padding': (0, 1)}),
        (1, {'stride': 2}),
    ],
)
@pytest.mark.parametrize('size', [(20, 17), (19, 24)])
def test_space_to_depth_is_exact(size, kernel, fields):
    x = arrays((2, *size, 3))[0]
    layer, blocks = Conv2d(5, kernel, **fields), SpaceToDepthConv2d(5, kernel, **fields)
    params = jax.tree.map(lambda a: a.astype(x.dtype), layer.init(jax.random.key(0), x))
    assert jax.tree.map(jnp.shape, blocks.init(jax.random.key(0), x)) == jax.tree.map(jnp.shape, params)

    def value_and_gradients(layer):
        value, pull = jax.vjp(layer.apply, params, x)
        return value, pull(jnp.cos(value))

    assert_equal(value_and_gradients(blocks), value_and_gradients(layer))


SMOOTH = {
    'all counted': partial(avg_pool2d, kernel_size=3, stride=1, padding=1),
    'inside counted': partial(avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False),
}


@pytest.mark.parametrize('average', SMOOTH)
@pytest.mark.parametrize('outputs', [5, 9], ids=['after the convolution', 'before it'])
@pytest.mark.parametrize('bias', [False, True])
@settings(max_examples=3, deadline=None)
@given(st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)))
def test_an_average_before_a_convolution(outputs, bias, average, image):
    (x,) = arrays((*image, 8))
    plain = Conv2d(outputs, 1, bias=bias)
    averaged = AveragedConv2d(outputs, 1, bias=bias, average=SMOOTH[average])
    params = jax.tree.map(lambda a: a.astype(x.dtype), plain.init(jax.random.key(0), x))
    assert jax.tree.map(jnp.shape, averaged.init(jax.random.key(0), x)) == jax.tree.map(jnp.shape, params)

    def value_and_gradients(conv):
        value, pull = jax.vjp(conv, params, x)
        return value, pull(jnp.cos(value))

    separate = value_and_gradients(lambda params, x: plain.apply(params, SMOOTH[average](x)))
    assert_equal(value_and_gradients(averaged.apply), separate)


@pytest.mark.parametrize(('outputs', 'channels'), [(5, 5), (9, 8)])
def test_the_average_is_taken_of_fewer_channels(outputs, channels):
    layer, x = AveragedConv2d(outputs, 1, average=SMOOTH['all counted']), jnp.zeros((1, 7, 10, 8))
    program = str(jax.make_jaxpr(layer.apply)(layer.init(jax.random.key(0), x), x))
    widths = {int(width) for width in re.findall(r'f\d+\[1,7,10,(\d+)\] = reduce_window_sum', program)}
    assert widths == {channels}


def test_linear_is_torchs():
    reference = torch.nn.Linear(6, 4).double()
    x = np.random.default_rng(0).normal(size=(2, 5, 6))
    params = {'kernel': jnp.asarray(reference.weight.detach().numpy().T), 'bias': reference.bias.detach().numpy()}
    y = Linear(4).apply({'params': params}, jnp.asarray(x))
    assert relative(y, reference(torch.from_numpy(x)).detach().numpy()) < 1e-14


@pytest.mark.parametrize('layer', [Conv2d(64, 3), Linear(64)])
def test_default_initialisers_have_torchs_bounds(layer):
    x = jnp.zeros((1, 4, 4, 32), jnp.float32)
    params = layer.init(jax.random.key(0), x)['params']
    bound = (params['kernel'].size / 64) ** -0.5
    for leaf in params.values():
        assert leaf.dtype == jnp.float32
        assert 0.9 * bound < jnp.abs(leaf).max() <= bound


def test_the_compute_dtype_is_the_inputs():
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64):
        x = jnp.ones((1, 5, 5, 4), dtype)
        for layer in (Conv2d(8, 3, groups=2), Conv2d(8, 1), Linear(8)):
            y, variables = layer.init_with_output(jax.random.key(0), x)
            assert y.dtype == dtype
            assert variables['params']['kernel'].dtype == jnp.float32


@pytest.mark.parametrize(
    ('layer', 'message'),
    [
        (Conv2d(8, 3, groups=3), 'groups=3 must divide the 4 input channels'),
        (SpaceToDepthConv2d(8, 3, groups=2), 'SpaceToDepthConv2d takes groups=1 and dilation=1'),
        (AveragedConv2d(8, 3, average=abs), 'AveragedConv2d takes a 1x1 kernel'),
        (AveragedConv2d(8, 1, stride=2, average=abs), 'AveragedConv2d takes a 1x1 kernel'),
        (Conv2d(6, 3, groups=4), 'must divide .* the 6 output channels'),
        (Conv2d(8, 7, dilation=2, padding=2), r'x of shape \(1, 8, 8, 4\) is smaller than the kernel 7'),
        (Conv2d(8, (3, 3, 3)), r'kernel_size must be an int or a \(height, width\) pair'),
    ],
)
def test_wrong_arguments_are_named(layer, message):
    with pytest.raises(ValueError, match=message):
        layer.init(jax.random.key(0), jnp.zeros((1, 8, 8, 4)))
