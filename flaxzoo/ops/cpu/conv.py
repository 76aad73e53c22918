"""The lowerings of the convolution and its gradients for the CPU; the tables here alone choose between them. There XLA

- gives two-dimensional convolutions and matrix products to YNNPACK, which is slower at most shapes of these
  networks, up to seven times, than the Eigen that XLA falls back to where YNNPACK cannot do a thing,
- computes the input gradient of a strided convolution by multiplying inserted zeros, in float64 in plain loops,
- lowers the kernel gradient of a grouped convolution to a dense convolution that multiplies zeros,
- is slow at kernel gradients over large images.

Small convolutions are XLA's own nevertheless: what the others take longer to compile they would not save in hundreds of
calls. `python -m benchmarks.levers` and `python -m benchmarks.grouped_conv` print what the choices are worth.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from flaxzoo.ops.convolution import Convolution, Lowering, always, choose
from flaxzoo.ops.cpu.dense import column_conv, paired_conv, row_conv, wide_conv, wider_conv
from flaxzoo.ops.cpu.groups import (
    MAX_BLOCKS,
    MERGED_CHANNELS,
    depthwise_conv,
    depthwise_kernel_gradient,
    flipped_depthwise_conv,
    groups_a_block,
    merged_conv,
)
from flaxzoo.ops.cpu.phases import phase_input_gradient
from flaxzoo.ops.cpu.products import product, transposed_product
from flaxzoo.ops.cpu.winograd import (
    IMAGE,
    long_row_conv,
    unrolled_winograd_conv,
    winograd_conv,
    winograd_kernel_gradient,
)
from flaxzoo.ops.native import (
    Geometry,
    input_gradient_of,
    kernel_gradient_of,
    native_conv,
    native_input_gradient,
    native_kernel_gradient,
)
from flaxzoo.ops.taps import taps_of

# Multiply-adds of the whole batch below which a convolution is left to XLA.
SMALL = 100_000_000

# Channels of a merged block where two columns are computed at once, and the most blocks in inference. With as many in
# training, a step of ResNeXt-50 would take twice as long to compile, and as long to run.
PAIRED_CHANNELS = 8
MAX_INFERENCE_BLOCKS = 32

# Channels of a dense block from which XLA would give it to YNNPACK, which computes such small convolutions on one core.
YNNPACK_CHANNELS = 32

# Ratios C * O / (C + O) from which Winograd's algorithm is faster (`python -m benchmarks.levers '*winograd*'`): that of
# 48 -> 48 channels, and for the kernel gradient, whose alternatives are slower, that of 32 -> 32.
WINOGRAD_CHANNELS = 24
WINOGRAD_GRADIENT_CHANNELS = 16


def conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """The convolution for the CPU."""
    return choose(FORWARD, Convolution.of(x, kernel, geometry)).compute(x, kernel, geometry=geometry)


def differentiated_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """The convolution for the CPU where its gradients are computed too."""
    return choose(DIFFERENTIATED, Convolution.of(x, kernel, geometry)).compute(x, kernel, geometry=geometry)


def input_gradient(
    cotangent: jax.Array, kernel: jax.Array, *, aval: jax.ShapeDtypeStruct, geometry: Geometry
) -> jax.Array:
    """Its gradient with respect to x for the CPU."""
    gradient = choose(INPUT_GRADIENT, Convolution.of(aval, kernel, geometry)).compute
    return gradient(cotangent, kernel, aval=aval, geometry=geometry)


def kernel_gradient(x: jax.Array, cotangent: jax.Array, *, aval: jax.ShapeDtypeStruct, geometry: Geometry) -> jax.Array:
    """Its gradient with respect to the kernel for the CPU."""
    gradient = choose(KERNEL_GRADIENT, Convolution.of(x, aval, geometry)).compute
    return gradient(x, cotangent, aval=aval, geometry=geometry)


def flipped_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """`conv` with the kernel that a gradient has: flipped in height and width and, if it is dense, (kh, kw, O, C)."""
    row = choose(FORWARD, Convolution.of(x, kernel if geometry.groups > 1 else _swapped(kernel), geometry))
    if row.flipped:
        return row.flipped(x, kernel, geometry=geometry)
    return row.compute(x, kernel[::-1, ::-1].swapaxes(2, 3), geometry=geometry)


def _swapped(kernel: jax.Array) -> jax.ShapeDtypeStruct:
    *taps, outputs, inputs = kernel.shape
    return jax.ShapeDtypeStruct((*taps, inputs, outputs), kernel.dtype)


def pointwise_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A 1x1 convolution without padding as a matrix product."""
    return product(x[:, :: geometry.stride[0], :: geometry.stride[1]], kernel[0, 0])


