"""Convolution and linear layers against torch, and every lowering of the convolution against XLA's own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from flaxzoo.layers import Conv2d, Linear
from flaxzoo.layers.conv_lowering import (
    Geometry,
    depthwise_conv,
    merged_conv,
    native_conv,
    native_input_gradient,
    native_kernel_gradient,
    phase_input_gradient,
    pointwise_conv,
    row_conv,
    tap_kernel_gradient,
    wide_conv,
)
from flaxzoo.layers.conv_primitive import conv2d
from flaxzoo.layers.products import product
from flaxzoo.layers.winograd import winograd_conv, winograd_kernel_gradient
from tests.compiling import jit


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
def convolutions(draw, groups=None, kernel=None, outputs_a_group=None, padding=None, stride=None, dilation=None):
    """(x shape, kernel shape, Geometry) of a random convolution that has an output."""
    groups = groups or draw(st.sampled_from([2, 3, 4, 6]))
    inputs, outputs = draw(st.integers(1, 4)), outputs_a_group or draw(st.integers(1, 3))
    kernel = kernel or draw(pairs)
    stride, dilation = stride or draw(pairs), dilation or draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = padding or draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    size = [draw(st.integers((k - 1) * d + 1, 9)) for k, d in zip(kernel, dilation, strict=True)]
    geometry = Geometry(stride, padding, dilation, groups)
    return (draw(st.integers(1, 2)), *size, inputs * groups), (*kernel, inputs, outputs * groups), geometry


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


def assert_equal(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def value_and_gradients(conv, x, kernel):
    """The value and both gradients for a cotangent that depends on the value, so that nothing is linear."""

    @jit
    def both(x, kernel):
        value, pull = jax.vjp(conv, x, kernel)
        return value, pull(jnp.cos(value))

    return both(x, kernel)


def assert_equal_with_gradients(lowering, x_shape, kernel_shape, geometry):
    x, kernel = arrays(x_shape, kernel_shape)
    native = partial(native_conv, geometry=geometry)
    assert_equal(value_and_gradients(lowering, x, kernel), value_and_gradients(native, x, kernel))


@settings(max_examples=12, deadline=None)
@given(convolutions(), st.sampled_from([1, 3, 6, 16]))
def test_merged_conv(case, channels):
    assert_equal_with_gradients(partial(merged_conv, geometry=case[2], channels=channels), *case)


def test_the_number_of_merged_blocks_is_bounded():
    """Each is a convolution to compile; a wide network must not have thousands."""
    x, kernel = jax.ShapeDtypeStruct((1, 7, 7, 2048), 'float32'), jax.ShapeDtypeStruct((3, 3, 32, 2048), 'float32')
    jaxpr = jax.make_jaxpr(partial(merged_conv, geometry=Geometry(padding=(1, 1), groups=64)))(x, kernel)
    assert str(jaxpr).count('conv_general_dilated[') == 16


@settings(max_examples=12, deadline=None)
@given(convolutions(outputs_a_group=1))
def test_depthwise_conv(case):
    (*image, channels), (*taps, _, _), geometry = case
    geometry = geometry._replace(groups=channels)
    lowering = partial(depthwise_conv, geometry=geometry)
    assert_equal_with_gradients(lowering, (*image, channels), (*taps, 1, channels), geometry)


@settings(max_examples=10, deadline=None)
@given(convolutions(groups=1, kernel=(1, 1), padding=(0, 0)))
def test_pointwise_conv(case):
    assert_equal_with_gradients(partial(pointwise_conv, geometry=case[2]), *case)


@settings(max_examples=10, deadline=None)
@given(convolutions(groups=1, stride=(1, 1)))
def test_wide_conv(case):
    assert_equal_with_gradients(partial(wide_conv, geometry=case[2]), *case)


@settings(max_examples=10, deadline=None)
@given(convolutions(groups=1))
def test_row_conv(case):
    assert_equal_with_gradients(partial(row_conv, geometry=case[2]), *case)


@settings(max_examples=10, deadline=None)
@given(convolutions(groups=1, kernel=(3, 3), stride=(1, 1), dilation=(1, 1)))
def test_winograd_conv(case):
    assert_equal_with_gradients(partial(winograd_conv, padding=case[2].padding), *case)


@settings(max_examples=10, deadline=None)
@given(convolutions(groups=1, kernel=(3, 3), stride=(1, 1), dilation=(1, 1)))
def test_winograd_gradients(case):
    x_shape, kernel_shape, geometry = case
    y_shape = jax.eval_shape(partial(native_conv, geometry=geometry), *arrays(x_shape, kernel_shape)).shape
    x, kernel, cotangent = arrays(x_shape, kernel_shape, y_shape)
    ours = winograd_kernel_gradient(x, cotangent, geometry.padding)
    assert_equal(ours, native_kernel_gradient(x, cotangent, like=jax.typeof(kernel), geometry=geometry))
    # The gradient of x is the convolution with the flipped kernel, whose channels change places.
    ours = winograd_conv(cotangent, kernel[::-1, ::-1], tuple(2 - p for p in geometry.padding), transpose=True)
    assert_equal(ours, native_input_gradient(cotangent, kernel, like=jax.typeof(x), geometry=geometry))


@settings(max_examples=20, deadline=None)
@given(st.one_of(convolutions(groups=1, dilation=(1, 1)), convolutions(groups=1, stride=(1, 1))))
def test_phase_input_gradient(case):
    x_shape, kernel_shape, geometry = case
    y_shape = jax.eval_shape(partial(native_conv, geometry=geometry), *arrays(x_shape, kernel_shape)).shape
    x, kernel, cotangent = arrays(x_shape, kernel_shape, y_shape)
    both = [
        jit(partial(gradient, like=jax.typeof(x), geometry=geometry))(cotangent, kernel)
        for gradient in (phase_input_gradient, native_input_gradient)
    ]
    assert_equal(*both)


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
    layer, blocks = Conv2d(5, kernel, **fields), Conv2d(5, kernel, space_to_depth=True, **fields)
    params = jax.tree.map(lambda a: a.astype(x.dtype), layer.init(jax.random.key(0), x))
    assert jax.tree.map(jnp.shape, blocks.init(jax.random.key(0), x)) == jax.tree.map(jnp.shape, params)

    def value_and_gradients(layer):
        value, pull = jax.vjp(layer.apply, params, x)
        return value, pull(jnp.cos(value))

    assert_equal(value_and_gradients(blocks), value_and_gradients(layer))


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('images', [2, 3])
@pytest.mark.parametrize('pixels', [2, 40])
def test_product(pixels, images, dtype):
    """With more weights than pixels, and with fewer."""
    x, matrix = (a.astype(dtype) for a in arrays((images, pixels, 3, 5), (5, 7)))
    for y in (product(x, matrix), product(x, matrix.T, transpose=True)):
        assert y.dtype == dtype
        assert relative(y, x @ matrix) < (1e-14 if dtype == 'float64' else 1e-6)


@settings(max_examples=15, deadline=None)
@given(convolutions(groups=1))
def test_tap_kernel_gradient(case):
    x_shape, kernel_shape, geometry = case
    x, kernel = arrays(x_shape, kernel_shape)

    @jit
    def both(x, kernel):
        value, pull = jax.vjp(lambda kernel: native_conv(x, kernel, geometry=geometry), kernel)
        return tap_kernel_gradient(x, value, like=jax.typeof(kernel), geometry=geometry), *pull(value)

    ours, theirs = both(x, kernel)
    assert_equal(ours, theirs)


@settings(max_examples=20, deadline=None)
@given(st.one_of(convolutions(), convolutions(groups=1), convolutions(groups=1, kernel=(1, 1), padding=(0, 0))))
def test_the_chosen_lowering(case):
    assert_equal_with_gradients(partial(conv2d, geometry=case[2]), *case)


def test_the_chosen_lowering_over_a_large_image():
    """Where kernel gradients are products a tap."""
    geometry = Geometry(stride=(2, 1), padding=(1, 1))
    assert_equal_with_gradients(partial(conv2d, geometry=geometry), (2, 31, 17, 3), (3, 3, 3, 4), geometry)


FLOAT32 = {
    'pointwise': ((2, 11, 9, 3), (1, 1, 3, 4), Geometry()),
    'pointwise, strided': ((2, 11, 9, 3), (1, 1, 3, 4), Geometry(stride=(2, 2))),
    'winograd': ((2, 11, 8, 48), (3, 3, 48, 50), Geometry(padding=(1, 1))),
    'winograd, unpadded': ((2, 11, 8, 48), (3, 3, 48, 50), Geometry(padding=(0, 2))),
    'winograd, too much padding for the gradient': ((2, 5, 8, 48), (3, 3, 48, 50), Geometry(padding=(3, 4))),
    'wide': ((2, 11, 9, 20), (3, 3, 20, 20), Geometry(padding=(1, 1))),
    'wide, unpadded': ((2, 11, 9, 20), (5, 3, 20, 20), Geometry()),
    'wide, dilated': ((2, 11, 9, 20), (3, 3, 20, 20), Geometry(padding=(1, 1), dilation=(2, 2))),
    'row': ((2, 21, 19, 3), (7, 7, 3, 20), Geometry(stride=(2, 2), padding=(3, 3))),
    'strided': ((2, 11, 9, 20), (3, 3, 20, 20), Geometry(stride=(2, 1), padding=(1, 1))),
    'strided and dilated': ((2, 11, 9, 20), (3, 3, 20, 20), Geometry((2, 2), (1, 1), (2, 2))),
    'grouped': ((2, 11, 9, 64), (3, 3, 4, 64), Geometry(padding=(1, 1), groups=16)),
}


@pytest.mark.parametrize('case', FLOAT32)
def test_the_chosen_lowering_in_float32(case):
    """Much is chosen for float32 alone; the errors against float64 must be those of float32's rounding."""
    x_shape, kernel_shape, geometry = FLOAT32[case]
    x, kernel = arrays(x_shape, kernel_shape)

    @partial(jit, static_argnums=0)
    def value_and_gradients(conv, x, kernel):
        value, pull = jax.vjp(partial(conv, geometry=geometry), x, kernel)
        return value, pull(jnp.cos(jnp.arange(value.size)).reshape(value.shape).astype(value.dtype))

    ours = value_and_gradients(conv2d, x.astype(jnp.float32), kernel.astype(jnp.float32))
    for a, b in zip(*map(jax.tree.leaves, (ours, value_and_gradients(native_conv, x, kernel))), strict=True):
        assert a.dtype == jnp.float32
        assert a.shape == b.shape
        assert relative(a, b) < 2e-6


