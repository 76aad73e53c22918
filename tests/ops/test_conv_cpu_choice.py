"""Which lowering of the convolution the CPU gets, and what its program is made of."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxzoo.ops.conv import conv2d
from flaxzoo.ops.convolution import Convolution, choose
from flaxzoo.ops.cpu import conv as conv_cpu
from flaxzoo.ops.cpu.conv import plain_winograd_conv, pointwise_conv, tap_kernel_gradient
from flaxzoo.ops.cpu.dense import column_conv, row_conv, wide_conv
from flaxzoo.ops.cpu.groups import ROWS_A_SUM, depthwise_conv, depthwise_kernel_gradient
from flaxzoo.ops.gpu import conv as conv_gpu
from flaxzoo.ops.native import Geometry, native_conv, native_input_gradient, native_kernel_gradient
from tests.compiling import jit
from tests.ops.convolutions import arrays, relative

pytestmark = pytest.mark.usefixtures('x64')


FLOAT32 = {
    'pointwise': ((2, 11, 9, 3), (1, 1, 3, 4), Geometry()),
    'pointwise, strided': ((2, 11, 9, 3), (1, 1, 3, 4), Geometry(stride=(2, 2))),
    'winograd': ((2, 11, 8, 48), (3, 3, 48, 50), Geometry(padding=(1, 1))),
    'winograd, unpadded': ((2, 11, 8, 48), (3, 3, 48, 50), Geometry(padding=(0, 2))),
    'winograd, too much padding for the gradient': ((2, 5, 8, 48), (3, 3, 48, 50), Geometry(padding=(3, 4))),
    'winograd, row': ((2, 11, 8, 48), (1, 3, 48, 50), Geometry(padding=(0, 1))),
    'winograd, column': ((2, 11, 8, 48), (3, 1, 48, 50), Geometry(padding=(1, 0))),
    'winograd, long row': ((2, 11, 8, 48), (1, 7, 48, 50), Geometry(padding=(0, 3))),
    'winograd, long column': ((2, 11, 8, 48), (7, 1, 48, 50), Geometry(padding=(3, 1))),
    'many channels, strided': ((2, 11, 8, 96), (3, 3, 96, 97), Geometry(stride=(2, 2), padding=(1, 1))),
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
def test_the_chosen_lowering_in_float32(measured, case):
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


def table_row(table, case: str, images: int = 1000):
    """What a table has for such a convolution of many images."""
    x, kernel, geometry = FLOAT32[case]
    return choose(table, Convolution((images, *x[1:]), kernel, jnp.dtype(jnp.float32), geometry)).compute


CHOSEN = {
    'pointwise': pointwise_conv,
    'winograd': conv_cpu.unrolled_conv,
    'winograd, row': conv_cpu.unrolled_conv,
    'winograd, long row': conv_cpu.winograd_row_conv,
    'winograd, long column': conv_cpu.winograd_column_conv,
    'many channels, strided': row_conv,
    'wide': wide_conv,
    'row': row_conv,
    'column': column_conv,
    'thin': row_conv,
    'thin, stride 1': native_conv,
    'large stem': row_conv,
    'strided': row_conv,
    'strided and dilated': row_conv,
    'depthwise': depthwise_conv,
    'grouped': conv_cpu.paired_inference,
    'grouped, strided': conv_cpu.paired_inference,
    'grouped, dilated': conv_cpu.wide_inference,
    'very many groups': conv_cpu.wide_inference,  # whose pairs would be of so many channels that YNNPACK got them
    'wide groups': conv_cpu.wide_inference,
    'wide groups, strided': conv_cpu.row_inference,
}


@pytest.mark.parametrize('case', CHOSEN)
def test_the_lowering_is_the_one_that_was_measured_to_be_fast(measured, case):
    """All give the same numbers, so that no other test would see a slow one chosen."""
    assert table_row(conv_cpu.FORWARD, case) is CHOSEN[case]


def test_winograds_points_are_one_array_where_gradients_are_computed_too(measured):
    """There are three times as many convolutions to compile there."""
    assert table_row(conv_cpu.DIFFERENTIATED, 'winograd') is plain_winograd_conv


CHOSEN_GRADIENTS = {
    'pointwise': tap_kernel_gradient,
    'winograd': conv_cpu.plain_winograd_gradient,
    'winograd, column': conv_cpu.plain_winograd_gradient,
    'strided': tap_kernel_gradient,
    'many channels, strided': tap_kernel_gradient,
    'wide': native_kernel_gradient,  # over so small an image
    'depthwise': depthwise_kernel_gradient,
}


@pytest.mark.parametrize('case', CHOSEN_GRADIENTS)
def test_the_kernel_gradient_is_the_one_of_the_table(measured, case):
    assert table_row(conv_cpu.KERNEL_GRADIENT, case) is CHOSEN_GRADIENTS[case]


@pytest.mark.parametrize(
    ('case', 'gradient'),
    [
        ('pointwise, strided', conv_cpu.by_phases),
        ('winograd', conv_cpu.by_phases),
        ('strided', native_input_gradient),
        ('strided and dilated', native_input_gradient),
        ('depthwise', conv_cpu.by_phases),
    ],
)
def test_the_input_gradient_is_the_one_of_the_table(measured, case, gradient):
    assert table_row(conv_cpu.INPUT_GRADIENT, case) is gradient


@pytest.mark.parametrize('case', ['winograd', 'wide', 'row', 'column', 'thin', 'strided', 'large stem'])
def test_small_convolutions_are_xlas_own(case):
    """Compiling another one would take longer than it saves in hundreds of calls."""
    assert table_row(conv_cpu.FORWARD, case, 1) is native_conv
    assert table_row(conv_cpu.KERNEL_GRADIENT, case, 1) is native_kernel_gradient
    assert table_row(conv_cpu.INPUT_GRADIENT, case, 1) is native_input_gradient


def test_small_grouped_convolutions_are_one_dense_convolution():
    """XLA's own gradients are hundreds of times slower."""
    for table in (conv_cpu.FORWARD, conv_cpu.DIFFERENTIATED):
        assert table_row(table, 'grouped', 1) is conv_cpu.dense_block_conv
    program = str(kernel_gradient_jaxpr('grouped'))
    assert program.count(' conv_general_dilated[') == 1
    assert 'feature_group_count=1\n' in program


