"""The headers of all image files, read once before a run begins, so that a bad one is not met hours later."""

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flaxzoo.images import ImageError, check_header
from train.data.folder import Files
from train.data.source import DataError, Dataset

logger = logging.getLogger('train')

SHOWN = 20  # in a message
THREADS = 8  # Python runs one at a time, but slow disks are waited for together
PART = 256  # files; a task a file would take longer than to read its header


def checked(data: Dataset, bad_images: str) -> Dataset:
    """The data set without the files whose format, size or mode is not one that can be read.

    Args:
      bad_images: the config's: 'fail' or 'skip'.

    Raises:
      DataError: with 'fail', there are such files; with 'skip', they are all there is of a class to learn from, or of
        what is held out.
    """
    # Arrays are decoded; records were checked when they were prepared.
    sides = {name: side for name in ('train', 'held_out') if isinstance(side := getattr(data, name), Files)}
    faults = {name: _faults(side) for name, side in sides.items()}
    bad = tuple(fault for side in faults.values() for fault in side.values())
    if not bad:
        return data
    count = f'{len(bad):,} of {sum(map(len, sides.values())):,} image files cannot be read'
    listed = '\n'.join(f'  {fault}' for fault in bad[:SHOWN]) + ('\n  ...' if len(bad) > SHOWN else '')
    if bad_images == 'fail':
        raise DataError(f"{count}; remove them, or config.bad_images = 'skip' leaves them out:\n{listed}")
    logger.warning('%s and are left out:\n%s', count, listed)
    data = dataclasses.replace(data, bad=bad, **{name: _without(side, faults[name]) for name, side in sides.items()})
    for label in sorted(set(range(len(data.class_names))) - set(data.train.labels)):
        raise DataError(f'no image of class {data.class_names[label]!r} is left to learn from')
    return data


def _faults(files: Files) -> dict[int, str]:
    """Index -> what is wrong with that file."""
    parts = [range(len(files))[start : start + PART] for start in range(0, len(files), PART)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda part: [(index, _fault(files.path(index))) for index in part], parts)
        return {index: fault for part in found for index, fault in part if fault}


def _fault(path: Path) -> str:
    """What is wrong with a file; empty for an image."""
    try:
        check_header(path)
    except ImageError as error:
        return str(error)
    except OSError as error:
        return f'{path} cannot be read: {error.strerror or error}'
    return ''


def _without(files: Files, faults: dict[int, str]) -> Files:
    good = [index for index in range(len(files)) if index not in faults]
    if not good:
        raise DataError(f'none of the {len(files):,} images below {files.root} can be read')
    return files.only(good)
