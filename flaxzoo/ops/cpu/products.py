"""Products of pixels and matrices, in the forms that XLA's CPU backend computes fastest."""

import jax
import jax.numpy as jnp
from jax import lax

from flaxzoo.ops.kept import kept


def product(x: jax.Array, matrix: jax.Array, transpose: bool = False) -> jax.Array:
    """`x: (N, ..., C)` times `matrix: (C, O)`, or times the transpose of `matrix: (O, C)`: (N, ..., O).

    In float32 it is written as a one-dimensional convolution, because of matrix products XLA makes calls of YNNPACK.
    Alone neither is always the faster (`python -m benchmarks.levers 'product*'`).
    """
    rows = _in_parts(x, matrix.size // x.shape[-1])
    if transpose and matrix.size * rows.shape[2] > rows.size:
        # More weights than pixels: transposing the matrix in memory would take longer.
        y = lax.dot_general(rows, matrix, (((2,), (1,)), ((), ())))
    else:
        matrix = matrix.T if transpose else matrix
        if x.dtype == jnp.float32:
            y = lax.conv_general_dilated(rows, matrix[None], (1,), 'VALID', dimension_numbers=('NWC', 'WIO', 'NWC'))
        else:
            y = rows @ matrix
    return y.reshape(*x.shape[:-1], -1)


def transposed_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """The sum over all pixels of `x: (N, ..., C)` times `y: (N, ..., O)`: (C, O)."""
    rows, columns = _in_parts(x, y.shape[-1]), _in_parts(y, x.shape[-1])
    # The first factor gets transposed in memory, so it is the narrower one.
    if rows.shape[2] <= columns.shape[2]:
        return _total(jnp.einsum('npc,npo->nco', rows, columns))
    total = _total(jnp.einsum('npo,npc->noc', columns, rows))
    # XLA would make one product of the product and its transpose, and transpose the wider one. That is right if the
    # result is larger than the difference.
    return (kept(total) if total.size < x.size - y.size else total).T


def _in_parts(x: jax.Array, others: int) -> jax.Array:
    """(N, ..., C) -> (2, pixels, C), or (1, pixels, C) if N is odd or a second matrix of C * others costs too much.

    Convolutions need three axes, and matrix products keep a leading one unless it is of length 1. With the same shape
    for both, XLA computes an x that both read, such as a ReLU, once.
    """
    channels = x.shape[-1]
    pixels = x.size // channels
    cheap = 8 * channels * others <= pixels * (channels + others)
    return x.reshape(2 if cheap and len(x) % 2 == 0 else 1, -1, channels)


def _total(parts: jax.Array) -> jax.Array:
    """The sum over the first axis; not `parts.sum(0)`, of which XLA makes a slow call of YNNPACK."""
    return parts[0] + parts[1] if len(parts) == 2 else parts[0]
