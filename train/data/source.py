"""What a set of labelled images is to the training program."""

import dataclasses
import io
from collections.abc import Callable
from typing import Protocol, TypedDict

import numpy as np
from PIL import Image

from train.errors import UserError


class DataError(UserError):
    """Images that are missing, broken or not as they should be."""


class Example(TypedDict):
    """image: uint8 (H, W, C), C 1 or 3; label: the index of the class."""

    image: np.ndarray
    label: int


View = Callable[[Image.Image, str], np.ndarray]
"""(image that is opened but not decoded, 'RGB' or 'L') -> what is wanted of it: uint8 (H, W, C)."""


class Source(Protocol):
    """Labelled images by index, in an order that never changes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """The whole image."""

    def read(self, index: int, view: View) -> Example:
        """A view of the image, which decodes no more of a file than it takes."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images to learn from, images held out, and the names of the classes in the labels' order."""

    train: Source
    held_out: Source
    class_names: tuple[str, ...]


def whole(image: Image.Image, mode: str) -> np.ndarray:
    """All pixels of an image: uint8 (H, W, C), three channels for 'RGB' and one for 'L'."""
    pixels = np.asarray(converted(image, mode))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def converted(image: Image.Image, mode: str) -> Image.Image:
    """The decoded image in `mode`; itself where it is, since Pillow would copy it."""
    return image if image.mode == mode else image.convert(mode)


def decode(encoded: bytes, name: str, mode: str = 'RGB', view: View = whole) -> np.ndarray:
    """A view of a JPEG or PNG file's bytes, or all of it: uint8 (H, W, C), channels as `mode` says, 'RGB' or 'L'.

    Raises:
      DataError: the bytes are no whole image; says `name`.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return view(image, mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f'{name} is not a readable image: {error}') from error
