"""A directory of class directories of JPEG or PNG files: your own photographs."""

import dataclasses
import hashlib
from pathlib import Path

from train.data.source import DataError, Dataset, Example, View, decode, whole

SUFFIXES = ('.jpg', '.jpeg', '.png')
HELD_OUT = ('val', 'validation', 'test')
HELD_OUT_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Files:
    """A source of files, read when they are asked for."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        return self.read(index, whole)

    def read(self, index: int, view: View) -> Example:
        path = self.paths[index]
        return {'image': decode(path.read_bytes(), str(path), view=view), 'label': self.labels[index]}


def open_folder(path: str) -> Dataset:
    """PATH/CLASS/*.jpg, or PATH/train/CLASS/*.jpg with PATH/val (validation, test) beside it.

    Without a directory of held-out images a tenth of each class is held out, chosen by a hash of the file's name, so
    that added files do not move others from one side to the other by much.

    Raises:
      DataError: a directory is missing, holds no class or an empty one, or the two sides have other classes.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f'there is no directory {root}')
    if not (root / 'train').is_dir():
        return _split(_classes(root))
    held_out = next((root / name for name in HELD_OUT if (root / name).is_dir()), None)
    if held_out is None:
        raise DataError(f'{root} has a train directory but none of {", ".join(HELD_OUT)}')
    train, test = _classes(root / 'train'), _classes(held_out)
    if train.keys() != test.keys():
        odd = ', '.join(sorted(train.keys() ^ test.keys()))
        raise DataError(f'{root / "train"} and {held_out} have different classes: {odd}')
    return Dataset(_files(train), _files(test), tuple(train))


def _classes(root: Path) -> dict[str, list[Path]]:
    """Class name -> its image files, both sorted."""
    directories = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith('.'))
    if not directories:
        raise DataError(f'{root} holds no class directories')
    classes = {}
    for directory in directories:
        files = sorted(p for p in directory.iterdir() if p.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(f'the class directory {directory} holds no image ({", ".join(SUFFIXES)})')
        classes[directory.name] = files
    return classes


def _split(classes: dict[str, list[Path]]) -> Dataset:
    train, held_out = {}, {}
    for name, files in classes.items():
        if len(files) < 2:
            raise DataError(f'class {name!r} has one image; it takes two, one to learn from and one to hold out')
        by_hash = sorted(files, key=lambda p: hashlib.sha256(p.name.encode()).digest())
        count = max(1, round(len(files) * HELD_OUT_SHARE))
        held_out[name], train[name] = sorted(by_hash[:count]), sorted(by_hash[count:])
    return Dataset(_files(train), _files(held_out), tuple(classes))


def _files(classes: dict[str, list[Path]]) -> Files:
    pairs = [(path, label) for label, files in enumerate(classes.values()) for path in files]
    return Files(tuple(p for p, _ in pairs), tuple(label for _, label in pairs))
