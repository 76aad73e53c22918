"""Convolution and linear layers against torch, and every lowering of the convolution against XLA's own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxzoo.layers import Conv2d, Linear
from flaxzoo.layers.conv_lowering import depthwise_conv, merged_conv, native_conv, pointwise_conv


def relative(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max()


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


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


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw, groups=None, kernel=None, outputs_a_group=None):
    """(x shape, kernel shape, arguments of native_conv) of a random convolution that has an output."""
    groups = groups or draw(st.sampled_from([2, 3, 4, 6]))
    inputs, outputs = draw(st.integers(1, 4)), outputs_a_group or draw(st.integers(1, 3))
    kernel = kernel or draw(pairs)
    stride, dilation = draw(pairs), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    size = [draw(st.integers((k - 1) * d + 1, 9)) for k, d in zip(kernel, dilation, strict=True)]
    arguments = {'stride': stride, 'padding': padding, 'dilation': dilation, 'groups': groups}
    return (draw(st.integers(1, 2)), *size, inputs * groups), (*kernel, inputs, outputs * groups), arguments


def assert_equal_with_gradients(lowering, native, x_shape, kernel_shape):
    rng = np.random.default_rng(0)
    x, kernel = jnp.asarray(rng.normal(size=x_shape)), jnp.asarray(rng.normal(size=kernel_shape))
    expected, pull = jax.vjp(native, x, kernel)
    value, pull_lowered = jax.vjp(lowering, x, kernel)
    cotangent = jnp.asarray(rng.normal(size=expected.shape))
    assert value.shape == expected.shape
    for ours, theirs in zip((value, *pull_lowered(cotangent)), (expected, *pull(cotangent)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)


@settings(max_examples=12, deadline=None)
@given(convolutions(), st.sampled_from([1, 3, 6, 16]))
def test_merged_conv(case, channels):
    x, kernel, arguments = case
    lowering = partial(merged_conv, **arguments, channels=channels)
    assert_equal_with_gradients(lowering, partial(native_conv, **arguments), x, kernel)


def test_the_number_of_merged_blocks_is_bounded():
    """Each is a convolution to compile; a wide network must not have thousands."""
    x, kernel = jax.ShapeDtypeStruct((1, 7, 7, 2048), 'float32'), jax.ShapeDtypeStruct((3, 3, 32, 2048), 'float32')
    arguments = {'stride': (1, 1), 'padding': (1, 1), 'dilation': (1, 1), 'groups': 64}
    jaxpr = jax.make_jaxpr(partial(merged_conv, **arguments))(x, kernel)
    assert str(jaxpr).count('conv_general_dilated[') == 32


@settings(max_examples=12, deadline=None)
@given(convolutions(outputs_a_group=1))
def test_depthwise_conv(case):
    (*image, channels), (*taps, _, _), arguments = case
    native = partial(native_conv, **{**arguments, 'groups': channels})
    lowering = partial(depthwise_conv, **{k: v for k, v in arguments.items() if k != 'groups'})
    assert_equal_with_gradients(lowering, native, (*image, channels), (*taps, 1, channels))


@settings(max_examples=10, deadline=None)
@given(convolutions(groups=1, kernel=(1, 1)))
def test_pointwise_conv(case):
    x, kernel, arguments = case
    native = partial(native_conv, **{**arguments, 'padding': (0, 0)})
    assert_equal_with_gradients(partial(pointwise_conv, stride=arguments['stride']), native, x, kernel)


@pytest.mark.parametrize('fields', [{'groups': 4}, {'groups': 8}, {'kernel_size': 1, 'padding': 0}])
def test_gpus_and_tpus_keep_the_native_convolution(fields):
    """The slow lowering is replaced on the CPU, and only there: other platforms see one plain convolution."""
    layer = Conv2d(8, **{'kernel_size': 3, 'padding': 1, **fields})
    x = jnp.zeros((1, 8, 8, 8), jnp.float32)
    variables = layer.init(jax.random.key(0), x)
    exported = {
        platform: jax.export.export(jax.jit(layer.apply), platforms=[platform])(variables, x).mlir_module()
        for platform in ('cpu', 'cuda', 'tpu')
    }
    native = f'feature_group_count = {fields.get("groups", 1)}'
    assert native not in exported['cpu']
    for platform in ('cuda', 'tpu'):
        assert exported[platform].count('stablehlo.convolution') == 1
        assert native in exported[platform]


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
        (Conv2d(6, 3, groups=4), 'must divide .* the 6 output channels'),
        (Conv2d(8, 7, dilation=2, padding=2), r'x of shape \(1, 8, 8, 4\) is smaller than the kernel 7'),
        (Conv2d(8, (3, 3, 3)), r'kernel_size must be an int or a \(height, width\) pair'),
    ],
)
def test_wrong_arguments_are_named(layer, message):
    with pytest.raises(ValueError, match=message):
        layer.init(jax.random.key(0), jnp.zeros((1, 8, 8, 4)))
