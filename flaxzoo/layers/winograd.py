"""Winograd's convolution F(2x2, 3x3): 16 products for four pixels where the plain sum takes 36.

The image is cut in tiles of 4x4 pixels that overlap by two. In the transformed space a tile is convolved by 16 products
of matrices, each of a quarter of the pixels. All constants are 0, 1 and 1/2, so its float32 rounding is that of
the plain convolution. Paper: https://arxiv.org/abs/1509.09308.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from flaxzoo.layers.products import product, transposed_product
from flaxzoo.layers.taps import Pair

Grid = list[list[jax.Array]]


def winograd_conv(x: jax.Array, kernel: jax.Array, padding: Pair, transpose: bool = False) -> jax.Array:
    """The 3x3 convolution of stride 1 of `x: (N, H, W, C)` with `kernel: (3, 3, C, O)`.

    With `transpose` the kernel is (3, 3, O, C).
    """
    height, width = (size + 2 * pad - 2 for size, pad in zip(x.shape[1:3], padding, strict=True))
    weights = _both_ways(_kernel, [[kernel[i, j] for j in range(3)] for i in range(3)])
    pairs = zip(_flat(_image_tiles(x, padding)), _flat(weights), strict=True)
    products = [product(pixels, weight, transpose) for pixels, weight in pairs]
    quarters = _both_ways(_result, [products[i : i + 4] for i in range(0, 16, 4)])
    y = jnp.stack([jnp.stack(row, 3) for row in quarters], 2)  # (N, rows, 2, columns, 2, O)
    y = y.reshape(len(x), 2 * y.shape[1], 2 * y.shape[3], -1)
    return y[:, :height, :width]


def winograd_kernel_gradient(x: jax.Array, cotangent: jax.Array, padding: Pair) -> jax.Array:
    """Its gradient with respect to the kernel, (3, 3, C, O), for `cotangent: (N, H', W', O)`."""
    y = _pad(cotangent, *((0, size % 2) for size in cotangent.shape[1:3]))
    tiles = _both_ways(_cotangent, [[y[:, i::2, j::2] for j in range(2)] for i in range(2)])
    pairs = zip(_flat(_image_tiles(x, padding)), _flat(tiles), strict=True)
    products = [transposed_product(pixels, tile) for pixels, tile in pairs]
    taps = _both_ways(_kernel_cotangent, [products[i : i + 4] for i in range(0, 16, 4)])
    return jnp.stack([jnp.stack(row) for row in taps])


def _image_tiles(x: jax.Array, padding: Pair) -> Grid:
    """The transformed tiles: 4x4 arrays (N, rows, columns, C), one for each place in the tile."""
    outputs = [size + 2 * pad - 2 for size, pad in zip(x.shape[1:3], padding, strict=True)]
    x = _pad(x, *((pad, pad + size % 2) for pad, size in zip(padding, outputs, strict=True)))
    rows, columns = (
        [slice(i, i + size + size % 2 - 1, 2) for i in range(4)] for size in outputs
    )  # of the pixels at place i in all tiles
    return _both_ways(_image, [[x[:, row, column] for column in columns] for row in rows])


def _image(d: list) -> list:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _kernel(g: list) -> list:
    ends = g[0] + g[2]
    return [g[0], (ends + g[1]) / 2, (ends - g[1]) / 2, g[2]]


def _result(m: list) -> list:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _cotangent(y: list) -> list:
    """The transpose of `_result`."""
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _kernel_cotangent(m: list) -> list:
    """The transpose of `_kernel`."""
    half = (m[1] + m[2]) / 2
    return [m[0] + half, (m[1] - m[2]) / 2, half + m[3]]


def _both_ways(transform: Callable[[list], list], grid: Grid) -> Grid:
    """A transform of the rows of a grid of arrays, then of its columns."""
    columns = zip(*map(transform, grid), strict=True)
    return [list(row) for row in zip(*(transform(list(column)) for column in columns), strict=True)]


def _flat(grid: Grid) -> list[jax.Array]:
    return [array for row in grid for array in row]


def _pad(x: jax.Array, rows: Pair, columns: Pair) -> jax.Array:
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)))
