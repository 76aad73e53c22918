"""What a set of labelled images is to the training program."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
from PIL import Image

from flaxzoo import images
from train.errors import UserError


class DataError(UserError):
    """Images that are missing, broken or not as they should be."""


class BadImageError(DataError):
    """One image that cannot be read; config.bad_images says what follows."""


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
        """A view of the image, which decodes no more of a file than it takes.

        Raises:
          BadImageError: it is no image; says which. Another DataError: it is not to be had.
        """

    def identity(self) -> dict[str, Any]:
        """What tells these images from others, as JSON values; their number is `images`."""

    def files(self) -> Iterable[tuple[int, str, int]]:
        """(label, name, bytes) of each image that is a file, the name relative to the data set; none of others."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images to learn from, images held out, and the names of the classes in the labels' order.

    Attributes:
      kind: what the images come from, without the place where they lie.
      bad: what was left out because it cannot be read, a line each.
    """

    train: Source
    held_out: Source
    class_names: tuple[str, ...]
    kind: str = ''
    bad: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What a run of these images must find when it goes on, as JSON; the same wherever they lie."""
        sides = {'train': self.train.identity(), 'held_out': self.held_out.identity()}
        return {'kind': self.kind, 'class_names': list(self.class_names), **sides}

    def files(self) -> dict[str, dict[str, int]]:
        """Class -> name of a file -> its bytes."""
        files: dict[str, dict[str, int]] = {name: {} for name in self.class_names}
        for label, name, size in itertools.chain(self.train.files(), self.held_out.files()):
            files[self.class_names[label]][name] = size
        return files


def whole(image: Image.Image, mode: str) -> np.ndarray:
    """All pixels of an image: uint8 (H, W, C), three channels for 'RGB' and one for 'L'."""
    pixels = np.asarray(images.converted(image, mode))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def as_image(pixels: np.ndarray) -> tuple[Image.Image, str]:
    """What a View takes, of uint8 (H, W, C)."""
    grey = pixels.shape[-1] == 1
    return Image.fromarray(pixels[..., 0] if grey else pixels), 'L' if grey else 'RGB'


def decode(
    file: bytes | Path, name: str = '', mode: str = 'RGB', view: View = whole, exif_orientation: bool = False
) -> np.ndarray:
    """A view of an image file, or all of it: uint8 (H, W, C), channels as `mode` says, 'RGB' or 'L'.

    Args:
      file: a path, or the file's bytes.
      name: for messages; of a path, itself.

    Raises:
      BadImageError: it is no whole image, or must not be read.
      DataError: a file that was there is gone, or its disk fails.
    """
    try:
        with images.opened(file, name, exif_orientation) as image:
            return view(image, mode)
    except images.ImageError as error:
        raise BadImageError(str(error)) from error
    except OSError as error:
        kind = BadImageError if isinstance(error, PermissionError) else DataError
        raise kind(f'{name or file} cannot be read: {error.strerror or error}') from error
