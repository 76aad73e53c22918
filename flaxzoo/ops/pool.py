"""Pooling of `x: (N, H, W, C)` with torch's window arithmetic (names and arguments of torch.nn.functional)."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxzoo.ops.kept import kept
from flaxzoo.ops.lowering import by_platform, is_concrete, native_only, surely_less
from flaxzoo.ops.pairs import IntOrPair, Pair, pair
from flaxzoo.ops.taps import taps


def max_pool2d(
    x: jax.Array,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    ceil_mode: bool = False,
) -> jax.Array:
    """Maximum over windows; `stride=None` means `kernel_size`. (N, H, W, C) -> (N, H', W', C)."""
    return max_pool(x, _windows(x.shape, kernel_size, stride, padding, ceil_mode))


class Windows(NamedTuple):
    """Windows of a pooling layer: (height, width) pairs, `padding` of (low, high) pairs."""

    kernel: Pair
    stride: Pair
    padding: tuple[Pair, Pair]


def native_max_pool(x: jax.Array, windows: Windows) -> jax.Array:
    return _reduce(x, -np.inf, lax.max, windows)


def native_sum_pool(x: jax.Array, windows: Windows) -> jax.Array:
    return _reduce(x, 0, lax.add, windows)


def tap_max_pool(x: jax.Array, windows: Windows) -> jax.Array:
    """The maximum of the taps, which XLA:CPU, without padding, computes in one pass with what `x` is computed from."""
    return kept(reduce(jnp.maximum, taps(x, *windows, fill=-jnp.inf)))


def separable_sum_pool(x: jax.Array, windows: Windows) -> jax.Array:
    """The sum over rows, then over columns: fewer operations."""
    (height, width), (down, right), (rows, columns) = windows
    x = native_sum_pool(x, Windows((height, 1), (down, 1), (rows, (0, 0))))
    return native_sum_pool(x, Windows((1, width), (1, right), ((0, 0), columns)))


def _reduce(x: jax.Array, initial: float, operation: Callable, windows: Windows) -> jax.Array:
    kernel, stride, padding = windows
    start = np.asarray(initial, x.dtype)  # a constant also under jit: a traced one would have no gradient
    return lax.reduce_window(x, start, operation, (1, *kernel, 1), (1, *stride, 1), ((0, 0), *padding, (0, 0)))


def first_maximum(x: jax.Array, windows: Windows) -> tuple[jax.Array, jax.Array]:
    """The max pool of `x`, and which tap of each window, counted row by row, is its first maximum: small integers.

    Torch and XLA send the gradient to the same one.
    """
    pixels = taps(x, *windows, fill=-jnp.inf)
    y = kept(reduce(jnp.maximum, pixels))
    index = np.min_scalar_type(-len(pixels))
    first = jnp.full(y.shape, -1, index)
    for tap in reversed(range(len(pixels))):
        first = jnp.where(pixels[tap] == y, index.type(tap), first)
    return y, kept(first)


def select_taps(x: jax.Array, tap: jax.Array, windows: Windows, hold: bool) -> jax.Array:
    """The pixel of `x` that `tap`, as `first_maximum` counts, picks in each window.

    `x` is cut in blocks of a stride and each block compared with all the windows that begin in it or before, so that
    the transpose, the gradient of a max pool, is a few broadcasts in one pass over the image: the CPU and GPUs do that
    far faster than XLA's select-and-scatter, and always in the same order. With `hold` that pass reads `tap` and the
    cotangent from copies with a margin in memory, and so need not ask for every pixel whether a window is there.
    """
    (height, width), (down, right), ((above, _), (before, _)) = windows
    # A window reaches over this many blocks, and all windows together over so many.
    over, across = -(-height // down), -(-width // right)
    high, wide = tap.shape[1] + over - 1, tap.shape[2] + across - 1
    pads = ((above, high * down - x.shape[1] - above, 0), (before, wide * right - x.shape[2] - before, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    x = x.reshape(x.shape[0], high, down, wide, right, x.shape[3])
    held = lax.optimization_barrier if hold else lambda array: array
    margin = ((0, 0, 0), (over - 1, over - 1, 0), (across - 1, across - 1, 0), (0, 0, 0))
    tap = held(lax.pad(tap, np.array(-1, tap.dtype), margin))
    total = jnp.zeros(tap.shape, x.dtype)
    for i, j in np.ndindex(over, across):
        # The windows that begin so many blocks before the present one, which they meet here.
        back, left = over - 1 - i, across - 1 - j
        row, column = np.ogrid[back * down : (back + 1) * down, left * right : (left + 1) * right]
        here = np.where((row < height) & (column < width), row * width + column, -2).astype(tap.dtype)
        picked = tap[:, i : i + high, None, j : j + wide, None] == here[:, None, :, None]
        pixels = jnp.where(picked, x, 0).sum((2, 4))
        total += lax.pad(pixels, jnp.zeros((), x.dtype), ((0, 0, 0), (i, back, 0), (j, left, 0), (0, 0, 0)))
    return held(total)[:, over - 1 : high, across - 1 : wide]


def max_pool(x: jax.Array, windows: Windows) -> jax.Array:
    """The maximum over `windows`, which sends the gradient to the first of equal maxima."""
    return native_max_pool(x, windows) if native_only(x) else _max_pool(x, windows)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, windows: Windows) -> jax.Array:
    native, cpu = (partial(pool, windows=windows) for pool in (native_max_pool, tap_max_pool))
    return by_platform(native, x, cpu=cpu)


@_max_pool.defjvp
def _max_pool_jvp(windows: Windows, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents

    def selected(x, tangent, hold=False):
        y, tap = first_maximum(x, windows)
        return y, select_taps(tangent, tap, windows, hold)

    def native(x, tangent):
        return jax.jvp(partial(native_max_pool, windows=windows), (x,), (tangent,))

    # On a GPU the copies pay where strided windows overlap. With a stride of one they cost more than they save.
    overlap = any(size > stride > 1 for size, stride in zip(windows.kernel, windows.stride, strict=True))
    return by_platform(native, x, tangent, cpu=selected, cuda=partial(selected, hold=overlap))


def avg_pool2d(
    x: jax.Array,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> jax.Array:
    """Mean over windows; `stride=None` means `kernel_size`. (N, H, W, C) -> (N, H', W', C).

    `count_include_pad` counts the zeros of `padding` in the mean. What ceil_mode adds beyond them never counts.
    """
    windows = _windows(x.shape, kernel_size, stride, padding, ceil_mode)
    native, cpu = (partial(pool, windows=windows) for pool in (native_sum_pool, separable_sum_pool))
    total = by_platform(native, x, cpu=cpu)
    if not ceil_mode and (count_include_pad or windows.padding == ((0, 0), (0, 0))):
        return total / np.asarray(np.prod(windows.kernel), x.dtype)  # every window counts all of its positions
    return total / _counts(x, windows, pair(padding, 'padding'), count_include_pad)


def adaptive_avg_pool2d(x: jax.Array, output_size: IntOrPair) -> jax.Array:
    """Mean over the `output_size` intervals of each axis, which overlap where the size does not divide.

    Interval i of n pixels cut in o runs from floor(i*n/o) to ceil((i+1)*n/o). (N, H, W, C) -> (N, *output_size, C).
    """
    for axis, size in zip((1, 2), pair(output_size, 'output_size'), strict=True):
        n = x.shape[axis]
        if size == 1:
            x = x.mean(axis, keepdims=True)
        elif not is_concrete(n):
            raise ValueError(f'adaptive pooling to {output_size} needs an image of known size, got {x.shape}')
        elif n % size == 0:
            x = x.reshape(*x.shape[:axis], size, n // size, *x.shape[axis + 1 :]).mean(axis + 1)
        elif n != size:
            x = _interval_means(x, axis, size)
    return x


def global_avg_pool2d(x: jax.Array) -> jax.Array:
    """Mean over the image: (N, H, W, C) -> (N, C). Torch's AdaptiveAvgPool2d(1) and flatten."""
    return x.mean((1, 2))


