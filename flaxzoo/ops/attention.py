"""Scaled dot-product attention, plain, with a bias and within windows, as torch computes it."""

import math
from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from flaxzoo.ops.pairs import Pair


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float | jax.Array | None = None,
    bias: jax.Array | None = None,
    drop: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """softmax(q k^T * scale + bias) v: (..., heads, L, D) and twice (..., heads, S, D) -> (..., heads, L, D).

    The products are in the dtype of `q`, logits and softmax in float32 or wider. (`jax.nn.dot_product_attention` has
    a softmax in float32 also for float64. On the CPU its gradient takes 1.4 to 2 times as long.)

    Args:
      scale: a number, D ** -0.5 by default, or an array that broadcasts to the logits (..., heads, L, S).
      bias: broadcasts to the logits.
      drop: applied to the attention weights.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum('...qd,...kd->...qk', q, k, preferred_element_type=wide) * scale
    if bias is not None:
        logits = logits + bias
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    if drop:
        weights = drop(weights)
    return jnp.einsum('...qk,...kd->...qd', weights, v)


def partition(x: jax.Array, window: Pair) -> jax.Array:
    """Cuts `x: (N, H, W, C)` into windows that tile it, row by row: (N, windows, pixels of a window, C)."""
    (n, height, width, channels), (h, w) = x.shape, window
    # A reshape an axis: of an image that lies over an explicit mesh no other is supported.
    x = x.reshape(n, height // h, h, width, channels).reshape(n, height // h, h, width // w, w, channels)
    x = x.swapaxes(2, 3).reshape(n, (height // h) * (width // w), h, w, channels)
    return x.reshape(n, x.shape[1], h * w, channels)


def reverse(windows: jax.Array, window: Pair, size: Pair) -> jax.Array:
    """The inverse of `partition` for an image of `size` (height, width)."""
    (height, width), (h, w), (n, count, _, channels) = size, window, windows.shape
    x = windows.reshape(n, count, h, w, channels).reshape(n, height // h, width // w, h, w, channels)
    x = x.swapaxes(2, 3).reshape(n, height, width // w, w, channels)
    return x.reshape(n, height, width, channels)


@lru_cache
def shift_mask(size: Pair, window: Pair, shift: Pair) -> np.ndarray:
    """What keeps apart pixels that a cyclic shift brings together: 0 or -100, (windows, 1, pixels, pixels), float32.

    After an image of `size` is rolled by -`shift`, its last windows hold pixels of opposite borders.
    """

    def regions(length: int, w: int, s: int) -> np.ndarray:
        """Along an axis: 0, then 1 from the last window on, then 2 where the other border's pixels are."""
        position = np.arange(length)
        return (position >= length - w).astype(np.int32) + (position >= length - s) if s else np.zeros(length, np.int32)

    rows, columns = (regions(*axis) for axis in zip(size, window, shift, strict=True))
    region = 3 * rows[:, None] + columns
    (height, width), (h, w) = size, window
    region = region.reshape(height // h, h, width // w, w).swapaxes(1, 2).reshape(-1, 1, h * w)
    return np.where(region[..., :, None] == region[..., None, :], 0, -100).astype(np.float32)


@lru_cache
def relative_positions(window: Pair) -> np.ndarray:
    """For every pair of a window's pixels the row of its table of relative positions: (pixels ** 2,) of int32.

    The table has a row for each difference of two pixels' places, (2 * height - 1) * (2 * width - 1) in all.
    """
    rows, columns = (places.ravel() for places in np.indices(window))
    down, across = rows[:, None] - rows, columns[:, None] - columns
    index = (down + window[0] - 1) * (2 * window[1] - 1) + across + window[1] - 1
    return index.ravel().astype(np.int32)  # int64 fails as an index where x64 is on in one trace and off in the next


@lru_cache
def log_spaced_positions(window: Pair) -> np.ndarray:
    """Swin v2's coordinates of the rows of a table of relative positions: (1, 2 height - 1, 2 width - 1, 2), float32.

    Differences are scaled to [-8, 8], then spaced by their logarithm: sign(d) log2(1 + |d|) / 3.
    """
    axes = [np.arange(1 - size, size, dtype=np.float32) / np.float32(max(size - 1, 1)) for size in window]
    places = np.stack(np.meshgrid(*axes, indexing='ij'), -1)[None] * np.float32(8)
    return np.sign(places) * np.log2(np.abs(places) + 1) / np.float32(3)


def resize_positions(table: np.ndarray, tokens: int, prefix: int = 1) -> np.ndarray:
    """The table of a square grid's positions for another square grid: (1, prefix + a * a, C) -> (1, tokens, C).

    Bicubic with the corners aligned, as torchvision's `interpolate_embeddings`. The first `prefix` rows, those of a
    class token, stay as they are. The result is float32.
    """
    before, after = (math.isqrt(rows - prefix) for rows in (table.shape[1], tokens))
    grid = table[0, prefix:].reshape(before, before, -1).astype(np.float64)
    weights = _bicubic(before, after)
    grid = np.einsum('ih,jw,hwc->ijc', weights, weights, grid, optimize=True).reshape(1, after * after, -1)
    return np.concatenate([table[:, :prefix], grid.astype(np.float32)], axis=1)


def is_square(count: int) -> bool:
    """Whether so many positions make a square grid."""
    return math.isqrt(count) ** 2 == count


def _bicubic(before: int, after: int) -> np.ndarray:
    """Torch's weights (after, before) of bicubic interpolation with aligned corners; its kernel has a = -0.75."""
    a = -0.75
    place = np.arange(after) * ((before - 1) / (after - 1) if after > 1 else 0.0)
    first = np.floor(place).astype(int)
    weights = np.zeros((after, before))
    for tap in range(-1, 3):
        d = np.abs(place - first - tap)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        np.add.at(weights, (np.arange(after), np.clip(first + tap, 0, before - 1)), np.where(d <= 1, near, far))
    return weights
