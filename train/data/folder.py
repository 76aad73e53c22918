"""A directory of class directories of image files: your own photographs."""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from train.data.listing import SUFFIXES, LeftOut, class_directories, image_files
from train.data.source import DataError, Dataset, Example, View, decode, whole

logger = logging.getLogger('train')

HELD_OUT = ('val', 'validation', 'test')
HELD_OUT_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Files:
    """A source of files, read when they are asked for.

    Attributes:
      root: of the data set.
      names: relative to it.
      sizes: in bytes, when they were listed.
    """

    root: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    labels: tuple[int, ...]
    exif_orientation: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        return self.read(index, whole)

    def read(self, index: int, view: View) -> Example:
        image = decode(self.path(index), view=view, exif_orientation=self.exif_orientation)
        return {'image': image, 'label': self.labels[index]}

    def path(self, index: int) -> Path:
        return self.root / self.names[index]

    def files(self) -> Iterable[tuple[int, str, int]]:
        return zip(self.labels, self.names, self.sizes, strict=True)

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for label, name, size in self.files():
            digest.update(f'{label} {size} '.encode() + os.fsencode(name) + b'\0')
        return {'images': len(self), 'sha256': digest.hexdigest()}

    def only(self, indices: Iterable[int]) -> 'Files':
        """Those at `indices`."""
        names, sizes, labels = zip(*((self.names[i], self.sizes[i], self.labels[i]) for i in indices), strict=True)
        return dataclasses.replace(self, names=names, sizes=sizes, labels=labels)


Listed = dict[str, list[tuple[str, int]]]
"""Class -> its files' names, relative to the data set, and bytes."""


def open_folder(path: str, exif_orientation: bool = False) -> Dataset:
    """PATH/CLASS/*.jpg, or PATH/train/CLASS/*.jpg with PATH/val (validation, test) beside it.

    Class directories may have directories in them. What is found and not taken is logged, in one line.

    Without a directory of held-out images a tenth of each class is held out, chosen by a hash of the file's name, so
    that added files do not move others from one side to the other by much.

    Raises:
      DataError: a directory is missing, holds no class or an empty one, or the two sides have other classes.
    """
    root, left_out = Path(path).expanduser(), LeftOut()
    if not root.is_dir():
        raise DataError(f'there is no directory {root}')
    if (root / 'train').is_dir():
        held_out = next((name for name in HELD_OUT if (root / name).is_dir()), None)
        if held_out is None:
            raise DataError(f'{root} has a train directory but none of {", ".join(HELD_OUT)}')
        train, test = (_classes(root, side, left_out) for side in ('train', held_out))
        if train.keys() != test.keys():
            odd = ', '.join(sorted(train.keys() ^ test.keys()))
            raise DataError(f'{root / "train"} and {root / held_out} have different classes: {odd}')
    else:
        train, test = _split(_classes(root, '', left_out))
    if left_out.counts:
        logger.warning('%s: left out %s', root, left_out)
    sides = (_files(root, side, exif_orientation) for side in (train, test))
    return Dataset(*sides, tuple(train), 'folder')


def _classes(root: Path, side: str, left_out: LeftOut) -> Listed:
    """The classes in a directory of the data set, sorted."""
    names = class_directories(root / side, left_out)
    if not names:
        raise DataError(f'{root / side} holds no class directories')
    classes = {}
    for name in names:
        below = os.path.join(side, name)
        files = image_files(root / below, left_out)
        if not files:
            others = f'; left out so far: {left_out}' if left_out.counts else ''
            raise DataError(f'the class directory {root / below} holds no image ({", ".join(SUFFIXES)}){others}')
        classes[name] = [(os.path.join(below, file), size) for file, size in files]
    return classes


def _split(classes: Listed) -> tuple[Listed, Listed]:
    train, held_out = {}, {}
    for name, files in classes.items():
        if len(files) < 2:
            raise DataError(f'class {name!r} has one image; it takes two, one to learn from and one to hold out')
        # The name within the class: what the data set and the class are called does not matter.
        by_hash = sorted(files, key=lambda file: hashlib.sha256(os.fsencode(file[0].partition('/')[2])).digest())
        chosen = set(by_hash[: max(1, round(len(files) * HELD_OUT_SHARE))])
        held_out[name] = [file for file in files if file in chosen]
        train[name] = [file for file in files if file not in chosen]
    return train, held_out


def _files(root: Path, classes: Listed, exif_orientation: bool) -> Files:
    rows = [(name, size, label) for label, files in enumerate(classes.values()) for name, size in files]
    names, sizes, labels = zip(*rows, strict=True)
    return Files(root, names, sizes, labels, exif_orientation)