def flatten(x: jax.Array) -> jax.Array:
    """`torch.flatten(x, 1)`: (N, H, W, C) -> (N, C * H * W), the features in torch's order, channels first."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


def _interval_means(x: jax.Array, axis: int, size: int) -> jax.Array:
    n = x.shape[axis]
    bounds = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
    means = [lax.slice_in_dim(x, lo, hi, axis=axis).mean(axis, keepdims=True) for lo, hi in bounds]
    return jnp.concatenate(means, axis)


def _windows(
    shape: Sequence[int],
    kernel_size: IntOrPair,
    stride: IntOrPair | None,
    padding: IntOrPair,
    ceil_mode: bool,
) -> Windows:
    """Kernel, stride and (low, high) padding of height and width."""
    kernel = pair(kernel_size, 'kernel_size')
    strides = kernel if stride is None else pair(stride, 'stride')
    paddings = pair(padding, 'padding')
    pads = []
    for n, k, s, p in zip(shape[1:3], kernel, strides, paddings, strict=True):
        if 2 * p > k:
            raise ValueError(f'padding {p} must be at most half of the kernel size {k}')
        least = k - s + 1 if ceil_mode else k  # ceil_mode takes an image that is less than a stride too small
        if surely_less(n + 2 * p, least):
            raise ValueError(f'an image of shape {tuple(shape)} is smaller than the pooling window {kernel}')
        pads.append((p, _padding_above(n, k, s, p) if ceil_mode else p))
    return Windows(kernel, strides, tuple(pads))


def _padding_above(n: int, kernel: int, stride: int, pad: int) -> int:
    """The padding at the end of an axis that ceil_mode needs for its last window."""
    if not is_concrete(n):
        raise ValueError(f'ceil_mode=True needs an image of known size; export it with a number in place of {n}')
    out = -(-(n + 2 * pad - kernel) // stride) + 1
    if (out - 1) * stride >= n + pad:  # a window may not start in the padding at the end
        out -= 1
    return max(0, (out - 1) * stride + kernel - n - pad)


def _counts(x: jax.Array, windows: Windows, padding: Pair, include_pad: bool) -> jax.Array:
    """How many positions each window counts: (1, H', W', 1)."""
    counted = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    if include_pad:  # but not what ceil_mode adds
        counted = jnp.pad(counted, ((0, 0), *((p, p) for p in padding), (0, 0)), constant_values=1)
        added = [(0, high - p) for (_, high), p in zip(windows.padding, padding, strict=True)]
        return native_sum_pool(counted, windows._replace(padding=tuple(added)))
    return native_sum_pool(counted, windows)
