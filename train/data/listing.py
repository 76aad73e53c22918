"""The image files below a directory, as torchvision's ImageFolder finds them, and word of what is not taken."""

import collections
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from train.data.source import DataError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')  # torchvision's IMG_EXTENSIONS


class LeftOut:
    """What was met and not taken: reason -> how often, and the first."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.first: dict[str, str] = {}

    def add(self, reason: str, path: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, path)

    def __str__(self) -> str:
        """'3 of other kinds (such as cat/a.gif), 1 dot file (...)'; empty if nothing was."""
        return ', '.join(f'{count:,} {reason} (such as {self.first[reason]})' for reason, count in self.counts.items())


def class_directories(root: Path, left_out: LeftOut) -> list[str]:
    """The names of the directories in `root` but hidden ones, sorted."""
    names = []
    for entry, found in _entries(root, left_out):
        if stat.S_ISDIR(found.st_mode):
            names.append(entry.name)
        else:
            left_out.add('beside the class directories', entry.path)
    return sorted(names)


def image_files(directory: Path, left_out: LeftOut) -> list[tuple[str, int]]:
    """(name relative to `directory`, bytes) of the image files in it and below, in torchvision's order.

    Only regular files, or links to such, count, and none whose name begins with a dot.
    """
    files, below, seen = [], [''], {_identity(os.stat(directory))}
    while below:
        here = below.pop()
        for entry, found in _entries(directory / here, left_out):
            if stat.S_ISDIR(found.st_mode) and _identity(found) not in seen:
                seen.add(_identity(found))
                below.append(os.path.join(here, entry.name))
            elif stat.S_ISDIR(found.st_mode):
                left_out.add('links to a directory that was met before', entry.path)
            elif not stat.S_ISREG(found.st_mode):
                left_out.add('neither file nor directory', entry.path)
            elif not entry.name.lower().endswith(SUFFIXES):
                left_out.add('of other kinds', entry.path)
            else:
                files.append((here, entry.name, found.st_size))
    return [(os.path.join(here, name), size) for here, name, size in sorted(files)]


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _entries(directory: Path, left_out: LeftOut) -> Iterator[tuple[os.DirEntry, os.stat_result]]:
    """What a directory holds but hidden files and dead links, sorted, with what links lead to."""
    try:
        with os.scandir(directory) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f'{directory} cannot be listed: {error.strerror}') from error
    for entry in entries:
        if entry.name.startswith('.'):
            left_out.add('hidden', entry.path)
            continue
        try:
            found = entry.stat()
        except OSError:
            left_out.add('links that lead nowhere', entry.path)
            continue
        yield entry, found
