"""The ReLU at the end of a residual block."""

import jax
import jax.numpy as jnp

from flaxzoo.ops.kept import kept
from flaxzoo.ops.lowering import native_only


def kept_relu(x: jax.Array) -> jax.Array:
    """`jax.nn.relu` whose result is `kept`, and whose gradient reads the result, as torch's does.

    For a sum that only this ReLU reads: `jax.nn.relu` would ask the gradient for the sum, which is not in memory and
    would be computed anew from its terms. Where an array before the ReLU is read again anyway, as a norm's is, that
    costs nothing, and `jax.nn.relu` needs the result less.
    """
    return jax.nn.relu(x) if native_only(x) else _kept_relu(x)


@jax.custom_jvp
def _kept_relu(x: jax.Array) -> jax.Array:
    return kept(jnp.maximum(x, 0))


@_kept_relu.defjvp
def _kept_relu_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    y = _kept_relu(x)
    return y, jnp.where(y > 0, tangent, 0)
