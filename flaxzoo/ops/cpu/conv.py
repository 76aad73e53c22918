"""The lowerings of the convolution and its gradients for the CPU; this file alone chooses between them. There XLA

- gives two-dimensional convolutions and matrix products to YNNPACK, which is slower at most shapes of these
  networks, up to seven times, than the Eigen that XLA falls back to where YNNPACK cannot do a thing,
- computes the input gradient of a strided convolution by multiplying inserted zeros, in float64 in plain loops,
- lowers the kernel gradient of a grouped convolution to a dense convolution that multiplies zeros,
- is slow at kernel gradients over large images.

`python -m benchmarks.levers` and `python -m benchmarks.grouped_conv` print what the choices are worth.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from flaxzoo.ops.cpu.dense import column_conv, cut, paired_conv, row_conv, sizes, wide_conv, wider_conv
from flaxzoo.ops.cpu.products import product, transposed_product
from flaxzoo.ops.cpu.winograd import TAPS, winograd_conv, winograd_kernel_gradient
from flaxzoo.ops.kept import kept
from flaxzoo.ops.native import (
    Geometry,
    input_gradient_of,
    kernel_gradient_of,
    native_conv,
    native_kernel_gradient,
)
from flaxzoo.ops.pairs import Pair
from flaxzoo.ops.taps import taps

# Channels of one dense block when narrow groups are merged for the CPU: where gradients are computed too, and where two
# columns are computed at once. `python -m benchmarks.grouped_conv --widths` has others.
MERGED_CHANNELS = 16
PAIRED_CHANNELS = 8

# Channels of a dense block from which XLA would give it to YNNPACK, which computes such small convolutions on one core.
YNNPACK_CHANNELS = 32

# Each block is a convolution to compile, and a loop over them is ten times slower. With up to 32 where gradients are
# computed too, a training step of ResNeXt-50 would take twice as long to compile, and about as long to run.
MAX_BLOCKS = 16
MAX_INFERENCE_BLOCKS = 32

# Rows of a product that the kernel gradient of a depthwise convolution sums at once. Of 4 and 8 each was the faster at
# some shapes; sums along whole rows took about twice as long.
ROWS_A_SUM = 4

# Ratios C * O / (C + O) from which Winograd's algorithm is faster (`python -m benchmarks.levers '*winograd*'`): that of
# 48 -> 48 channels; for strided convolutions, of which it saves less, that of 96 -> 96; and for the kernel gradient,
# whose alternatives are slower, that of 32 -> 32.
WINOGRAD_CHANNELS = 24
WINOGRAD_STRIDED_CHANNELS = 48
WINOGRAD_GRADIENT_CHANNELS = 16


def conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """The convolution for the CPU."""
    return _forward(kernel, geometry)(x, kernel, geometry=geometry)


def differentiated_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """The convolution for the CPU where its gradients are computed too.

    If it is grouped, all three read the same blocks of channels then, which XLA cuts out once.
    """
    lowering = _merged_in_training if _is_grouped(kernel, geometry) else _forward
    return lowering(kernel, geometry)(x, kernel, geometry=geometry)


def flipped_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """`conv` with the kernel that a gradient has: flipped in height and width and, if it is dense, (kh, kw, O, C)."""
    flipped = kernel[::-1, ::-1]
    forward = _forward(kernel, geometry)
    if forward is depthwise_conv:
        return depthwise_conv(x, flipped, geometry=geometry)
    if forward is pointwise_conv:
        return product(x, kernel[0, 0], transpose=True)
    if forward is plain_winograd_conv:
        return winograd_conv(x, flipped, geometry.padding, transpose=True)
    return forward(x, flipped.swapaxes(2, 3), geometry=geometry)


def input_gradient(
    cotangent: jax.Array, kernel: jax.Array, *, like: jax.core.ShapedArray, geometry: Geometry
) -> jax.Array:
    """Its gradient with respect to x for the CPU."""
    if _is_grouped(kernel, geometry):
        return input_gradient_of(_merged_in_training(kernel, geometry), cotangent, kernel, like, geometry)
    if all(1 in pair for pair in zip(geometry.stride, geometry.dilation, strict=True)):
        return phase_input_gradient(cotangent, kernel, like=like, geometry=geometry)
    return input_gradient_of(_forward(kernel, geometry), cotangent, kernel, like, geometry)


def kernel_gradient(x: jax.Array, cotangent: jax.Array, *, like: jax.core.ShapedArray, geometry: Geometry) -> jax.Array:
    """Its gradient with respect to the kernel for the CPU."""
    if _is_depthwise(like, geometry):
        return depthwise_kernel_gradient(x, cotangent, like=like, geometry=geometry)
    if _is_grouped(like, geometry):
        return kernel_gradient_of(merged_conv, x, cotangent, like, geometry)
    # Seven taps are faster as rows: the kernel gradient transposes the pixels for each of the ten products.
    if max(like.shape[:2]) < 7 and _is_winograds(like, geometry, WINOGRAD_GRADIENT_CHANNELS):
        return winograd_kernel_gradient(x, cotangent, geometry.padding, like.shape[:2])
    if _is_thin(like) or _is_row(like, geometry):
        return kernel_gradient_of(row_conv, x, cotangent, like, geometry)
    if _is_column(like, geometry):
        return kernel_gradient_of(column_conv, x, cotangent, like, geometry)
    if _has_winograds_phases(like, geometry):
        return phase_kernel_gradient(x, cotangent, like=like, geometry=geometry)
    if _taps_are_faster(like.shape, cotangent.shape, geometry):
        return tap_kernel_gradient(x, cotangent, like=like, geometry=geometry)
    return native_kernel_gradient(x, cotangent, like=like, geometry=geometry)


def pointwise_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A 1x1 convolution without padding as a matrix product."""
    return product(x[:, :: geometry.stride[0], :: geometry.stride[1]], kernel[0, 0])


