"""One convolution, several lowerings of the same mathematics; this file alone chooses between them.

GPUs and TPUs always get XLA's native convolution. XLA's CPU backend is slow where the others are not: it lowers the
weight gradient of a grouped convolution to a dense convolution that multiplies zeros, and a 1x1 convolution is faster
there as a matrix product. `python -m benchmarks.grouped_conv` prints what the choice is worth.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[int, int]

# Channels of one dense block when narrow groups are merged for the CPU. 16 was the fastest of 8, 16, 32 and 64 over
# the four stages of ResNeXt-50 (forward plus backward; `python -m benchmarks.grouped_conv --widths`).
MERGED_CHANNELS = 16

# Each block is a convolution to compile. ResNeXt-101 64x4d with a block a group in its wide stages, 1,840 forward, took
# some 19 GiB to compile for training; with at most 32 it is 1,008, as many as 32x8d has.
MAX_BLOCKS = 32


def conv2d(x: jax.Array, kernel: jax.Array, *, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> jax.Array:
    """Convolves `x: (N, H, W, C)` with `kernel: (kh, kw, C // groups, O)` of the same dtype, giving (N, H', W', O)."""
    native = partial(native_conv, stride=stride, padding=padding, dilation=dilation, groups=groups)
    cpu = _cpu_lowering(x, kernel, stride, padding, dilation, groups)
    if cpu is None:
        return native(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=cpu, default=native)


def native_conv(
    x: jax.Array, kernel: jax.Array, *, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=stride,
        padding=[(p, p) for p in padding],
        rhs_dilation=dilation,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )


def pointwise_conv(x: jax.Array, kernel: jax.Array, *, stride: Pair) -> jax.Array:
    """A 1x1 convolution without padding as a matrix product."""
    return x[:, :: stride[0], :: stride[1]] @ kernel[0, 0]


def depthwise_conv(x: jax.Array, kernel: jax.Array, *, stride: Pair, padding: Pair, dilation: Pair) -> jax.Array:
    """A depthwise convolution as a sum of shifted products, one a tap."""
    x = jnp.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
    spans = [(k - 1) * d for k, d in zip(kernel.shape[:2], dilation, strict=True)]
    ends = [size - span for size, span in zip(x.shape[1:3], spans, strict=True)]
    total = 0
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            top, left = i * dilation[0], j * dilation[1]
            window = x[:, top : top + ends[0] : stride[0], left : left + ends[1] : stride[1]]
            total = total + window * kernel[i, j, 0]
    return total


def merged_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    channels: int = MERGED_CHANNELS,
) -> jax.Array:
    """A grouped convolution as dense ones over blocks of groups that together have about `channels` channels.

    The kernel of a block is block-diagonal: one block of the diagonal a group, zeros elsewhere.
    """
    merge = _groups_a_block(groups, kernel.shape[2], channels)
    blocks = groups // merge
    height, width, inputs, outputs = kernel.shape
    # (kh, kw, I, O) -> (blocks, kh, kw, merge * I, merge * O / groups), zero off the diagonal of (merge, merge).
    split = kernel.reshape(height, width, inputs, blocks, merge, outputs // groups)
    eye = jnp.eye(merge, dtype=kernel.dtype)
    dense = jnp.einsum('hwibmo,nm->bhwnimo', split, eye)
    dense = dense.reshape(blocks, height, width, merge * inputs, merge * outputs // groups)
    conv = partial(native_conv, stride=stride, padding=padding, dilation=dilation, groups=1)
    return jnp.concatenate([conv(part, dense[b]) for b, part in enumerate(jnp.split(x, blocks, -1))], -1)


def _cpu_lowering(
    x: jax.Array, kernel: jax.Array, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Callable | None:
    """The lowering for the CPU, or None where the native one is best."""
    if groups == 1:
        if kernel.shape[:2] == (1, 1) and padding == (0, 0):
            return partial(pointwise_conv, stride=stride)
        return None
    if groups == x.shape[-1] == kernel.shape[-1]:
        return partial(depthwise_conv, stride=stride, padding=padding, dilation=dilation)
    return partial(merged_conv, stride=stride, padding=padding, dilation=dilation, groups=groups)


def _groups_a_block(groups: int, inputs: int, channels: int) -> int:
    """The smallest divisor of `groups` that gives at most MAX_BLOCKS blocks of at least `channels` channels."""
    divisors = [m for m in range(1, groups + 1) if groups % m == 0]
    return next((m for m in divisors if m * inputs >= channels and groups // m <= MAX_BLOCKS), groups)
