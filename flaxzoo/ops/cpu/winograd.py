"""Winograd's convolution F(2, 3): 4 products for two pixels where the plain sum over three taps takes 6.

An axis of the image is cut in tiles of four pixels that overlap by two, and a tile and the taps that meet it are
transformed, to four points each. There a convolution is one product a point. Along both axes that makes 16 products for
four pixels, where a 3x3 kernel's plain sum takes 36. An axis of one tap is left alone. All constants are 0, 1 and 1/2,
so the float32 rounding is that of the plain convolution. Paper: https://arxiv.org/abs/1509.09308.

Where gradients are computed too all points are one array and their products one batched product: as an array and a
product each, they take LLVM four times as long to compile. In evaluation, which has fewer convolutions to compile, they
are an array and a product each: whole networks are 5 to 16% faster so.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxzoo.ops.cpu.products import product
from flaxzoo.ops.kept import kept
from flaxzoo.ops.pairs import Pair

# By the number of taps of an axis. IMAGE: the points of a tile's pixels. KERNEL: the points of the taps. RESULT: the
# pixels of the result of the products at the points.
IMAGE = {
    1: np.array([[1]]),
    3: np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
}
KERNEL = {
    1: np.array([[1]]),
    3: np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
}
RESULT = {
    1: np.array([[1]]),
    3: np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
}


def winograd_conv(x: jax.Array, kernel: jax.Array, padding: Pair, flipped: bool = False) -> jax.Array:
    """The convolution of stride 1 of `x: (N, H, W, C)` with `kernel: (kh, kw, C, O)` of one or three taps an axis.

    `flipped` means the kernel flipped in height and width, given as (kh, kw, O, C).
    """
    taps = kernel.shape[:2]
    sizes = [size + 2 * pad - n + 1 for size, pad, n in zip(x.shape[1:3], padding, taps, strict=True)]
    weights = _kernel_matrix(taps, flipped).astype(kernel.dtype) @ kernel.reshape(taps[0] * taps[1], -1)
    weights = weights.reshape(-1, *kernel.shape[2:])
    products = lax.dot_general(_image_points(x, padding, taps), weights, (((2,), (2 if flipped else 1,)), ((0,), (0,))))
    products = products.reshape(*(len(IMAGE[n]) for n in taps), len(x), *_tiles(sizes, taps), -1)
    return _result(products, sizes, taps)


def unrolled_winograd_conv(x: jax.Array, kernel: jax.Array, padding: Pair) -> jax.Array:
    """`winograd_conv` with an array and a product for each point."""
    taps = kernel.shape[:2]
    sizes = [size + 2 * pad - n + 1 for size, pad, n in zip(x.shape[1:3], padding, taps, strict=True)]
    weights = _kernel_matrix(taps).astype(kernel.dtype) @ kernel.reshape(taps[0] * taps[1], -1)
    weights = weights.reshape(len(IMAGE[taps[0]]), len(IMAGE[taps[1]]), *kernel.shape[2:])
    x = _padded(x, padding, taps)
    rows, columns = (
        [slice(i, i + (count - 1) * len(RESULT[n]) + 1, len(RESULT[n])) for i in range(len(IMAGE[n][0]))]
        for count, n in zip(_tiles(sizes, taps), taps, strict=True)
    )
    points = _both_ways(IMAGE, [[x[:, row, column] for column in columns] for row in rows], taps)
    products = [[product(pixels, weights[i, j]) for j, pixels in enumerate(row)] for i, row in enumerate(points)]
    return _result(products, sizes, taps)


def winograd_kernel_gradient(x: jax.Array, cotangent: jax.Array, padding: Pair, taps: Pair) -> jax.Array:
    """Its gradient with respect to the kernel, (*taps, C, O), for `cotangent: (N, H', W', O)`."""
    pixels, cotangents = _image_points(x, padding, taps), _result_points(cotangent, taps)
    gradients = lax.dot_general(pixels, cotangents, (((1,), (1,)), ((0,), (0,))))
    channels = gradients.shape[1:]
    gradient = _kernel_matrix(taps).T.astype(x.dtype) @ gradients.reshape(len(gradients), -1)
    return gradient.reshape(*taps, *channels)


def _kernel_matrix(taps: Pair, flipped: bool = False) -> np.ndarray:
    """What all taps of a kernel are multiplied by for all its points, (points, taps)."""
    down, across = (KERNEL[n][:, :: -1 if flipped else 1] for n in taps)
    return np.kron(down, across)


def _image_points(x: jax.Array, padding: Pair, taps: Pair) -> jax.Array:
    """The transformed tiles of the padded image: (points, N * tiles, C)."""
    sizes = [size + 2 * pad - n + 1 for size, pad, n in zip(x.shape[1:3], padding, taps, strict=True)]
    return _points([IMAGE[n] for n in taps], kept(_padded(x, padding, taps)), _tiles(sizes, taps), taps)


def _padded(x: jax.Array, padding: Pair, taps: Pair) -> jax.Array:
    """The image with its padding, and zeros up to whole tiles."""
    sizes = [size + 2 * pad - n + 1 for size, pad, n in zip(x.shape[1:3], padding, taps, strict=True)]
    axes = zip(_tiles(sizes, taps), taps, padding, x.shape[1:3], strict=True)
    pads = [(pad, (count - 1) * len(RESULT[n]) + len(IMAGE[n][0]) - pad - size, 0) for count, n, pad, size in axes]
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))


def _result_points(cotangent: jax.Array, taps: Pair) -> jax.Array:
    """The cotangents of the products: (points, N * tiles, O)."""
    tiles = _tiles(cotangent.shape[1:3], taps)
    axes = zip(tiles, taps, cotangent.shape[1:3], strict=True)
    more = [(0, count * len(RESULT[n]) - size) for count, n, size in axes]
    cotangent = kept(jnp.pad(cotangent, ((0, 0), *more, (0, 0))))
    return _points([RESULT[n].T for n in taps], cotangent, tiles, taps)


def _points(matrices: Sequence[np.ndarray], x: jax.Array, tiles: Pair, taps: Pair) -> jax.Array:
    """The tiles of `x`, of each axis as many as `tiles` says, multiplied by a matrix of each axis."""
    for axis, (matrix, count, n) in enumerate(zip(matrices, tiles, taps, strict=True)):
        step, place = len(RESULT[n]), 1 + 2 * axis
        pixels = [lax.slice_in_dim(x, i, i + (count - 1) * step + 1, step, place) for i in range(matrix.shape[1])]
        x = jnp.stack([_combined(row, pixels) for row in matrix], axis)
    return x.reshape(x.shape[0] * x.shape[1], -1, x.shape[-1])


def _result(products: Sequence[Sequence[jax.Array]], sizes: Pair, taps: Pair) -> jax.Array:
    """The result (N, *sizes, O) of the products (N, tiles down, tiles across, O) at all points."""
    pixels = _both_ways(RESULT, products, taps)
    y = jnp.stack([jnp.stack(row, 3) for row in pixels], 2)  # (N, rows, 2, columns, 2, O), or 1 for 2
    y = y.reshape(len(y), y.shape[1] * y.shape[2], y.shape[3] * y.shape[4], -1)
    return y[:, : sizes[0], : sizes[1]]


def _both_ways(
    matrices: dict[int, np.ndarray], grid: Sequence[Sequence[jax.Array]], taps: Pair
) -> list[list[jax.Array]]:
    """A grid of arrays whose rows, and then its columns, are multiplied by the matrices of their axes."""
    down, across = (matrices[n] for n in taps)
    rows = [[_combined(signs, list(line)) for signs in across] for line in grid]
    return [[_combined(signs, list(column)) for column in zip(*rows, strict=True)] for signs in down]


def _tiles(sizes: Pair, taps: Pair) -> list[int]:
    """How many tiles an axis of the result has: one for two pixels, or a pixel each if it has one tap."""
    return [-(-size // len(RESULT[n])) for size, n in zip(sizes, taps, strict=True)]


def _combined(signs: np.ndarray, arrays: Sequence[jax.Array]) -> jax.Array:
    """The sum of `arrays`, each times 1, 0 or -1."""
    first, *others = sorted((int(sign) == -1, i) for i, sign in enumerate(signs) if sign)  # those to add before others
    total = -arrays[first[1]] if first[0] else arrays[first[1]]
    for negative, i in others:
        total = total - arrays[i] if negative else total + arrays[i]
    return total


# Seven taps as the tiles of three places that they meet. A place without a tap saves products, because the first and
# the last point see only the first and the last place: 10 products in place of 14 for two pixels.
SEVEN = np.array([[0, 1, 2], [-1, 3, -1], [4, 5, 6]])


def long_row_conv(x: jax.Array, kernel: jax.Array, padding: Pair, flipped: bool = False) -> jax.Array:
    """The convolution of stride 1 of `x: (N, H, W, C)` with `kernel: (1, 7, C, O)`, or flipped (1, 7, O, C).

    At each point a convolution along the tiles, since the taps meet three of them. A batched product would need the
    pixels of each of the three in memory.
    """
    weights = kernel[0, ::-1].swapaxes(1, 2) if flipped else kernel[0]
    width = x.shape[2] + 2 * padding[1] - 6
    tiles = -(-width // 2)
    more = 2 * (tiles + 3) - x.shape[2] - padding[1]
    x = kept(
        lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (padding[0],) * 2 + (0,), (padding[1], more, 0), (0, 0, 0)))
    )
    pixels = [x[:, :, i : i + 2 * tiles + 3 : 2] for i in range(4)]  # of each place, those of all tiles and two more
    products = []
    for image, taps in zip(IMAGE[3], KERNEL[3], strict=True):
        met = [places for places in SEVEN if any(tap >= 0 and taps[i] for i, tap in enumerate(places))]
        matrices = [sum(float(taps[i]) * weights[tap] for i, tap in enumerate(places) if tap >= 0) for places in met]
        rows = _combined(image, pixels)
        y = lax.conv_general_dilated(
            rows.reshape(-1, *rows.shape[2:]),
            jnp.stack(matrices),
            (1,),
            'VALID',
            rhs_dilation=(2 if len(met) == 2 else 1,),
            dimension_numbers=('NWC', 'WIO', 'NWC'),
        )
        products.append(y[:, :tiles])
    y = jnp.stack([_combined(row, products) for row in RESULT[3]], 2)
    return y.reshape(*x.shape[:2], 2 * tiles, -1)[:, :, :width]
