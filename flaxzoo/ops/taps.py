"""The pixels that each tap of a sliding window meets: what a convolution or a pooling layer is a sum or maximum of."""

import jax
import jax.numpy as jnp
from jax import lax

from flaxzoo.ops.kept import kept
from flaxzoo.ops.native import Geometry
from flaxzoo.ops.pairs import Pair


def taps(
    x: jax.Array,
    kernel: Pair,
    stride: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair = (1, 1),
    fill: float = 0.0,
) -> list[jax.Array]:
    """For each position in the window, row by row, the pixels of `x: (N, H, W, C)` that it meets: (N, H', W', C).

    `padding` has (low, high) of height and width, and is filled with `fill`.
    """
    if padding != ((0, 0), (0, 0)):
        rows, columns = padding
        # Without keeping it XLA would take the taps that meet no padding from `x`, and compute or keep `x` too.
        x = kept(lax.pad(x, jnp.asarray(fill, x.dtype), ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0))))
    rows, columns = (
        [slice(i * d, size - (k - 1 - i) * d, s) for i in range(k)]
        for size, k, d, s in zip(x.shape[1:3], kernel, dilation, stride, strict=True)
    )
    return [x[:, row, column] for row in rows for column in columns]


def taps_of(x: jax.Array, kernel_shape: tuple[int, ...], geometry: Geometry) -> list[jax.Array]:
    """The taps of a convolution."""
    padding = tuple((p, p) for p in geometry.padding)
    return taps(x, kernel_shape[:2], geometry.stride, padding, geometry.dilation)