@pytest.mark.parametrize('case', [c for c in FLOAT32 if 'strided' not in c])
def test_no_forward_convolution_of_float32_is_left_to_ynnpack(case):
    """Which XLA would call for two-dimensional convolutions and matrix products, and which is slower."""
    x_shape, kernel_shape, geometry = FLOAT32[case]
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x_shape, kernel_shape)]
    program = jax.jit(partial(conv2d, geometry=geometry)).lower(*shapes).compile()
    assert 'ynn_fusion' not in program.as_text()


CASES = {
    'dense': ((2, 9, 8, 3), (3, 3, 3, 5), Geometry(padding=(1, 1))),
    'strided': ((2, 9, 8, 3), (3, 3, 3, 5), Geometry(stride=(2, 2), padding=(1, 1))),
    'pointwise': ((2, 9, 8, 3), (1, 1, 3, 5), Geometry(stride=(2, 2))),
    'grouped': ((2, 9, 8, 8), (3, 3, 2, 12), Geometry((2, 1), (1, 1), (1, 2), 4)),
    'depthwise': ((2, 9, 8, 8), (3, 3, 1, 8), Geometry((2, 2), (1, 1), (1, 1), 8)),
}


def _gradients(conv):
    return jax.grad(lambda x, kernel: (conv(x, kernel) ** 3).sum(), (0, 1))