def plain_winograd_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A dense convolution of stride 1 by Winograd's products."""
    return winograd_conv(x, kernel, geometry.padding)


def phase_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A dense, undilated convolution as a sum of convolutions of stride 1, one for each phase of the stride."""
    results = sizes(x, kernel, geometry)
    phases = _phases(x, kernel.shape, results, geometry)
    return sum(conv(pixels, kernel[phase], geometry=Geometry()) for phase, pixels in phases)


def phase_kernel_gradient(
    x: jax.Array, cotangent: jax.Array, *, like: jax.core.ShapedArray, geometry: Geometry
) -> jax.Array:
    """The kernel gradient of a dense, undilated convolution, by the phases of `phase_conv`."""
    total = jnp.zeros(like.shape, like.dtype)
    for phase, pixels in _phases(x, like.shape, cotangent.shape[1:3], geometry):
        gradient = kernel_gradient(pixels, cotangent, like=jax.typeof(total[phase]), geometry=Geometry())
        total = total.at[phase].set(gradient)
    return total


def _phases(
    x: jax.Array, kernel_shape: tuple[int, ...], results: Pair, geometry: Geometry
) -> list[tuple[tuple[slice, slice], jax.Array]]:
    """For each phase of the stride, which the kernel is not smaller than, its taps and the padded pixels they meet."""
    axes = zip(geometry.padding, results, geometry.stride, kernel_shape, x.shape[1:3], strict=False)
    pads = [(low, (count - 1) * stride + length - low - size, 0) for low, count, stride, length, size in axes]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    down, right = geometry.stride
    phases = [(slice(row, None, down), slice(column, None, right)) for row in range(down) for column in range(right)]
    return [(phase, x[:, *phase]) for phase in phases]


def depthwise_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A depthwise convolution as a sum of shifted products, one a tap."""
    weights = kernel.reshape(-1, kernel.shape[-1])
    return sum(pixels * weight for pixels, weight in zip(_taps(x, kernel.shape, geometry), weights, strict=True))


