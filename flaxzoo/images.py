"""Image files, and how their pixels become 8-bit RGB or grey: one decoder for training, evaluation and prediction.

The pixels are those of torchvision's ImageFolder, that is of Pillow's `convert('RGB')`, but for 16-bit greys:

| what a file holds | what is made of it |
|---|---|
| a format | found by its content, whatever the name says; one of FORMATS, none of which starts a program |
| 16-bit greys | the high byte, as Pillow takes of 16-bit colours; `convert` would make all above 255 white |
| 12-bit greys, or 16-bit ones whose zero is white (TIFF) | the high 8 bits, and black is 0 |
| 32-bit integers, floating-point pixels | refused, because their range is not known |
| 1, 2 or 4 bits, a palette, CMYK, YCbCr, Lab | 8-bit RGB by Pillow |
| alpha, a transparent colour | dropped; the colour that it hides shows |
| an animation, several pages | the first |
| EXIF orientation | not applied unless asked for; a TIFF's always is, by Pillow |
| damaged scan data of a JPEG | what libjpeg makes of it, without a word |
| more pixels than Pillow allows, 2 x PIL.Image.MAX_IMAGE_PIXELS | refused |
"""

import contextlib
import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')
LARGEST_FILE = 2**31  # bytes; 1.4e9 are the pixels that Pillow allows, in 8 bytes each

# A longer edge of more than so many shorter ones is cut before it is resized.
LONGEST = 64

# Where it is, in EXIF and TIFF.
BITS, PHOTOMETRIC, ORIENTATION = 258, 262, 274
WHITE_IS_ZERO = 0

# What Pillow raises for a file that is not as it should be; its warnings too, where they are made errors.
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    LookupError,
    TypeError,
    ArithmeticError,
    EOFError,
    AttributeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)


class ImageError(ValueError):
    """A file that is no image that can be read; says which and why."""


@contextlib.contextmanager
def opened(file: bytes | str | os.PathLike, name: str = '', exif_orientation: bool = False) -> Iterator[Image.Image]:
    """An image that is opened but not decoded, in a `with` block in which it is.

    Args:
      file: a path, or an image file's bytes.
      name: for messages; of a path, itself.
      exif_orientation: turn it as its EXIF data say; an image that is turned is decoded.

    Raises:
      ImageError: it is no whole image of FORMATS, or too large; also for what goes wrong in the block.
      OSError: the file itself cannot be read.
    """
    name = name or (str(Path(file)) if not isinstance(file, bytes) else 'the image')
    encoded = file if isinstance(file, bytes) else _contents(Path(file), name)
    with _named(name), _identified(io.BytesIO(encoded)) as image:
        yield upright(image) if exif_orientation else image


def check_header(path: Path) -> None:
    """Raises ImageError or OSError if a file is none that `opened` takes; reads no more of it than its header."""
    _check_file(path, str(path))
    with path.open('rb') as file, _named(str(path)), _identified(file) as image:
        _check_depth(image)


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; itself, and not decoded, where that is as it is stored."""
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except UNREADABLE:  # damaged EXIF data say nothing
        turned = False
    return ImageOps.exif_transpose(image) if turned else image


def converted(image: Image.Image, mode: str) -> Image.Image:
    """The decoded image in `mode`, 'RGB' or 'L'; itself where it is, since Pillow would copy it.

    Raises:
      ImageError: it has neither 8 nor 16 bits a channel.
    """
    if image.mode == mode:
        return image
    if _is_wide(image):
        image = _high_bits(image)
    elif image.mode == 'P' and isinstance(image.info.get('transparency'), bytes):
        image = image.convert('RGBA')  # the same colours, and no warning
    return image.convert(mode)


def resized_centre(image: Image.Image, resize: int, crop: int, interpolation: str) -> Image.Image:
    """torchvision's Resize(resize) and CenterCrop(crop), in memory that does not grow with the aspect ratio.

    Args:
      image: in 'RGB' or 'L'.
      resize: pixels of the shorter edge; the longer one keeps the proportion, rounded down.
      crop: pixels of the square that is cut out, at most `resize`.
      interpolation: nearest, bilinear, bicubic or lanczos, antialiased where the image shrinks.
    """
    short = min(image.size)
    size = tuple(resize if edge == short else int(resize * edge / short) for edge in image.size)
    left, top = (round((edge - crop) / 2) for edge in size)
    method = Image.Resampling[interpolation.upper()]
    if max(size) > LONGEST * resize:
        # Resized as a whole, 8000 x 1 pixels would be 2,048,000 x 256. Pillow rounds the box to float32, so a few of
        # the pixels differ by a level.
        across, down = (edge / new for edge, new in zip(image.size, size, strict=True))
        box = (left * across, top * down, (left + crop) * across, (top + crop) * down)
        return image.resize((crop, crop), method, box)
    if size != image.size:
        image = image.resize(size, method)
    return image.crop((left, top, left + crop, top + crop))


def _contents(path: Path, name: str) -> bytes:
    _check_file(path, name)
    return path.read_bytes()


def _check_file(path: Path, name: str) -> None:
    """A FIFO would be waited for without end, and /dev/zero has no end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ImageError(f'{name} is not a readable image: it is no regular file')
    if found.st_size > LARGEST_FILE:
        raise ImageError(f'{name} is not a readable image: it has {found.st_size:,} bytes, at most {LARGEST_FILE:,} do')


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        reason = str(error) or type(error).__name__
        raise ImageError(f'{name} is not a readable image: {reason}') from error


def _identified(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        start = file.read(8)
        if not start:
            raise ImageError('it is empty') from None
        raise ImageError(
            f'it is none of {", ".join(FORMATS)}, or its header is damaged; it begins with {start!r}'
        ) from None


def _is_wide(image: Image.Image) -> bool:
    return image.mode == 'F' or image.mode.startswith('I')


def _check_depth(image: Image.Image) -> None:
    if not _is_wide(image) or image.mode.startswith('I;16'):
        return
    if image.mode == 'I' and image.format in ('PNG', 'PPM'):  # Pillow gives their 16 bits in 32
        return
    what = 'floating-point pixels' if image.mode == 'F' else '32 bits a channel'
    raise ImageError(f'expected 8 or 16 bits a channel, got {what}, whose range is not known')


def _high_bits(image: Image.Image) -> Image.Image:
    """Greys of more than 8 bits by their highest 8."""
    _check_depth(image)
    tags = getattr(image, 'tag_v2', {})  # a TIFF's
    values = np.asarray(image) >> (tags.get(BITS, (16,))[0] - 8)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = 255 - values
    return Image.fromarray(values.astype(np.uint8))
