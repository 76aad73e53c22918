"""Augmentation and normalisation on the device, batch-wise inside the compiled step, on uint8.

What makes photographs of several sizes equal happens where they are loaded, see train/data/crop.py.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def augment(keys: jax.Array, images: jax.Array, pad: int, flip: bool) -> jax.Array:
    """Shifts by up to `pad` pixels over black and mirrors half of the images, each by its own key.

    Args:
      keys: (N,), a key an image, so that the result does not depend on how a batch is split over devices.
      images: (N, H, W, C).
    """
    height, width, channels = images.shape[1:]
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        crop_key, flip_key = jax.random.split(key)
        if pad:
            top, left = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
            image = lax.dynamic_slice(image, (top, left, 0), (height, width, channels))
        if flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        return image

    return jax.vmap(one)(keys, padded)


def normalise(images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: jnp.dtype) -> jax.Array:
    """(images / 255 - mean) / std, a channel, in `dtype`: the computation's dtype is that of its input."""
    wide = jnp.promote_types(dtype, jnp.float32)
    images = images.astype(wide) / 255
    return ((images - jnp.asarray(mean, wide)) / jnp.asarray(std, wide)).astype(dtype)
