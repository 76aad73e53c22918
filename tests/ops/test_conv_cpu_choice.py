"""Which lowering of the convolution the CPU gets, and what its program is made of."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxzoo.ops.conv import conv2d
from flaxzoo.ops.cpu import conv as conv_cpu
from flaxzoo.ops.cpu.conv import (
    depthwise_conv,
    merged_paired_conv,
    merged_row_conv,
    merged_wide_conv,
    phase_conv,
    plain_winograd_conv,
    pointwise_conv,
)
from flaxzoo.ops.cpu.dense import column_conv, row_conv, wide_conv
from flaxzoo.ops.native import Geometry, native_conv
from tests.compiling import jit
from tests.ops.convolutions import arrays, relative

pytestmark = pytest.mark.usefixtures('x64')


FLOAT32 = {
    'pointwise': ((2, 11, 9, 3), (1, 1, 3, 4), Geometry()),
    'pointwise, strided': ((2, 11, 9, 3), (1, 1, 3, 4), Geometry(stride=(2, 2))),
    'winograd': ((2, 11, 8, 48), (3, 3, 48, 50), Geometry(padding=(1, 1))),
    'winograd, unpadded': ((2, 11, 8, 48), (3, 3, 48, 50), Geometry(padding=(0, 2))),
    'winograd, too much padding for the gradient': ((2, 5, 8, 48), (3, 3, 48, 50), Geometry(padding=(3, 4))),
    'winograd, row': ((2, 11, 8, 48), (1, 7, 48, 50), Geometry(padding=(0, 3))),
    'winograd, column': ((2, 11, 8, 48), (3, 1, 48, 50), Geometry(padding=(1, 0))),
    'winograd, long column': ((2, 11, 8, 48), (7, 1, 48, 50), Geometry(padding=(3, 0))),
    'winograd, five taps': ((2, 11, 8, 48), (5, 5, 48, 50), Geometry(padding=(2, 2))),
    'winograd, strided': ((2, 11, 8, 96), (3, 3, 96, 97), Geometry(stride=(2, 2), padding=(1, 1))),
    'winograd, strided and unpadded': ((2, 12, 9, 96), (3, 3, 96, 97), Geometry(stride=(2, 2))),
    'wide': ((2, 11, 9, 20), (3, 3, 20, 20), Geometry(padding=(1, 1))),
    'wide, unpadded': ((2, 11, 9, 20), (5, 3, 20, 20), Geometry()),
    'wide, dilated': ((2, 11, 9, 20), (3, 3, 20, 20), Geometry(padding=(1, 1), dilation=(2, 2))),
    'row': ((2, 11, 19, 20), (1, 7, 20, 24), Geometry(padding=(0, 3))),
    'row, dilated': ((2, 11, 19, 20), (1, 5, 20, 24), Geometry((1, 1), (1, 2), (1, 2))),
    'column': ((2, 9, 11, 20), (7, 1, 20, 24), Geometry(padding=(3, 0))),
    'thin': ((2, 21, 19, 3), (3, 3, 3, 20), Geometry(stride=(2, 2), padding=(1, 1))),
    'thin, stride 1': ((2, 21, 19, 3), (3, 3, 3, 20), Geometry(padding=(1, 1))),
    'thin, dilated': ((2, 21, 19, 3), (5, 5, 3, 20), Geometry((2, 2), (3, 3), (2, 2))),
    'large stem': ((2, 21, 19, 3), (7, 7, 3, 20), Geometry(stride=(2, 2), padding=(3, 3))),
    'strided': ((2, 11, 9, 20), (3, 3, 20, 20), Geometry(stride=(2, 1), padding=(1, 1))),
    'strided and dilated': ((2, 11, 9, 20), (3, 3, 20, 20), Geometry((2, 2), (1, 1), (2, 2))),
    'depthwise': ((2, 11, 9, 8), (3, 3, 1, 8), Geometry(stride=(2, 2), padding=(1, 1), groups=8)),
    'depthwise, stride 1': ((2, 11, 9, 8), (3, 3, 1, 8), Geometry(padding=(1, 1), groups=8)),
    'grouped': ((2, 11, 9, 64), (3, 3, 4, 64), Geometry(padding=(1, 1), groups=16)),
    'grouped, strided': ((2, 11, 9, 64), (3, 3, 4, 64), Geometry((2, 2), (1, 1), groups=16)),
    'grouped, dilated': ((2, 11, 9, 64), (3, 3, 4, 64), Geometry((1, 1), (2, 2), (2, 2), groups=16)),
    'very many groups': ((1, 5, 6, 512), (3, 3, 8, 512), Geometry(padding=(1, 1), groups=64)),
    'wide groups': ((2, 11, 9, 64), (3, 3, 32, 64), Geometry(padding=(1, 1), groups=2)),
    'wide groups, strided': ((2, 11, 9, 64), (3, 3, 32, 64), Geometry((2, 2), (1, 1), groups=2)),
}


@pytest.mark.parametrize('case', FLOAT32)
def test_the_chosen_lowering_in_float32(case):
    """Much is chosen for float32 alone; the errors against float64 must be those of float32's rounding."""
    x_shape, kernel_shape, geometry = FLOAT32[case]
    x, kernel = arrays(x_shape, kernel_shape)

    @partial(jit, static_argnums=0)
    def value_and_gradients(conv, x, kernel):
        conv = partial(conv, geometry=geometry)
        value, pull = jax.vjp(conv, x, kernel)
        cotangent = jnp.cos(jnp.arange(value.size)).reshape(value.shape).astype(value.dtype)
        return conv(x, kernel), value, pull(cotangent)

    ours = value_and_gradients(conv2d, x.astype(jnp.float32), kernel.astype(jnp.float32))
    for a, b in zip(*map(jax.tree.leaves, (ours, value_and_gradients(native_conv, x, kernel))), strict=True):
        assert a.dtype == jnp.float32
        assert a.shape == b.shape
        assert relative(a, b) < 2e-6


