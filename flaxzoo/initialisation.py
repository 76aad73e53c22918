"""The variables of a network, without compiling the network."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def init(model: nn.Module, key: jax.Array, x: Any = None, **kwargs: Any) -> dict[str, Any]:
    """What `model.init(key, x)` gives, in a fraction of the time: nothing but the parameters is computed.

    Args:
      model: a network of `flaxzoo.create`, or any other whose initialisers do not depend on the values of `x`.
      key: `jax.random.key(seed)`.
      x: an image, or anything with its shape and dtype; of the size that the network was designed for if not given.
      kwargs: for the call of the model.

    Returns:
      {'params'} and, if the network has them, {'batch_stats'}: arrays in float32. The numbers are those of
      `model.init`, up to rounding.
    """
    if x is None:
        x = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
    found = {}

    def forward(x: jax.Array) -> None:
        # What does not depend on the traced image, the parameters, is computed now.
        with jax.ensure_compile_time_eval():
            found.update(model.init(key, x, **kwargs))

    jax.eval_shape(forward, x)
    return found