def _over_two_devices(function, in_specs, out_specs):
    mesh = jax.make_mesh((2,), ('batch',), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs))


TRANSFORMATIONS = {
    'forward mode': lambda conv, x, k: jax.jvp(conv, (x, k), (jnp.sin(x), jnp.sin(k))),
    'forward over reverse': lambda conv, x, k: jax.jvp(_gradients(conv), (x, k), (jnp.sin(x), jnp.sin(k))),
    'reverse over reverse': lambda conv, x, k: _gradients(
        lambda x, k: jnp.hstack([g.ravel() for g in _gradients(conv)(x, k)])
    )(x, k),
    'gradients of each image': lambda conv, x, k: jax.vmap(_gradients(conv), (0, None))(x[:, None], k),
    'several kernels': lambda conv, x, k: _gradients(jax.vmap(conv, (None, 0)))(x, jnp.stack([k, 2 * k])),
    'remat': lambda conv, x, k: _gradients(jax.checkpoint(conv))(x, k),
    'shard_map, gradient of the kernel': lambda conv, x, k: _over_two_devices(
        lambda x, k: _gradients(conv)(x, k)[1], (P('batch'), P()), P()
    )(x, k),
    'shard_map, gradient of the image': lambda conv, x, k: _over_two_devices(
        lambda x, k: _gradients(conv)(x, k)[0], (P('batch'), P()), P('batch')
    )(x, k),
}