CHOSEN = {
    'pointwise': pointwise_conv,
    'winograd': plain_winograd_conv,
    'winograd, row': plain_winograd_conv,
    'winograd, long column': plain_winograd_conv,
    'winograd, five taps': plain_winograd_conv,
    'winograd, strided': phase_conv,
    'wide': wide_conv,
    'row': row_conv,
    'column': column_conv,
    'thin': row_conv,
    'thin, stride 1': row_conv,
    'large stem': row_conv,
    'strided': row_conv,
    'strided and dilated': row_conv,
    'depthwise': depthwise_conv,
    'depthwise, stride 1': depthwise_conv,
    'grouped': merged_paired_conv,
    'grouped, strided': merged_paired_conv,
    'grouped, dilated': merged_wide_conv,
    'very many groups': merged_wide_conv,  # whose pairs would be of so many channels that YNNPACK got them
    'wide groups': merged_wide_conv,
    'wide groups, strided': merged_row_conv,
}


@pytest.mark.parametrize('case', CHOSEN)
def test_the_lowering_is_the_one_that_was_measured_to_be_fast(case):
    """All give the same numbers, so that no other test would see a slow one chosen."""
    _, kernel_shape, geometry = FLOAT32[case]
    assert conv_cpu._forward(jax.ShapeDtypeStruct(kernel_shape, jnp.float32), geometry) is CHOSEN[case]


def test_a_convolution_is_computed_differently_when_it_is_differentiated():
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in FLOAT32['grouped'][:2])
    conv = partial(conv2d, geometry=FLOAT32['grouped'][2])
    forward = jax.make_jaxpr(lambda x, kernel: jax.vjp(conv, x, kernel)[0])(x, kernel)
    assert [eqn.primitive.name for eqn in forward.eqns] == ['differentiated_conv2d']
    assert [eqn.primitive.name for eqn in jax.make_jaxpr(conv)(x, kernel).eqns] == ['conv2d']


def arrays_of(case: str) -> list[jax.ShapeDtypeStruct]:
    """x, kernel and cotangent."""
    *shapes, geometry = FLOAT32[case]
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    return [x, kernel, jax.eval_shape(partial(native_conv, geometry=geometry), x, kernel)]


def input_gradient_jaxpr(case: str):
    x, kernel, cotangent = arrays_of(case)
    return jax.make_jaxpr(partial(conv_cpu.input_gradient, aval=x, geometry=FLOAT32[case][2]))(cotangent, kernel)


def kernel_gradient_jaxpr(case: str):
    x, kernel, cotangent = arrays_of(case)
    return jax.make_jaxpr(partial(conv_cpu.kernel_gradient, aval=kernel, geometry=FLOAT32[case][2]))(x, cotangent)


@pytest.mark.parametrize(('case', 'count'), [('thin', 2), ('large stem', 2), ('grouped', 4), ('wide groups', 2)])
def test_a_convolution_and_its_kernel_gradient_read_the_same_kept_arrays(case, count):
    """The padded image, joined rows, cut pieces: the gradient transposes them, and would compute each element anew."""
    x, kernel, cotangent = arrays_of(case)

    def step(x, kernel, cotangent):
        y, pull = jax.vjp(lambda kernel: conv2d(jnp.sin(x), kernel, FLOAT32[case][2]), kernel)
        return y, pull(cotangent)

    assert jax.jit(step).lower(x, kernel, cotangent).compile().as_text().count(' divide(') == count