def flipped_pointwise_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    return product(x[:, :: geometry.stride[0], :: geometry.stride[1]], kernel[0, 0], transpose=True)


def plain_winograd_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    return winograd_conv(x, kernel, geometry.padding)


def flipped_winograd_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    return winograd_conv(x, kernel, geometry.padding, flipped=True)


def unrolled_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    return unrolled_winograd_conv(x, kernel, geometry.padding)


def winograd_row_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry, flipped: bool = False) -> jax.Array:
    return long_row_conv(x, kernel, geometry.padding, flipped)


def winograd_column_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry, flipped: bool = False) -> jax.Array:
    """That of a row with the image on its side."""
    turned = x.swapaxes(1, 2), kernel.swapaxes(0, 1), geometry.padding[::-1]
    return long_row_conv(*turned, flipped).swapaxes(1, 2)


def plain_winograd_gradient(
    x: jax.Array, cotangent: jax.Array, *, aval: jax.ShapeDtypeStruct, geometry: Geometry
) -> jax.Array:
    return winograd_kernel_gradient(x, cotangent, geometry.padding, aval.shape[:2])


def tap_kernel_gradient(
    x: jax.Array, cotangent: jax.Array, *, aval: jax.ShapeDtypeStruct, geometry: Geometry
) -> jax.Array:
    """The kernel gradient of a dense convolution as matrix products, one a tap, summed over all pixels."""
    products = [transposed_product(pixels, cotangent) for pixels in taps_of(x, aval.shape, geometry)]
    return jnp.stack(products).reshape(aval.shape)


# In training all three read the same blocks of channels, which XLA cuts out once.
dense_block_conv = partial(merged_conv, limit=1)
merged_wide_conv = partial(merged_conv, block=wider_conv)
merged_row_conv = partial(merged_conv, block=row_conv)
# In inference.
inference = partial(merged_conv, limit=MAX_INFERENCE_BLOCKS)
paired_inference = partial(inference, channels=PAIRED_CHANNELS, block=paired_conv)
wide_inference = partial(inference, channels=YNNPACK_CHANNELS, block=wider_conv)
row_inference = partial(inference, channels=YNNPACK_CHANNELS, block=row_conv)


def is_small(c: Convolution) -> bool:
    return c.macs < SMALL


def is_small_if_dense(c: Convolution) -> bool:
    """Whether it is grouped, and small even as one dense convolution with a block-diagonal kernel."""
    return c.grouped and c.macs * c.geometry.groups < SMALL


def fits_pairs(c: Convolution) -> bool:
    """Whether it is grouped, and blocks of two columns at once stay so narrow that YNNPACK does not get them."""
    outputs = groups_a_block(c, PAIRED_CHANNELS, MAX_INFERENCE_BLOCKS) * c.outputs // c.geometry.groups
    return c.grouped and c.float32 and c.geometry.dilation[1] == 1 and 2 * outputs < YNNPACK_CHANNELS


def has_wide_blocks(c: Convolution) -> bool:
    """Whether it is grouped, and blocks of its groups would be so wide in training that YNNPACK got them."""
    merged = groups_a_block(c, MERGED_CHANNELS, MAX_BLOCKS)
    return c.grouped and c.float32 and c.inputs * merged >= YNNPACK_CHANNELS


def fits_winograd(c: Convolution, channels: int = WINOGRAD_CHANNELS) -> bool:
    """Whether Winograd's algorithm can do it, with channels enough to outweigh the sums of its transforms.

    The arithmetic saved goes with C * O, the additional memory written with C + O; `channels` bounds their ratio.
    """
    few_taps = max(c.taps) > 1 and IMAGE.keys() >= set(c.taps)
    return few_taps and has_channels_for_winograd(c, channels)


def has_channels_for_winograd(c: Convolution, channels: int = WINOGRAD_CHANNELS) -> bool:
    plain = c.geometry == Geometry(padding=c.geometry.padding)
    return plain and c.float32 and c.inputs * c.outputs >= channels * (c.inputs + c.outputs)


def fits_winograd_gradient(c: Convolution) -> bool:
    return fits_winograd(c, WINOGRAD_GRADIENT_CHANNELS)


def is_thin(c: Convolution) -> bool:
    """Whether it has few input channels, which make short rows of memory unless pixels are joined."""
    return c.float32 and c.inputs <= 4 and c.taps[0] > 1


def is_row(c: Convolution) -> bool:
    """Whether its kernel is a row of several taps, so that it is a one-dimensional convolution as it stands."""
    return c.float32 and c.taps[0] == 1 < c.taps[1] and not c.strided