def test_an_input_gradient_that_ends_xla_is_computed_by_phases():
    """As small as it may be: XLA would not raise, but end the process."""
    geometry = Geometry((2, 2), (1, 1))
    c = Convolution((1, 3, 4, 1), (3, 2, 1, 1), jnp.dtype(jnp.float32), geometry)
    assert choose(conv_cpu.INPUT_GRADIENT, c).compute is conv_cpu.by_phases


UNLIKELY = ((2, 11, 9, 8), (3, 3, 1, 8), Geometry((2, 2), (1, 1), (2, 2), 8))  # depthwise, strided and dilated


TABLES = {
    'cpu, forward': conv_cpu.FORWARD,
    'cpu, differentiated': conv_cpu.DIFFERENTIATED,
    'cpu, input gradient': conv_cpu.INPUT_GRADIENT,
    'cpu, kernel gradient': conv_cpu.KERNEL_GRADIENT,
    'gpu, forward': conv_gpu.FORWARD,
    'gpu, input gradient': conv_gpu.INPUT_GRADIENT,
    'gpu, kernel gradient': conv_gpu.KERNEL_GRADIENT,
}


@pytest.mark.parametrize('table', TABLES.values(), ids=TABLES)
def test_every_row_of_a_table_is_reached(monkeypatch, table):
    """By one of the cases, in some dtype and size: a row behind a more general one would never be."""
    shapes = [(x, k, g) for x, k, g in FLOAT32.values()]
    shapes += [((*x[:1], 40, 40, x[3]), k, g) for x, k, g in shapes] + [UNLIKELY]
    dtypes = [jnp.dtype(dtype) for dtype in ('float32', 'float64', 'bfloat16')]
    reached = []
    for small in (1, conv_cpu.SMALL):
        monkeypatch.setattr(conv_cpu, 'SMALL', small)
        reached += [choose(table, Convolution(x, k, dtype, g)) for x, k, g in shapes for dtype in dtypes]
    assert [row for row in table if row not in reached] == []


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
def test_a_convolution_and_its_kernel_gradient_read_the_same_kept_arrays(measured, case, count):
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
        ('winograd', {'dot_general': 2, 'conv_general_dilated': 0}),  # the products, and the taps of their points
        ('strided', {'dot_general': 9, 'conv_general_dilated': 0}),
        ('wide groups', {'pad': 2, 'conv_general_dilated': 2}),  # a widened image would be padded too
    ],
)
def test_what_the_kernel_gradient_is_made_of(measured, case, operations):
    program = str(kernel_gradient_jaxpr(case))
    assert {operation: program.count(f' {operation}[') for operation in operations} == operations


