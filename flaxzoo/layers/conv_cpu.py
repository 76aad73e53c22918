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

from flaxzoo.layers.conv_native import (
    Geometry,
    input_gradient_of,
    kernel_gradient_of,
    native_conv,
    native_kernel_gradient,
)
from flaxzoo.layers.kept import kept
from flaxzoo.layers.products import product, transposed_product
from flaxzoo.layers.taps import Pair, taps
from flaxzoo.layers.winograd import winograd_conv, winograd_kernel_gradient

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

# Ratios C * O / (C + O) from which Winograd's algorithm is faster (`python -m benchmarks.levers '*winograd*'`); that of
# 48 -> 48 channels, and for the kernel gradient, whose alternatives are slower, that of 32 -> 32.
WINOGRAD_CHANNELS = 24
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
    if _is_thin(like) or _is_row(like, geometry):
        return kernel_gradient_of(row_conv, x, cotangent, like, geometry)
    if _is_winograds(like, geometry, WINOGRAD_GRADIENT_CHANNELS):
        return winograd_kernel_gradient(x, cotangent, geometry.padding)
    if _taps_are_faster(like.shape, cotangent.shape, geometry):
        return tap_kernel_gradient(x, cotangent, like=like, geometry=geometry)
    return native_kernel_gradient(x, cotangent, like=like, geometry=geometry)


def pointwise_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A 1x1 convolution without padding as a matrix product."""
    return product(x[:, :: geometry.stride[0], :: geometry.stride[1]], kernel[0, 0])


def plain_winograd_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A 3x3 convolution of stride 1 by Winograd's products."""
    return winograd_conv(x, kernel, geometry.padding)


def wide_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A dense convolution of stride 1 with padding added until the result is wider than the image, then cut off."""
    return _cut(wider_conv(x, kernel, geometry=geometry), x, kernel, geometry)


def wider_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """`wide_conv` with the rows or columns that are to be cut off. YNNPACK cannot compute such a one."""
    reach = [d * (k - 1) - 2 * p for d, k, p in zip(geometry.dilation, kernel.shape, geometry.padding, strict=False)]
    more = [max(0, r + 1) for r in reach]
    axis = int(more[1] / x.shape[2] < more[0] / x.shape[1])  # of the two the one with less to add
    more[1 - axis] = 0
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=[(p, p + m) for p, m in zip(geometry.padding, more, strict=True)],
        rhs_dilation=geometry.dilation,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


def paired_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A dense convolution, undilated across, as one with twice the stride across and two columns' results as channels.

    The last column is to be cut off if there is one too many. For a convolution of few channels XLA's Eigen spends
    most of its time on copying what a window meets, of which two windows side by side share the greater part.
    """
    width, outputs = kernel.shape[1], kernel.shape[3]
    (down, right), (above, beside), (dilation, _), _ = geometry
    both = [jnp.pad(kernel, ((0, 0), (first, right - first), (0, 0), (0, 0))) for first in (0, right)]
    pairs = -(-_sizes(x, kernel, geometry)[1] // 2)
    y = lax.conv_general_dilated(
        x,
        jnp.concatenate(both, -1),
        window_strides=(down, 2 * right),
        padding=[(above, above), (beside, 2 * right * (pairs - 1) + width + right - beside - x.shape[2])],
        rhs_dilation=(dilation, 1),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return y.reshape(*y.shape[:2], 2 * pairs, outputs)


def row_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A dense convolution as a one-dimensional one over rows, whose channels are the channels of all rows it meets."""
    height, width, inputs, outputs = kernel.shape
    (down, right), (above, beside), (dilation, across), _ = geometry
    met = taps(x, (height, 1), (down, 1), ((above, above), (0, 0)), (dilation, 1))
    # A sum of what does not overlap: XLA and LLVM make better code of it than of a concatenation. The kernel gradient
    # transposes the rows, from memory and not from what they are joined of.
    places = [(inputs * row, inputs * (height - 1 - row)) for row in range(height)]
    rows = kept(sum(jnp.pad(row, ((0, 0), (0, 0), (0, 0), place)) for row, place in zip(met, places, strict=True)))
    y = lax.conv_general_dilated(
        rows.reshape(-1, *rows.shape[2:]),
        kernel.transpose(1, 0, 2, 3).reshape(width, height * inputs, outputs),
        window_strides=(right,),
        padding=[(beside, beside)],
        rhs_dilation=(across,),
        dimension_numbers=('NWC', 'WIO', 'NWC'),
    )
    return y.reshape(*rows.shape[:2], *y.shape[1:])


def column_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A dense convolution whose kernel is a column, as that of a row with the image on its side."""
    turned = Geometry(*(pair[::-1] for pair in geometry[:3]))
    return row_conv(x.swapaxes(1, 2), kernel.swapaxes(0, 1), geometry=turned).swapaxes(1, 2)


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
    return _cut(jnp.concatenate(parts, -1), x, kernel, geometry)


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
    meeting, pads, sizes = [], [], []
    for first, stride, padding, dilation, length, size, outputs in axes:
        begin, tap = divmod(first + padding, stride)  # these pixels meet the taps tap, tap + stride, ...
        count = len(range(tap, length, stride))
        reach, pixels = dilation * (count - 1), -(-size // stride)
        meeting.append(slice(tap, length, stride))
        pads.append((reach - begin, pixels + begin - outputs))
        sizes.append(pixels)
    kernel = kernel[tuple(meeting)]
    if not kernel.size:
        return jnp.zeros((len(cotangent), *sizes, like.shape[3]), cotangent.dtype)
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
    if geometry.stride != (1, 1) or _is_thin(kernel) or _is_row(kernel, geometry):
        return row_conv
    return column_conv if kernel.shape[1] == 1 else wide_conv


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


def _is_winograds(kernel: jax.Array | jax.core.ShapedArray, geometry: Geometry, channels: int) -> bool:
    """Whether Winograd's algorithm can do it, with channels enough to outweigh the sums of its transforms.

    The arithmetic saved goes with C * O, the additional memory written with C + O; `channels` bounds their ratio.
    """
    height, width, inputs, outputs = kernel.shape
    plain = (height, width) == (3, 3) and geometry == Geometry(padding=geometry.padding)
    return plain and kernel.dtype == jnp.float32 and inputs * outputs >= channels * (inputs + outputs)


def _taps_are_faster(kernel_shape: tuple[int, ...], cotangent_shape: tuple[int, ...], geometry: Geometry) -> bool:
    """As `benchmarks.levers` shows: up to 3 times for columns of taps and over large images.

    No gain over 14x14 unless strided, a loss for the many taps of 5x5 and 7x7.
    """
    height, width = kernel_shape[:2]
    if width == 1:
        return height > 1 or geometry.padding == (0, 0)
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


def _sizes(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> list[int]:
    """Height and width of the convolution's result."""
    axes = zip(x.shape[1:3], kernel.shape[:2], *geometry[:3], strict=True)
    return [
        (size + 2 * padding - dilation * (length - 1) - 1) // stride + 1
        for size, length, stride, padding, dilation in axes
    ]


def _cut(y: jax.Array, x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """`y` without the rows and columns that are not the convolution's."""
    height, width = _sizes(x, kernel, geometry)
    return y[:, :height, :width]