@pytest.mark.parametrize('transformation', TRANSFORMATIONS)
@pytest.mark.parametrize('case', CASES)
def test_every_transformation_of_jax(case, transformation):
    x_shape, kernel_shape, geometry = CASES[case]
    x, kernel = arrays(x_shape, kernel_shape)
    transform = TRANSFORMATIONS[transformation]
    ours, theirs = partial(conv2d, geometry=geometry), partial(native_conv, geometry=geometry)
    assert_equal(*(jit(partial(transform, conv))(x, kernel) for conv in (ours, theirs)))


@pytest.mark.parametrize('case', CASES)
def test_explicit_sharding(case):
    x_shape, kernel_shape, geometry = CASES[case]
    x, kernel = arrays(x_shape, kernel_shape)
    mesh = jax.make_mesh((2,), ('batch',), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        x, kernel = jax.reshard(x, P('batch')), jax.reshard(kernel, P())
        convs = (partial(conv, geometry=geometry) for conv in (conv2d, native_conv))
        assert_equal(*(jit(_gradients(conv))(x, kernel) for conv in convs))


@pytest.mark.parametrize(
    ('fields', 'plain'),
    [
        ({'groups': 4}, 'feature_group_count = 4'),
        ({'groups': 8}, 'feature_group_count = 8'),
        ({'kernel_size': 1, 'padding': 0}, '[b, 0, 1, f]'),
    ],
)
def test_gpus_and_tpus_keep_the_native_convolution(fields, plain):
    """The slow lowering is replaced on the CPU, and only there: other platforms see one plain convolution."""
    layer = Conv2d(8, **{'kernel_size': 3, 'padding': 1, **fields})
    x = jnp.zeros((1, 8, 8, 8), jnp.float32)
    variables = layer.init(jax.random.key(0), x)
    exported = {
        platform: jax.export.export(jax.jit(layer.apply), platforms=[platform])(variables, x).mlir_module()
        for platform in ('cpu', 'cuda', 'tpu')
    }
    assert plain not in exported['cpu']
    for platform in ('cuda', 'tpu'):
        assert exported[platform].count('stablehlo.convolution') == 1
        assert plain in exported[platform]


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
        (Conv2d(8, 3, groups=2, space_to_depth=True), 'space_to_depth takes groups=1 and dilation=1'),
        (Conv2d(6, 3, groups=4), 'must divide .* the 6 output channels'),
        (Conv2d(8, 7, dilation=2, padding=2), r'x of shape \(1, 8, 8, 4\) is smaller than the kernel 7'),
        (Conv2d(8, (3, 3, 3)), r'kernel_size must be an int or a \(height, width\) pair'),
    ],
)
def test_wrong_arguments_are_named(layer, message):
    with pytest.raises(ValueError, match=message):
        layer.init(jax.random.key(0), jnp.zeros((1, 8, 8, 4)))