@pytest.mark.parametrize('case', ['depthwise', 'depthwise, stride 1'])
def test_a_depthwise_input_gradient_is_a_depthwise_convolution(case):
    """The transpose of the forward one would be padded products, whose sum LLVM computes one channel after another."""
    program = input_gradient_jaxpr(case)
    assert sum(eqn.primitive.name == 'mul' for eqn in program.eqns) == 9
    pads = [eqn for eqn in program.eqns if eqn.primitive.name == 'pad']
    assert len(pads) <= np.prod(FLOAT32[case][2].stride)  # one a phase


def test_an_input_gradient_in_float64_multiplies_no_inserted_zeros(measured):
    """XLA's own would, in plain loops."""
    x_shape, kernel_shape, geometry = FLOAT32['strided']
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float64) for shape in (x_shape, kernel_shape))
    cotangent = jax.eval_shape(partial(native_conv, geometry=geometry), x, kernel)
    program = jax.make_jaxpr(partial(conv_cpu.input_gradient, aval=x, geometry=geometry))(cotangent, kernel)
    found = [eqn.params for eqn in program.eqns if eqn.primitive.name == 'conv_general_dilated']
    assert found
    assert {factor for params in found for factor in params['lhs_dilation']} == {1}


def test_rows_are_joined_by_a_sum(measured):
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


def test_one_dimensional_convolutions_have_kernel_gradients_of_one_dimension(measured):
    """XLA's two-dimensional ones are slower."""
    for case in 'large stem', 'row', 'column':
        (found,) = [eqn for eqn in kernel_gradient_jaxpr(case).eqns if eqn.primitive.name == 'conv_general_dilated']
        assert found.invars[0].aval.ndim == 3


def test_a_depthwise_kernel_gradient_sums_few_rows_at_a_time():
    """LLVM computes only a short sum for many channels at once."""
    (found,) = [eqn for eqn in kernel_gradient_jaxpr('depthwise').eqns if eqn.primitive.name == 'reduce']
    (axis,) = found.params['dimensions']
    assert found.invars[0].aval.shape[axis] == ROWS_A_SUM


@pytest.mark.parametrize(
    'case', ['pointwise', 'wide', 'row', 'column', 'large stem', 'strided', 'grouped', 'depthwise']
)
def test_these_convolutions_of_float32_are_not_left_to_ynnpack(measured, case):
    """Which XLA would call for two-dimensional convolutions and matrix products, and which is slower."""
    x_shape, kernel_shape, geometry = FLOAT32[case]
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x_shape, kernel_shape)]
    program = jax.jit(partial(conv2d, geometry=geometry)).lower(*shapes).compile()
    assert 'ynn_fusion' not in program.as_text()
