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


def trunc_normal(stddev: float) -> Initializer:
    """Torch's `trunc_normal_`, which cuts at -2 and 2 whatever `stddev` is: N(0, stddev^2) without its far tails.

    Raises:
      ValueError: `stddev` is above 0.25; smaller ones do not reach the bounds, eight standard deviations away.
    """
    if stddev > 0.25:
        raise ValueError(f'the bounds -2 and 2 would cut off numbers of a standard deviation above 0.25, got {stddev}')
    return normal(stddev)


def variance_scaling(scale: float, mode: str, distribution: str) -> Initializer:
    """Variance scale / fan, with the fan of a kernel (..., I, O): `mode` is 'fan_in', 'fan_out' or 'fan_avg', the mean.

    `distribution` is 'normal' or 'uniform'. Torch's `kaiming_normal_`, `kaiming_uniform_` and `xavier_uniform_`.
    """

    def size(shape: Sequence[int]) -> float:
        fans = {'fan_in': shape[-2], 'fan_out': shape[-1], 'fan_avg': (shape[-2] + shape[-1]) / 2}
        fan = math.prod(shape[:-2]) * fans[mode]
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


xavier_uniform = variance_scaling(1.0, 'fan_avg', 'uniform')
