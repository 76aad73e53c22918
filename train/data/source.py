"""What a set of labelled images is to the training program."""

import dataclasses
import io
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


class Source(Protocol):
    """Labelled images by index, in an order that never changes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images to learn from, images held out, and the names of the classes in the labels' order."""

    train: Source
    held_out: Source
    class_names: tuple[str, ...]


def decode(encoded: bytes, name: str, mode: str = 'RGB') -> np.ndarray:
    """A JPEG or PNG file's bytes as uint8 (H, W, C), three channels for 'RGB' and one for 'L'.

    Raises:
      DataError: the bytes are no whole image; says `name`.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            pixels = np.asarray(image.convert(mode))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f'{name} is not a readable image: {error}') from error
    return pixels[..., None] if pixels.ndim == 2 else pixels
