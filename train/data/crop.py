"""What is cut out of a photograph, and its size: the geometry that is done where images are loaded.

Photographs differ in size, so what makes them equal (a random resized crop, or resize and centre crop) happens here;
everything after that is done batch-wise inside the compiled step, see train/augment.py.
"""

import math
import random

import numpy as np
from PIL import Image

from flaxzoo import images
from train.data.jpeg import decode_first_rows
from train.data.source import whole

RATIO = (3 / 4, 4 / 3)  # width / height of a random resized crop, as in Inception's training and torchvision
LOG_RATIO = tuple(math.log(ratio) for ratio in RATIO)

Box = tuple[int, int, int, int]  # left, top, right, bottom, as Pillow's


def resized_centre(
    image: Image.Image, mode: str, size: int, resize: int, interpolation: str = 'bilinear'
) -> np.ndarray:
    """Resizes the shorter side to `resize` pixels and cuts the centre, as torchvision: uint8 (size, size, C)."""
    return whole(images.resized_centre(images.converted(image, mode), resize, size, interpolation), mode)


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
    return whole(images.converted(image, mode).resize((size, size), Image.Resampling.BILINEAR, part), mode)