def is_column(c: Convolution) -> bool:
    """Whether its kernel is a column of several taps, and so a row's with the image on its side."""
    return c.float32 and c.taps[1] == 1 < c.taps[0] and not c.strided


def ends_xla(c: Convolution) -> bool:
    """Whether XLA ends the process while it compiles its own input gradient (jaxlib 0.10.2), instead of raising.

    "Window dimensions do not match RHS shape", where a strided axis has as much padding as its kernel can reach over.
    """
    axes = zip(c.taps, *c.geometry[:3], strict=True)
    return any(stride > 1 and pad == dilation * (n - 1) > 0 for n, stride, pad, dilation in axes)


def fits_phases(c: Convolution) -> bool:
    """Whether no axis is strided and dilated."""
    return all(1 in axis for axis in zip(c.geometry.stride, c.geometry.dilation, strict=True))


def has_fast_taps(c: Convolution) -> bool:
    """Whether products, one a tap, are the fastest kernel gradient: up to 6 times over large images.

    No gain over 14x14 unless strided, a loss for the many taps of 5x5 and 7x7.
    """
    few, large = math.prod(c.taps) <= 9, math.prod(c.sizes) >= 200
    return c.pointwise or (c.taps != (1, 1) and few and (large or c.strided))


GROUPED = (
    Lowering(is_small_if_dense, dense_block_conv),
    Lowering(lambda c: has_wide_blocks(c) and not c.strided, merged_wide_conv),
    Lowering(has_wide_blocks, merged_row_conv),
    Lowering(lambda c: c.grouped, merged_conv),
)

GROUPED_IN_INFERENCE = (
    Lowering(is_small_if_dense, dense_block_conv),
    Lowering(fits_pairs, paired_inference),
    Lowering(lambda c: c.grouped and c.float32 and not c.strided, wide_inference),
    Lowering(lambda c: c.grouped and c.float32, row_inference),
    Lowering(lambda c: c.grouped, merged_conv),
)

UNGROUPED = (
    Lowering(lambda c: c.depthwise, depthwise_conv, flipped_depthwise_conv),
    Lowering(lambda c: c.pointwise, pointwise_conv, flipped_pointwise_conv),
    Lowering(lambda c: is_small(c) or not c.float32, native_conv),
    Lowering(fits_winograd, plain_winograd_conv, flipped_winograd_conv),
    Lowering(
        lambda c: c.taps == (1, 7) and has_channels_for_winograd(c),
        winograd_row_conv,
        partial(winograd_row_conv, flipped=True),
    ),
    Lowering(
        lambda c: c.taps == (7, 1) and has_channels_for_winograd(c),
        winograd_column_conv,
        partial(winograd_column_conv, flipped=True),
    ),
    Lowering(lambda c: c.strided or is_row(c), row_conv),
    Lowering(is_column, column_conv),
    Lowering(lambda c: not is_thin(c), wide_conv),
    Lowering(always, native_conv),
)

# In inference Winograd's points are arrays of their own.
UNROLLED = Lowering(fits_winograd, unrolled_conv, flipped_winograd_conv)

FORWARD = GROUPED_IN_INFERENCE + tuple(UNROLLED if row.applies is fits_winograd else row for row in UNGROUPED)

DIFFERENTIATED = GROUPED + UNGROUPED

by_phases = partial(phase_input_gradient, flipped_conv=flipped_conv)

INPUT_GRADIENT = (
    *(Lowering(row.applies, partial(input_gradient_of, row.compute)) for row in GROUPED),
    Lowering(lambda c: c.depthwise and not fits_phases(c), partial(input_gradient_of, depthwise_conv)),
    Lowering(lambda c: not fits_phases(c), native_input_gradient),
    Lowering(lambda c: c.depthwise or c.pointwise or ends_xla(c), by_phases),
    Lowering(lambda c: is_small(c) or (c.strided and c.dtype != jnp.float64), native_input_gradient),
    Lowering(always, by_phases),
)

KERNEL_GRADIENT = (
    Lowering(lambda c: c.depthwise, depthwise_kernel_gradient),
    Lowering(is_small_if_dense, partial(kernel_gradient_of, dense_block_conv)),
    Lowering(lambda c: c.grouped, partial(kernel_gradient_of, merged_conv)),
    Lowering(lambda c: is_small(c) and not c.pointwise, native_kernel_gradient),
    Lowering(fits_winograd_gradient, plain_winograd_gradient),
    Lowering(lambda c: is_thin(c) or is_row(c), partial(kernel_gradient_of, row_conv)),
    Lowering(is_column, partial(kernel_gradient_of, column_conv)),
    Lowering(has_fast_taps, tap_kernel_gradient),
    Lowering(always, native_kernel_gradient),
)
