"""Winograd's convolution F(2, 3): 4 products for two pixels where the plain sum over three taps takes 6.

An axis of the image is cut in tiles of four pixels that overlap by two, and a tile and the taps that meet it are
transformed, to four points each. There a convolution is one product a point. Along both axes that makes 16 products for
four pixels, where a 3x3 kernel's plain sum takes 36.

More than three taps meet the next tiles too, whose products are added: 7 products in place of 10 for five taps, 10 in
place of 14 for seven. Two taps take 3 in place of 4. An axis of one tap is left alone. All constants are 0, 1 and 1/2,
so the float32 rounding is that of the plain convolution. Paper: https://arxiv.org/abs/1509.09308.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from flaxzoo.ops.cpu.dense import row_conv, wide_conv
from flaxzoo.ops.cpu.products import product, transposed_product
from flaxzoo.ops.native import Geometry
from flaxzoo.ops.pairs import Pair

# A list for each point of the rows, with an array for each point of the columns.
Grid = list[list[jax.Array]]

# By the number of taps of an axis: those that meet the three places of a tile, those that meet the next tile, ...
# Places without a tap save products, because the first and the last point see only the first and the last place.
TAPS = {
    1: ((0,),),
    2: ((0, 1, None),),
    3: ((0, 1, 2),),
    5: ((0, 1, 2), (None, 3, 4)),
    7: ((0, 1, 2), (None, 3, None), (4, 5, 6)),
}


def winograd_conv(x: jax.Array, kernel: jax.Array, padding: Pair, transpose: bool = False) -> jax.Array:
    """The convolution of stride 1 of `x: (N, H, W, C)` with `kernel: (kh, kw, C, O)`, whose axes are among `TAPS`.

    With `transpose` the kernel is (kh, kw, O, C).
    """
    taps = kernel.shape[:2]
    if taps[0] > taps[1] == 1:  # a column: with the image on its side the products are one-dimensional convolutions
        return winograd_conv(x.swapaxes(1, 2), kernel.swapaxes(0, 1), padding[::-1], transpose).swapaxes(1, 2)
    sizes = tuple(size + 2 * pad - n + 1 for size, pad, n in zip(x.shape[1:3], padding, taps, strict=True))
    height, width = _tiles(sizes, taps)

    def conv(pixels, weights, met):
        down, across = met
        pixels = pixels[:, : height + down[-1], : width + across[-1]]
        if weights.shape[:2] == (1, 1):
            return product(pixels, weights[0, 0], transpose)
        dilation = tuple(tiles[1] if len(tiles) > 1 else 1 for tiles in met)
        lowering = row_conv if len(down) == 1 else wide_conv
        weights = weights.swapaxes(2, 3) if transpose else weights
        return lowering(pixels, weights, geometry=Geometry(dilation=dilation))

    products = jax.tree.map(conv, _image_points(x, padding, taps), _kernel_points(kernel), _tiles_met(taps))
    return _image_of(products, sizes, taps)


def winograd_kernel_gradient(x: jax.Array, cotangent: jax.Array, padding: Pair, taps: Pair) -> jax.Array:
    """Its gradient with respect to the kernel, (*taps, C, O), for `cotangent: (N, H', W', O)`."""
    sizes, met = cotangent.shape[1:3], _tiles_met(taps)
    height, width = _tiles(sizes, taps)
    like = jax.ShapeDtypeStruct((len(x), height, width, cotangent.shape[3]), cotangent.dtype)
    to_image = partial(_image_of, sizes=sizes, taps=taps)
    (cotangents,) = jax.linear_transpose(to_image, [[like for _ in row] for row in met])(cotangent)

    def gradient(pixels, cotangent, met):
        down, across = met
        products = [
            [transposed_product(pixels[:, i : i + height, j : j + width], cotangent) for j in across] for i in down
        ]
        return jnp.stack([jnp.stack(row) for row in products])

    gradients = jax.tree.map(gradient, _image_points(x, padding, taps), cotangents, met)
    kernel = jax.ShapeDtypeStruct((*taps, x.shape[3], cotangent.shape[3]), x.dtype)
    return jax.linear_transpose(_kernel_points, kernel)(gradients)[0]


def _tiles(sizes: Pair, taps: Pair) -> list[int]:
    """How many tiles an axis of the result has: one for two pixels, or a pixel each if it has one tap."""
    return [size if n == 1 else -(-size // 2) for size, n in zip(sizes, taps, strict=True)]


def _tiles_met(taps: Pair) -> list[list[tuple[list[int], list[int]]]]:
    """For each point, which tiles have a product there: how far down and how far across."""
    rows, columns = ([_tiles_at(n, point) for point in range(_points(n))] for n in taps)
    return [[(down, across) for across in columns] for down in rows]


def _tiles_at(taps: int, point: int) -> list[int]:
    """The tiles with a product at a point of an axis: those with a tap that it sees."""
    seen = {0: 0, 3: 2}.get(point, 1)  # inner points see all places, of which the middle one always has a tap
    return [tile for tile, places in enumerate(TAPS[taps]) if places[min(seen, len(places) - 1)] is not None]


def _points(taps: int) -> int:
    """How many points an axis has; two taps have no product at the last one."""
    return {1: 1, 2: 3}.get(taps, 4)


def _image_points(x: jax.Array, padding: Pair, taps: Pair) -> Grid:
    """The transformed tiles, (N, rows, columns, C) at each point."""
    pads, places = [], []
    for size, pad, n in zip(x.shape[1:3], padding, taps, strict=True):
        if n == 1:
            pads.append((pad, pad, 0))
            places.append([slice(None)])
        else:
            span = 2 * (-(-(size + 2 * pad - n + 1) // 2) + len(TAPS[n]) - 1)
            pads.append((pad, span + 2 - pad - size, 0))
            places.append([slice(i, i + span - 1, 2) for i in range(_points(n))])
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    return _both_ways(_image, [[x[:, row, column] for column in places[1]] for row in places[0]], taps)


def _kernel_points(kernel: jax.Array) -> Grid:
    """The transformed taps at each point: those of all tiles with a product there, (tiles down, across, C, O)."""
    return [_points_along(1, row) for row in _points_along(0, kernel)]


def _points_along(axis: int, kernel: jax.Array) -> list[jax.Array]:
    """A kernel's taps of one axis, transformed: at each point one for each tile with a product there."""
    n = kernel.shape[axis]
    taps = jnp.split(kernel, n, axis)
    if n == 1:
        return taps
    tiles = [_kernel([0 if tap is None else taps[tap] for tap in places]) for places in TAPS[n]]
    met = [_tiles_at(n, point) for point in range(_points(n))]
    return [jnp.concatenate([tiles[tile][point] for tile in at], axis) for point, at in enumerate(met)]


