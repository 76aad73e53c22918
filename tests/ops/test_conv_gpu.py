"""The lowering of thin convolutions for GPUs against XLA's own, and where GPUs take it."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings

from flaxzoo.ops.conv import conv2d
from flaxzoo.ops.gpu.conv import pointwise_input_gradient, thin_conv
from flaxzoo.ops.native import Geometry, native_input_gradient
from tests.compiling import jit
from tests.ops.convolutions import arrays, assert_equal, assert_equal_with_gradients, convolutions


@settings(max_examples=15, deadline=None)
@given(convolutions(groups=1, dilation=(1, 1)))
def test_thin_conv(case):
    with jax.enable_x64(True):
        assert_equal_with_gradients(partial(thin_conv, geometry=case[2]), *case)


@settings(max_examples=15, deadline=None)
@given(convolutions(groups=1, kernel=(1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1)))
def test_pointwise_input_gradient(case):
    x_shape, kernel_shape, geometry = case
    with jax.enable_x64(True):
        x, kernel, cotangent = arrays(x_shape, kernel_shape, (*x_shape[:3], kernel_shape[3]))
        both = [
            jit(partial(gradient, aval=jax.typeof(x), geometry=geometry))(cotangent, kernel)
            for gradient in (pointwise_input_gradient, native_input_gradient)
        ]
        assert_equal(*both)


STEMS = {
    'ResNet': ((2, 32, 32, 3), (7, 7, 3, 64), Geometry((2, 2), (3, 3)), 'tensor<2x19x19x16xbf16>'),
    'Inception v3': ((2, 35, 35, 3), (3, 3, 3, 32), Geometry((2, 2)), 'tensor<2x18x18x16xbf16>'),
    'VGG': ((2, 32, 32, 3), (3, 3, 3, 64), Geometry(padding=(1, 1)), 'tensor<2x32x32x8xbf16>'),
}


def lowered(platform, dtype, x_shape, kernel_shape, geometry, of='kernel'):
    """The program of such a convolution and the gradient of its kernel or its input."""

    def with_gradient(x, kernel):
        value, pull = jax.vjp(lambda *arrays: conv2d(*arrays, geometry), x, kernel)
        return value, pull(value)[of == 'kernel']

    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in (x_shape, kernel_shape)]
    return jax.export.export(jax.jit(with_gradient), platforms=[platform])(*shapes).mlir_module()


@pytest.mark.parametrize('stem', STEMS)
def test_gpus_compute_the_first_convolution_over_a_multiple_of_eight_channels(stem):
    *case, image = STEMS[stem]
    convolutions = [line for line in lowered('cuda', jnp.bfloat16, *case).splitlines() if '.convolution(' in line]
    assert len(convolutions) == 2
    assert all(image in line for line in convolutions)
    assert image not in lowered('tpu', jnp.bfloat16, *case)


@pytest.mark.parametrize(('platform', 'dtype'), [('cuda', jnp.float32), ('tpu', jnp.bfloat16)])
def test_elsewhere_the_first_convolution_is_the_plain_one(platform, dtype):
    program = lowered(platform, dtype, *STEMS['ResNet'][:3])
    assert 'x32x32x3x' in next(line for line in program.splitlines() if '.convolution(' in line)


OTHERS = {
    'wide': ((2, 32, 32, 8), (3, 3, 8, 64), Geometry((2, 2), (1, 1))),
    'grouped': ((2, 32, 32, 64), (3, 3, 4, 64), Geometry(padding=(1, 1), groups=16)),
}


@pytest.mark.parametrize('case', OTHERS)
def test_on_gpus_other_convolutions_are_the_plain_ones(case):
    (_, _, _, channels), _, _ = OTHERS[case]
    program = lowered('cuda', jnp.bfloat16, *OTHERS[case])
    convolutions = [line for line in program.splitlines() if '.convolution(' in line]
    assert len(convolutions) == 2
    assert all(f'x32x32x{channels}xbf16' in line for line in convolutions)


@pytest.mark.parametrize(
    ('platform', 'dtype', 'kernel', 'stride', 'product'),
    [
        ('cuda', jnp.bfloat16, 1, 1, True),
        ('cuda', jnp.bfloat16, 1, 2, False),
        ('cuda', jnp.bfloat16, 3, 1, False),
        ('cuda', jnp.float32, 1, 1, False),
        ('tpu', jnp.bfloat16, 1, 1, False),
    ],
)
def test_gpus_take_pointwise_input_gradients_for_products(platform, dtype, kernel, stride, product):
    case = (2, 8, 8, 16), (kernel, kernel, 16, 32), Geometry((stride, stride))
    program = lowered(platform, dtype, *case, of='input')
    assert ('.dot_general' in program) == product
    assert program.count('.convolution(') == 2 - product