def depthwise_kernel_gradient(
    x: jax.Array, cotangent: jax.Array, *, like: jax.core.ShapedArray, geometry: Geometry
) -> jax.Array:
    """The kernel gradient of a depthwise convolution: all taps in one pass over the pixels, four rows at a time.

    A sum over so few LLVM unrolls, and then computes many channels at once; a longer one it leaves a loop, for one
    channel after the other.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    images, height, width, channels = cotangent.shape
    rows = -(-height // ROWS_A_SUM)
    cotangent = cotangent.astype(wide)
    products = [pixels.astype(wide) * cotangent for pixels in _taps(x, like.shape, geometry)]
    products = [jnp.pad(p, ((0, 0), (0, rows * ROWS_A_SUM - height), (0, 0), (0, 0))) for p in products]
    products = [p.reshape(images, rows, ROWS_A_SUM, width, channels) for p in products]
    zeros = [jnp.zeros((), wide)] * len(products)
    sums = lax.reduce(products, zeros, lambda a, b: [i + j for i, j in zip(a, b, strict=True)], (2,))
    return jnp.stack([s.sum((0, 1, 2)) for s in sums]).reshape(like.shape).astype(like.dtype)


def merged_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    geometry: Geometry,
    channels: int = MERGED_CHANNELS,
    limit: int = MAX_BLOCKS,
    block: Callable = native_conv,
) -> jax.Array:
    """A grouped convolution as at most `limit` dense ones over groups that together have about `channels` channels.

    The kernel of a block is block-diagonal: one block of the diagonal a group, zeros elsewhere. What `block` computes
    may have rows and columns too many at the end. The pieces of the image are kept, because the kernel gradient
    transposes them.
    """
    groups = geometry.groups
    merge = _groups_a_block(kernel, geometry, channels, limit)
    blocks = groups // merge
    height, width, inputs, outputs = kernel.shape
    # (kh, kw, I, O) -> (blocks, kh, kw, merge * I, merge * O / groups), zero off the diagonal of (merge, merge).
    split = kernel.reshape(height, width, inputs, blocks, merge, outputs // groups)
    eye = jnp.eye(merge, dtype=kernel.dtype)
    dense = jnp.einsum('hwibmo,nm->bhwnimo', split, eye)
    dense = dense.reshape(blocks, height, width, merge * inputs, merge * outputs // groups)
    dense_geometry = geometry._replace(groups=1)
    parts = [block(kept(part), dense[b], geometry=dense_geometry) for b, part in enumerate(jnp.split(x, blocks, -1))]
    return cut(jnp.concatenate(parts, -1), x, kernel, geometry)


# For inference.
merged_paired_conv = partial(merged_conv, channels=PAIRED_CHANNELS, limit=MAX_INFERENCE_BLOCKS, block=paired_conv)
merged_wide_conv = partial(merged_conv, channels=YNNPACK_CHANNELS, limit=MAX_INFERENCE_BLOCKS, block=wider_conv)
merged_row_conv = partial(merged_conv, channels=YNNPACK_CHANNELS, limit=MAX_INFERENCE_BLOCKS, block=row_conv)


def phase_input_gradient(
    cotangent: jax.Array, kernel: jax.Array, *, like: jax.core.ShapedArray, geometry: Geometry
) -> jax.Array:
    """The input gradient of a dense or depthwise convolution as convolutions of stride 1 of the cotangent.

    One for each phase of the stride: pixels of x that are a stride apart meet the same taps of the kernel. A strided
    axis must not be dilated.
    """
    grid = [[(row, column) for column in range(geometry.stride[1])] for row in range(geometry.stride[0])]
    phases = [[_phase_gradient(cotangent, kernel, like, geometry, phase) for phase in row] for row in grid]
    x = jnp.stack([jnp.stack(row, 3) for row in phases], 2)
    x = x.reshape(len(x), x.shape[1] * x.shape[2], x.shape[3] * x.shape[4], -1)
    return x[:, : like.shape[1], : like.shape[2]]


def _phase_gradient(
    cotangent: jax.Array, kernel: jax.Array, like: jax.core.ShapedArray, geometry: Geometry, phase: Pair
) -> jax.Array:
    """The gradient of the pixels `phase + i * stride`: (N, ceil(H / stride), ceil(W / stride), C)."""
    axes = zip(phase, *geometry[:3], kernel.shape, like.shape[1:3], cotangent.shape[1:3], strict=False)
    meeting, pads, counts = [], [], []
    for first, stride, padding, dilation, length, size, outputs in axes:
        begin, tap = divmod(first + padding, stride)  # these pixels meet the taps tap, tap + stride, ...
        count = len(range(tap, length, stride))
        reach, pixels = dilation * (count - 1), -(-size // stride)
        meeting.append(slice(tap, length, stride))
        pads.append((reach - begin, pixels + begin - outputs))
        counts.append(pixels)
    kernel = kernel[tuple(meeting)]
    if not kernel.size:
        return jnp.zeros((len(cotangent), *counts, like.shape[3]), cotangent.dtype)
    geometry = Geometry(dilation=geometry.dilation, groups=geometry.groups)
    if all(low == high >= 0 for low, high in pads):
        geometry = geometry._replace(padding=tuple(low for low, _ in pads))
    else:
        cotangent = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), ((0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)))
    return flipped_conv(cotangent, kernel, geometry=geometry)


def tap_kernel_gradient(
    x: jax.Array, cotangent: jax.Array, *, like: jax.core.ShapedArray, geometry: Geometry
) -> jax.Array:
    """The kernel gradient of a dense convolution as matrix products, one a tap, summed over all pixels."""
    products = [transposed_product(pixels, cotangent) for pixels in _taps(x, like.shape, geometry)]
    return jnp.stack(products).reshape(like.shape)


def _forward(kernel: jax.Array | jax.core.ShapedArray, geometry: Geometry):
    """The function of this module that computes such a convolution fastest on the CPU."""
    if _is_depthwise(kernel, geometry):
        return depthwise_conv
    if _is_grouped(kernel, geometry):
        return _merged(kernel, geometry)
    if kernel.shape[:2] == (1, 1) and geometry.padding == (0, 0):
        return pointwise_conv
    if kernel.dtype != jnp.float32:
        return native_conv
    if _is_winograds(kernel, geometry, WINOGRAD_CHANNELS):
        return plain_winograd_conv
    if _has_winograds_phases(kernel, geometry):
        return phase_conv
    if geometry.stride != (1, 1) or _is_thin(kernel) or _is_row(kernel, geometry):
        return row_conv
    return column_conv if _is_column(kernel, geometry) else wide_conv


def _merged(kernel: jax.Array | jax.core.ShapedArray, geometry: Geometry):
    """The fastest lowering that merges groups, by itself."""
    if kernel.dtype != jnp.float32:
        return merged_conv
    merge = _groups_a_block(kernel, geometry, PAIRED_CHANNELS, MAX_INFERENCE_BLOCKS)
    outputs = merge * kernel.shape[3] // geometry.groups
    if geometry.dilation[1] == 1 and 2 * outputs < YNNPACK_CHANNELS:
        return merged_paired_conv
    return merged_wide_conv if geometry.stride == (1, 1) else merged_row_conv


def _merged_in_training(kernel: jax.Array | jax.core.ShapedArray, geometry: Geometry):
    """The one whose input gradient is its transpose, and which reads the blocks that the kernel gradient reads."""
    channels = kernel.shape[2] * _groups_a_block(kernel, geometry, MERGED_CHANNELS, MAX_BLOCKS)
    if kernel.dtype != jnp.float32 or channels < YNNPACK_CHANNELS:
        return merged_conv
    return partial(merged_conv, block=wider_conv if geometry.stride == (1, 1) else row_conv)


def _is_grouped(kernel: jax.Array | jax.core.ShapedArray, geometry: Geometry) -> bool:
    """Whether it has groups, but not as many as channels."""
    return geometry.groups > 1 and not _is_depthwise(kernel, geometry)


def _is_depthwise(kernel: jax.Array | jax.core.ShapedArray, geometry: Geometry) -> bool:
    """Whether every channel is convolved by itself into one channel."""
    return kernel.shape[2] == 1 and kernel.shape[3] == geometry.groups > 1


def _is_thin(kernel: jax.Array | jax.core.ShapedArray) -> bool:
    """Whether it has few input channels, which make short rows of memory unless pixels are joined."""
    return kernel.dtype == jnp.float32 and kernel.shape[2] <= 4 and kernel.shape[0] > 1


def _is_row(kernel: jax.Array | jax.core.ShapedArray, geometry: Geometry) -> bool:
    """Whether its kernel is a row of several taps, so that it is a one-dimensional convolution as it stands."""
    return kernel.dtype == jnp.float32 and kernel.shape[0] == 1 < kernel.shape[1] and geometry.stride == (1, 1)


def _is_column(kernel: jax.Array | jax.core.ShapedArray, geometry: Geometry) -> bool:
    """Whether its kernel is a column of several taps, and so a row's with the image on its side."""
    return kernel.dtype == jnp.float32 and kernel.shape[0] > 1 == kernel.shape[1] and geometry.stride == (1, 1)


