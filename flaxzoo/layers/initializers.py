"""Initialisers with torch's distributions, drawn in blocks of one size.

Compiling a random number generator takes far longer than running it, and jax compiles it anew for each shape. Blocks
of one size need it once, whatever the shapes: see `flaxzoo.init`. The numbers are the same under jit.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from flaxzoo.ops._jax import is_traced

Initializer = Callable[..., jax.Array]  # (key, shape, dtype) -> array

BLOCK = 2**14
STANDARD = {
    'normal': jax.random.normal,
    'uniform': partial(jax.random.uniform, minval=-1, maxval=1),
}


def normal(stddev: float) -> Initializer:
    """N(0, stddev^2), torch's `normal_`."""
    return partial(_scaled, 'normal', lambda shape: stddev)


def uniform(bound: float) -> Initializer:
    """U(-bound, bound), torch's `uniform_`."""
    return partial(_scaled, 'uniform', lambda shape: bound)


def variance_scaling(scale: float, mode: str, distribution: str) -> Initializer:
    """Variance scale / fan, with the fan of a kernel (..., I, O): `mode` is 'fan_in' or 'fan_out'.

    `distribution` is 'normal' or 'uniform'. Torch's `kaiming_normal_`, `kaiming_uniform_` and `xavier_uniform_`.
    """

    def size(shape: Sequence[int]) -> float:
        fan = math.prod(shape[:-2]) * shape[{'fan_in': -2, 'fan_out': -1}[mode]]
        return math.sqrt(scale / fan * {'normal': 1, 'uniform': 3}[distribution])

    return partial(_scaled, distribution, size)


def _scaled(
    distribution: str, size: Callable, key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    """Numbers of the standard distribution times `size(shape)`."""
    count = math.prod(shape)
    blocks = range(-(-count // BLOCK))
    if is_traced(key):
        drawn = jax.vmap(partial(_block, distribution), (None, 0))(key, jnp.arange(len(blocks))).ravel()
    else:
        drawn = np.concatenate([_block(distribution, key, block) for block in blocks])
    return jnp.asarray((drawn[:count] * np.float32(size(shape))).reshape(shape), dtype)


@partial(jax.jit, static_argnums=0)
def _block(distribution: str, key: jax.Array, block: int) -> jax.Array:
    """The numbers of a block: (BLOCK,)."""
    return STANDARD[distribution](jax.random.fold_in(key, block), (BLOCK,), jnp.float32)
