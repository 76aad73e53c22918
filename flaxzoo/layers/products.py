"""Products of pixels and matrices, in the forms that XLA's CPU backend computes fastest."""

import jax
import jax.numpy as jnp
from jax import lax


def product(x: jax.Array, matrix: jax.Array, transpose: bool = False) -> jax.Array:
    """`x: (..., C)` times `matrix: (C, O)`, or times the transpose of `matrix: (O, C)`: (..., O).

    In float32 it is written as a one-dimensional convolution: of matrix products XLA makes calls of YNNPACK, which take
    up to 1.7 times as long as what it does with this (`python -m benchmarks.levers 'product*'`).
    """
    rows = x.reshape(-1, x.shape[-1])  # as in `transposed_product`, lest XLA compute x once for each shape
    if transpose and matrix.size > len(rows):
        # Transposing the matrix in memory would take longer.
        y = lax.dot_general(rows, matrix, (((1,), (1,)), ((), ())))
    else:
        matrix = matrix.T if transpose else matrix
        if x.dtype == jnp.float32:
            y = lax.conv_general_dilated(
                rows[None], matrix[None], (1,), 'VALID', dimension_numbers=('NWC', 'WIO', 'NWC')
            )
        else:
            y = rows @ matrix
    return y.reshape(*x.shape[:-1], -1)


def transposed_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """The sum over all pixels of `x: (..., C)` times `y: (..., O)`: (C, O)."""
    rows, columns = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    # The first factor gets transposed in memory, so it is the narrower one.
    return rows.T @ columns if rows.shape[1] <= columns.shape[1] else (columns.T @ rows).T