def _image_of(points: Grid, sizes: Pair, taps: Pair) -> jax.Array:
    """The result of a convolution, (N, *sizes, O), from its products at all points."""
    pixels = _both_ways(_result, points, taps)
    y = jnp.stack([jnp.stack(row, 3) for row in pixels], 2)  # (N, rows, 2, columns, 2, O), or 1 for 2
    y = y.reshape(len(y), y.shape[1] * y.shape[2], y.shape[3] * y.shape[4], -1)
    return y[:, : sizes[0], : sizes[1]]


def _image(d: list) -> list:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], *(d[1] - last for last in d[3:])]


def _kernel(g: list) -> list:
    ends = g[0] + g[2]
    return [g[0], (ends + g[1]) / 2, (ends - g[1]) / 2, g[2]]


def _result(m: list) -> list:
    return [m[0] + m[1] + m[2], sum((-last for last in m[3:]), m[1] - m[2])]


def _both_ways(transform: Callable[[list], list], grid: Grid, taps: Pair) -> Grid:
    """A transform of the columns of a grid, then of its rows, along the axes of more than one tap."""
    down, across = (transform if n > 1 else lambda points: points for n in taps)
    columns = zip(*map(across, grid), strict=True)
    return [list(row) for row in zip(*(down(list(column)) for column in columns), strict=True)]