def _is_winograds(kernel: jax.Array | jax.core.ShapedArray, geometry: Geometry, channels: int) -> bool:
    """Whether Winograd's algorithm can do it, with channels enough to outweigh the sums of its transforms.

    The arithmetic saved goes with C * O, the additional memory written with C + O; `channels` bounds their ratio.
    """
    *taps, inputs, outputs = kernel.shape
    plain = TAPS.keys() >= set(taps) and max(taps) > 1 and geometry == Geometry(padding=geometry.padding)
    return plain and kernel.dtype == jnp.float32 and inputs * outputs >= channels * (inputs + outputs)


def _has_winograds_phases(kernel: jax.Array | jax.core.ShapedArray, geometry: Geometry) -> bool:
    """Whether it is strided and Winograd's algorithm pays for its phases; measured for 3x3 kernels of stride 2."""
    unstrided = geometry._replace(stride=(1, 1))
    strided = kernel.shape[:2] == (3, 3) and geometry.stride == (2, 2)
    return strided and _is_winograds(kernel, unstrided, WINOGRAD_STRIDED_CHANNELS)


def _taps_are_faster(kernel_shape: tuple[int, ...], cotangent_shape: tuple[int, ...], geometry: Geometry) -> bool:
    """As `benchmarks.levers` shows: up to 6 times over large images.

    No gain over 14x14 unless strided, a loss for the many taps of 5x5 and 7x7.
    """
    height, width = kernel_shape[:2]
    if height == width == 1:
        return geometry.padding == (0, 0)
    large = cotangent_shape[1] * cotangent_shape[2] >= 200
    return height * width <= 9 and (large or geometry.stride != (1, 1))


def _taps(x: jax.Array, kernel_shape: tuple[int, ...], geometry: Geometry) -> list[jax.Array]:
    padding = tuple((p, p) for p in geometry.padding)
    return taps(x, kernel_shape[:2], geometry.stride, padding, geometry.dilation)


def _groups_a_block(kernel: jax.Array | jax.core.ShapedArray, geometry: Geometry, channels: int, limit: int) -> int:
    """The smallest divisor of the groups that gives at most `limit` blocks of at least `channels` input channels."""
    groups, inputs = geometry.groups, kernel.shape[2]
    divisors = [m for m in range(1, groups + 1) if groups % m == 0]
    return next((m for m in divisors if m * inputs >= channels and groups // m <= limit), groups)
