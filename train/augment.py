"""Augmentation and normalisation: geometry of whole photographs on the host, the rest on the device.

Photographs differ in size, so what makes them equal (a random resized crop, or resize and centre crop) happens where
they are loaded. Everything after that is done batch-wise inside the compiled step, on uint8.
"""

import math
import random
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from PIL import Image

from train.data.jpeg import decode_first_rows
from train.data.source import converted, whole

RATIO = (3 / 4, 4 / 3)  # width / height of a random resized crop, as in Inception's training and torchvision
LOG_RATIO = tuple(math.log(ratio) for ratio in RATIO)

Box = tuple[int, int, int, int]  # left, top, right, bottom, as Pillow's


def resize_and_crop(image: np.ndarray, size: int, resize: int, interpolation: str = 'bilinear') -> np.ndarray:
    """Resizes the shorter side to `resize` pixels and cuts the centre: (H, W, C) -> (size, size, C), uint8."""
    height, width = image.shape[:2]
    scale = resize / min(height, width)
    image = _resize(image, round(height * scale), round(width * scale), interpolation)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    if top < 0 or left < 0:
        raise ValueError(f'a crop of {size} pixels does not fit an image resized to {resize}')
    return image[top : top + size, left : left + size]


def random_crop_box(height: int, width: int, scale: tuple[float, float], rng: random.Random) -> Box:
    """A random part of an image at a random aspect ratio.

    As torchvision's RandomResizedCrop: the area is uniform in `scale` of the image's, the logarithm of the ratio
    uniform in that of `RATIO`; after ten misfits the largest centred part of an allowed ratio is taken.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(*LOG_RATIO))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.randrange(height - h + 1), rng.randrange(width - w + 1)
            return left, top, left + w, top + h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    top, left = (height - h) // 2, (width - w) // 2
    return left, top, left + w, top + h


def resized_crop(image: Image.Image, mode: str, box: Box, size: int) -> np.ndarray:
    """A part of an image, decoded or not, at another size: uint8 (size, size, C), C 3 for 'RGB' and 1 for 'L'.

    Bilinear with antialiasing, cut and resized in one go, so that at the part's border the filter sees the pixels
    beyond it; elsewhere the pixels are torchvision's but for rounding. Of a JPEG file the rows below the part are not
    decoded, and a part that is at least 2, 4 or 8 times `size` both ways is decoded at a half, a quarter or an eighth
    of its resolution, so that it still has `size` pixels; these then differ by a few levels.
    """
    left, top, right, bottom = box
    shrink = max((d for d in (2, 4, 8) if d * size <= min(right - left, bottom - top)), default=1)
    # The filter reaches as far as one pixel of the result, and the decoder's interpolation two of its own.
    decode_first_rows(image, bottom + -(-(bottom - top) // size) + 2 * shrink)
    width, height = image.size
    drafted = image.draft(None, (width // shrink, height // shrink))  # only JPEG is
    divisor = width / drafted[1][2] if drafted else 1
    part = tuple(edge / divisor for edge in box)
    return whole(converted(image, mode).resize((size, size), Image.Resampling.BILINEAR, part), mode)


def _resize(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """PIL's interpolation of that name, with antialiasing; (H, W, C) of 1 or 3 channels."""
    if image.shape[:2] == (height, width):
        return image
    squeezed = image[..., 0] if image.shape[-1] == 1 else image
    resized = np.asarray(Image.fromarray(squeezed).resize((width, height), Image.Resampling[interpolation.upper()]))
    return resized[..., None] if resized.ndim == 2 else resized


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