@pytest.mark.parametrize(
    ('case', 'operations'),
    [
        ('depthwise', {'reduce': 1, 'dot_general': 0, 'conv_general_dilated': 0}),  # all taps at once
        ('large stem', {'dot_general': 0, 'conv_general_dilated': 1}),
        ('thin, stride 1', {'dot_general': 0, 'conv_general_dilated': 1}),
        ('row', {'dot_general': 0, 'conv_general_dilated': 1}),
        ('column', {'dot_general': 0, 'conv_general_dilated': 1}),
        ('winograd', {'dot_general': 16, 'conv_general_dilated': 0}),
        ('winograd, column', {'dot_general': 4, 'conv_general_dilated': 0}),
        ('winograd, five taps', {'dot_general': 49, 'conv_general_dilated': 0}),
        ('winograd, strided', {'dot_general': 16, 'conv_general_dilated': 0}),  # 9, 3, 3 and 1 of the phases
        ('winograd, long column', {'dot_general': 0, 'conv_general_dilated': 1}),
        ('wide groups', {'pad': 2, 'conv_general_dilated': 2}),  # a widened image would be padded too
    ],
)
def test_the_kernel_gradient_is_the_one_that_was_measured_to_be_fast(case, operations):
    program = str(kernel_gradient_jaxpr(case))
    assert {operation: program.count(f' {operation}[') for operation in operations} == operations


@pytest.mark.parametrize('case', ['depthwise', 'depthwise, stride 1'])
def test_a_depthwise_input_gradient_is_a_depthwise_convolution(case):
    """The transpose of the forward one would be padded products, whose sum LLVM computes one channel after another."""
    program = input_gradient_jaxpr(case)
    assert sum(eqn.primitive.name == 'mul' for eqn in program.eqns) == 9
    pads = [eqn for eqn in program.eqns if eqn.primitive.name == 'pad']
    assert len(pads) <= np.prod(FLOAT32[case][2].stride)  # one a phase


@pytest.mark.parametrize('case', ['strided', 'thin', 'large stem'])
def test_an_input_gradient_multiplies_no_inserted_zeros(case):
    program = input_gradient_jaxpr(case)
    found = [eqn.params for eqn in program.eqns if eqn.primitive.name == 'conv_general_dilated']
    assert found
    assert {factor for params in found for factor in params['lhs_dilation']} == {1}


def test_rows_are_joined_by_a_sum():
    """XLA and LLVM make slow code of their concatenation."""
    x_shape, kernel_shape, geometry = FLOAT32['large stem']
    arrays = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x_shape, kernel_shape))
    program = str(jax.make_jaxpr(partial(conv_cpu.conv, geometry=geometry))(*arrays))
    assert 'concatenate' not in program


def test_padded_pixels_of_a_depthwise_convolution_are_kept():
    """Of what is not kept XLA makes one array with the padding and one without."""
    x_shape, kernel_shape, geometry = FLOAT32['depthwise']
    arrays = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x_shape, kernel_shape))
    assert str(jax.make_jaxpr(partial(conv_cpu.conv, geometry=geometry))(*arrays)).count('= kept ') == 1


def test_one_dimensional_convolutions_have_kernel_gradients_of_one_dimension():
    """XLA's two-dimensional ones are slower."""
    for case in 'large stem', 'row', 'column':
        (found,) = [eqn for eqn in kernel_gradient_jaxpr(case).eqns if eqn.primitive.name == 'conv_general_dilated']
        assert found.invars[0].aval.ndim == 3


def test_a_depthwise_kernel_gradient_sums_few_rows_at_a_time():
    """LLVM computes only a short sum for many channels at once."""
    (found,) = [eqn for eqn in kernel_gradient_jaxpr('depthwise').eqns if eqn.primitive.name == 'reduce']
    (axis,) = found.params['dimensions']
    assert found.invars[0].aval.shape[axis] == conv_cpu.ROWS_A_SUM


@pytest.mark.parametrize('case', FLOAT32)
def test_no_forward_convolution_of_float32_is_left_to_ynnpack(case):
    """Which XLA would call for two-dimensional convolutions and matrix products, and which is slower."""
    x_shape, kernel_shape, geometry = FLOAT32[case]
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x_shape, kernel_shape)]
    program = jax.jit(partial(conv2d, geometry=geometry)).lower(*shapes).compile()
    assert 'ynn_fusion' not in program.as_text()
