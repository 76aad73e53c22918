"""An array that XLA's CPU backend computes once, however many operations read it.

XLA:CPU merges a cheap elementwise operation into every operation that reads it and so computes it anew for each. For
the sum of a residual block, which the next block's convolution and its sum read, that means that the sums of a stage
all read the branches of all blocks before them. `python -m benchmarks.levers 'kept*'` shows what that costs.

`lax.reduce_precision` does not keep an array on XLA:CPU, nor does `lax.optimization_barrier` before jaxlib 0.12: with
either it is computed as often as without.
"""

import jax
import jax.numpy as jnp
from jax import lax

from flaxzoo.ops._jax import linear_primitive
from flaxzoo.ops.lowering import native_only


def kept(x: jax.Array) -> jax.Array:
    """`x`, real, which XLA:CPU keeps in memory. On other platforms, and to derivatives, it is the identity."""
    return x if native_only(x) else kept_p.bind(x)


def divided_by_one(x: jax.Array) -> jax.Array:
    """`x` divided by ones that XLA does not know to be ones, unlike LLVM, which in the end removes the division.

    XLA takes a division for something expensive and does not compute it twice.
    """
    bits = lax.bitcast_convert_type(x, f'int{8 * x.dtype.itemsize}')
    one = jnp.ones((), bits.dtype)
    return lax.div(x, lax.clamp(one, bits, one).astype(x.dtype))


kept_p = linear_primitive('kept', lambda x: x, cpu=divided_by_one)
