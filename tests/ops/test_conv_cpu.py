"""Every lowering of the convolution for the CPU against XLA's own."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flaxzoo.ops.conv import conv2d
from flaxzoo.ops.cpu import conv as conv_cpu
from flaxzoo.ops.cpu.conv import by_phases, pointwise_conv, tap_kernel_gradient
from flaxzoo.ops.cpu.dense import column_conv, paired_conv, row_conv, wide_conv, wider_conv
from flaxzoo.ops.cpu.groups import depthwise_conv, depthwise_kernel_gradient, merged_conv
from flaxzoo.ops.cpu.products import product, transposed_product
from flaxzoo.ops.cpu.winograd import unrolled_winograd_conv, winograd_conv, winograd_kernel_gradient
from flaxzoo.ops.native import Geometry, native_conv, native_input_gradient, native_kernel_gradient
from tests.compiling import jit
from tests.ops.convolutions import arrays, assert_equal, assert_equal_with_gradients, convolutions, relative

pytestmark = pytest.mark.usefixtures('x64')


@settings(max_examples=12, deadline=None)
@given(convolutions(), st.sampled_from([1, 3, 6, 16]))
def test_merged_conv(case, channels):
    assert_equal_with_gradients(partial(merged_conv, geometry=case[2], channels=channels), *case)


@settings(max_examples=12, deadline=None)
@given(st.one_of(convolutions(dilation=(1, 1)), convolutions(dilation=(2, 1))), st.sampled_from([1, 3, 6, 16]))
def test_merged_conv_of_paired_columns(case, channels):
    _, (_, width, *_), geometry = case
    assume(geometry.padding[1] < width + geometry.stride[1] - 1)  # or XLA ends the process, as for `convolutions`
    merged = partial(merged_conv, channels=channels, block=paired_conv)
    assert_equal_with_gradients(partial(merged, geometry=case[2]), *case)


@settings(max_examples=12, deadline=None)
@given(convolutions(stride=(1, 1)), st.sampled_from([1, 3, 6, 16]))
def test_merged_conv_of_wider_images(case, channels):
    merged = partial(merged_conv, channels=channels, block=wider_conv)
    assert_equal_with_gradients(partial(merged, geometry=case[2]), *case)


def test_the_number_of_merged_blocks_is_bounded():
    """Each is a convolution to compile; a wide network must not have thousands."""
    x, kernel = jax.ShapeDtypeStruct((8, 7, 7, 2048), 'float32'), jax.ShapeDtypeStruct((3, 3, 32, 2048), 'float32')
    for lowering, blocks in (conv_cpu.differentiated_conv, 16), (conv_cpu.conv, 32):
        jaxpr = jax.make_jaxpr(partial(lowering, geometry=Geometry(padding=(1, 1), groups=64)))(x, kernel)
        assert str(jaxpr).count('conv_general_dilated[') == blocks


@pytest.mark.parametrize('channels', [128, 256, 512, 1024])
def test_a_differentiated_grouped_convolution_and_its_gradients_have_the_same_blocks(channels):
    """So that the pieces of what two of them read are cut out once."""
    x = jax.ShapeDtypeStruct((32, 7, 7, channels), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, channels // 32, channels), jnp.float32)
    geometry = Geometry(padding=(1, 1), groups=32)
    programs = [
        jax.make_jaxpr(partial(conv_cpu.differentiated_conv, geometry=geometry))(x, kernel),
        jax.make_jaxpr(partial(conv_cpu.input_gradient, aval=x, geometry=geometry))(x, kernel),
        jax.make_jaxpr(partial(conv_cpu.kernel_gradient, aval=kernel, geometry=geometry))(x, x),
    ]
    assert len({str(program).count('conv_general_dilated[') for program in programs}) == 1


@settings(max_examples=12, deadline=None)
@given(convolutions(outputs_a_group=1))
def test_depthwise_conv(case):
    (*image, channels), (*taps, _, _), geometry = case
    geometry = geometry._replace(groups=channels)
    lowering = partial(depthwise_conv, geometry=geometry)
    assert_equal_with_gradients(lowering, (*image, channels), (*taps, 1, channels), geometry)


@settings(max_examples=12, deadline=None)
@given(convolutions(outputs_a_group=1))
def test_depthwise_kernel_gradient(case):
    (*image, channels), (*kernel, _, _), geometry = case
    geometry = geometry._replace(groups=channels)
    x, kernel = arrays((*image, channels), (*kernel, 1, channels))

    @jit
    def both(x, kernel):
        value, pull = jax.vjp(lambda kernel: native_conv(x, kernel, geometry=geometry), kernel)
        return depthwise_kernel_gradient(x, value, aval=jax.typeof(kernel), geometry=geometry), *pull(value)

    assert_equal(*both(x, kernel))


def test_depthwise_kernel_gradient_in_half_precision_is_summed_in_single():
    x, cotangent = (a.astype(jnp.bfloat16) for a in arrays((2, 64, 200, 8), (2, 64, 200, 8)))
    geometry, aval = Geometry(padding=(1, 1), groups=8), jax.ShapeDtypeStruct((3, 3, 1, 8), jnp.bfloat16)
    ours = depthwise_kernel_gradient(x, cotangent, aval=aval, geometry=geometry)
    wide = jax.ShapeDtypeStruct(aval.shape, jnp.float64)
    exact = native_kernel_gradient(*(a.astype(wide.dtype) for a in (x, cotangent)), aval=wide, geometry=geometry)
    assert ours.dtype == jnp.bfloat16
    assert relative(ours.astype(jnp.float32), exact) < 4e-3


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
@given(convolutions(groups=1))
def test_column_conv(case):
    assert_equal_with_gradients(partial(column_conv, geometry=case[2]), *case)


@pytest.mark.parametrize('lowering', [winograd_conv, unrolled_winograd_conv])
@pytest.mark.parametrize('taps', [(3, 3), (3, 1), (1, 3)])
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_winograd_conv(taps, lowering, data):
    case = data.draw(convolutions(groups=1, kernel=taps, stride=(1, 1), dilation=(1, 1)))
    assert_equal_with_gradients(partial(lowering, padding=case[2].padding), *case)


@pytest.mark.parametrize('flipped', [False, True])
@pytest.mark.parametrize('taps', [(1, 7), (7, 1)])
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_winograd_of_seven_taps(taps, flipped, data):
    *shapes, geometry = data.draw(convolutions(groups=1, kernel=taps, stride=(1, 1), dilation=(1, 1)))
    x, kernel = arrays(*shapes)
    lowering = conv_cpu.winograd_row_conv if taps == (1, 7) else conv_cpu.winograd_column_conv
    given_kernel = kernel[::-1, ::-1].swapaxes(2, 3) if flipped else kernel
    ours = jit(partial(lowering, geometry=geometry, flipped=flipped))(x, given_kernel)
    assert_equal(ours, jit(partial(native_conv, geometry=geometry))(x, kernel))


@pytest.mark.parametrize('taps', [(3, 3), (3, 1), (1, 3)])
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_winograd_gradients(taps, data):
    x_shape, kernel_shape, geometry = data.draw(convolutions(groups=1, kernel=taps, stride=(1, 1), dilation=(1, 1)))
    assume(all(p < n for p, n in zip(geometry.padding, taps, strict=True)))
    y_shape = jax.eval_shape(partial(native_conv, geometry=geometry), *arrays(x_shape, kernel_shape)).shape
    x, kernel, cotangent = arrays(x_shape, kernel_shape, y_shape)
    ours = winograd_kernel_gradient(x, cotangent, geometry.padding, taps)
    assert_equal(ours, native_kernel_gradient(x, cotangent, aval=jax.typeof(kernel), geometry=geometry))
    # The gradient of x is the convolution with the flipped kernel, whose channels change places.
    padding = tuple(n - 1 - p for p, n in zip(geometry.padding, taps, strict=True))
    ours = winograd_conv(cotangent, kernel, padding, flipped=True)
    assert_equal(ours, native_input_gradient(cotangent, kernel, aval=jax.typeof(x), geometry=geometry))


@pytest.mark.parametrize(('taps', 'pixels', 'points'), [((3, 3), 9 * 9, 16), ((1, 3), 17 * 9, 4), ((3, 1), 9 * 17, 4)])
def test_winograds_products_are_few_and_one_operation(taps, pixels, points):
    """Of 16 points for four pixels, where the plain sum takes 36; LLVM would take long for an operation each."""
    x, kernel = jax.ShapeDtypeStruct((1, 17, 17, 5), 'float32'), jax.ShapeDtypeStruct((*taps, 5, 7), 'float32')
    lowering = partial(winograd_conv, padding=tuple(n // 2 for n in taps))
    products = [e for e in jax.make_jaxpr(lowering)(x, kernel).eqns if e.primitive.name == 'dot_general']
    assert [e.outvars[0].aval.shape for e in products] == [(points, 35), (points, pixels, 7)]


@settings(max_examples=30, deadline=None)
@given(
    st.one_of(
        convolutions(groups=1, dilation=(1, 1)),
        convolutions(groups=1, stride=(1, 1)),
        convolutions(outputs_a_group=1, dilation=(1, 1)),
        convolutions(outputs_a_group=1, stride=(1, 1)),
    )
)
def test_phase_input_gradient(case):
    x_shape, kernel_shape, geometry = case
    if geometry.groups > 1:  # only dense and depthwise ones are written so
        geometry, kernel_shape = geometry._replace(groups=x_shape[3]), (*kernel_shape[:2], 1, x_shape[3])
    y_shape = jax.eval_shape(partial(native_conv, geometry=geometry), *arrays(x_shape, kernel_shape)).shape
    x, kernel, cotangent = arrays(x_shape, kernel_shape, y_shape)
    both = [
        jit(partial(gradient, aval=jax.typeof(x), geometry=geometry))(cotangent, kernel)
        for gradient in (by_phases, native_input_gradient)
    ]
    assert_equal(*both)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('images', [2, 3])
@pytest.mark.parametrize('pixels', [2, 40])
def test_product(pixels, images, dtype):
    """With more weights than pixels, and with fewer."""
    x, matrix = (a.astype(dtype) for a in arrays((images, pixels, 3, 5), (5, 7)))
    for y in (product(x, matrix), product(x, matrix.T, transpose=True)):
        assert y.dtype == dtype
        assert relative(y, x @ matrix) < (1e-14 if dtype == 'float64' else 1e-6)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('images', [2, 3])
@pytest.mark.parametrize('channels', [(5, 7), (7, 5), (40, 2), (2, 40)])
def test_transposed_product(channels, images, dtype):
    x, y = (a.astype(dtype) for a in arrays(*((images, 3, 5, c) for c in channels)))
    total = transposed_product(x, y)
    assert total.dtype == dtype
    assert relative(total, x.reshape(-1, channels[0]).T @ y.reshape(-1, channels[1])) < (
        1e-14 if dtype == 'float64' else 1e-6
    )


def test_a_transposed_product_transposes_the_narrower_factor():
    """XLA would make one product of the transpose of a product, and take the wider factor for the first."""
    shapes = [jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32) for channels in (64, 8)]
    program = jax.jit(transposed_product).lower(*shapes).compile().as_text()
    assert re.search(r'f32\[8,64\]\S* dot\(', program)


@settings(max_examples=20, deadline=None)
@given(convolutions(groups=1))
def test_tap_kernel_gradient(case):
    x_shape, kernel_shape, geometry = case
    x, kernel = arrays(x_shape, kernel_shape)

    @jit
    def both(x, kernel):
        value, pull = jax.vjp(lambda kernel: native_conv(x, kernel, geometry=geometry), kernel)
        return tap_kernel_gradient(x, value, aval=jax.typeof(kernel), geometry=geometry), *pull(value)

    assert_equal(*both(x, kernel))


@pytest.mark.parametrize('small', [True, False])
@settings(max_examples=20, deadline=None)
@given(case=st.one_of(convolutions(), convolutions(groups=1), convolutions(groups=1, kernel=(1, 1), padding=(0, 0))))
def test_the_chosen_lowering(request, small, case):
    """Of small convolutions XLA's own for the most part, so of the same as if they were large ones too."""
    if not small:
        request.getfixturevalue('measured')
    assert_equal_with_gradients(partial(conv2d, geometry=case[2]), *case)


def test_the_chosen_lowering_over_a_large_image(measured):
    """Where kernel gradients are products a tap."""
    geometry = Geometry(stride=(2, 1), padding=(1, 1))
    assert_equal_with_gradients(partial(conv2d, geometry=geometry), (2, 31, 17, 3), (3, 3, 3, 4), geometry)
