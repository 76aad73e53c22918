"""A run's images are part of what it is: they are recorded where it begins, and it goes on with no others.

data.json        what the images come from, the classes' names, how many images there are, a digest of names and sizes
data_files.json  of files, class -> name -> bytes: read only to say what differs
bad_images.txt   what config.bad_images = 'skip' left out
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from train.data.source import DataError, Dataset
from train.files import replace_file

logger = logging.getLogger('train')

IDENTITY, FILES, BAD = 'data.json', 'data_files.json', 'bad_images.txt'
DIGEST = 'sha256'  # of the rest of the file: a flipped bit is not taken for another image
EXAMPLES = 3

FileNames = dict[str, dict[str, int]]
"""Class -> name -> bytes."""


def check(workdir: Path, data: Dataset) -> None:
    """Sees to it that a run that goes on does so with the images that it began with; writes nothing.

    Raises:
      DataError: they are others; says which, and what to do.
    """
    recorded = _read(workdir / IDENTITY)
    if recorded is None:
        logger.warning('%s is not there or damaged: these images are taken for those of the run', workdir / IDENTITY)
    elif recorded != data.identity():
        raise DataError(_refusal(workdir, recorded, data))


def record(workdir: Path, data: Dataset) -> None:
    """Writes down what a run's images are, where that is not written yet."""
    present = data.identity()
    if _read(workdir / IDENTITY) == present and (workdir / FILES).exists():
        return
    if data.bad:
        replace_file(workdir / BAD, ''.join(map(_line, data.bad)))
    _write(workdir / FILES, {'classes': data.files()})
    _write(workdir / IDENTITY, present)


def differences(old: dict[str, Any], new: dict[str, Any], old_files: FileNames, new_files: FileNames) -> list[str]:
    """What differs between two identities of data sets, a line each; the files may be unknown: {}."""
    if old['kind'] != new['kind']:
        return [f'they were {old["kind"]} and are {new["kind"]}']
    lines = _classes(old['class_names'], new['class_names'], old_files, new_files)
    before, after = (
        {name: size for kind in old_files.keys() & new_files.keys() for name, size in files[kind].items()}
        for files in (old_files, new_files)
    )
    changed = [name for name in before.keys() & after.keys() if before[name] != after[name]]
    lines += _count('added', after.keys() - before.keys())
    lines += _count('removed', before.keys() - after.keys())
    lines += _count('changed in size', changed)
    return lines or [
        f'{side}: {old[side]["images"]:,} images before and {new[side]["images"]:,} now, not all the same'
        for side in ('train', 'held_out')
        if old[side] != new[side]
    ]


def _refusal(workdir: Path, recorded: dict[str, Any], data: Dataset) -> str:
    files = (_read(workdir / FILES) or {'classes': {}})['classes']
    lines = differences(recorded, data.identity(), files, data.files())
    weights = workdir / 'weights.safetensors'
    start = f', which --config.init_from={weights} starts from the weights of this one' if weights.exists() else ''
    return (
        f'the images are not those that the run in {workdir} began with, so it cannot go on. What differs:\n  '
        + '\n  '.join(lines)
        + f'\nPut them back as they were, or begin another run with another --workdir{start}.'
    )


def _classes(old: list[str], new: list[str], old_files: FileNames, new_files: FileNames) -> list[str]:
    """What became of the classes; one whose files are all found in a new class has been renamed."""
    removed, added = sorted(set(old) - set(new)), sorted(set(new) - set(old))
    lines = []
    for name in list(removed):
        contents = _contents(old_files.get(name, {}))
        renamed = next((other for other in added if contents and _contents(new_files.get(other, {})) == contents), None)
        if renamed is not None:
            lines.append(f'class {name!r} is called {renamed!r} now')
            removed.remove(name)
            added.remove(renamed)
    lines += [f'{_classes_named(removed)} removed'] if removed else []
    lines += [f'{_classes_named(added)} added'] if added else []
    return lines


def _classes_named(names: list[str]) -> str:
    more = f' and {len(names) - EXAMPLES:,} more' if len(names) > EXAMPLES else ''
    return f'class{"es" if len(names) > 1 else ""} ' + ', '.join(map(repr, names[:EXAMPLES])) + more


def _contents(files: dict[str, int]) -> list[tuple[str, int]]:
    return sorted((Path(name).name, size) for name, size in files.items())


def _count(what: str, names: Iterable[str]) -> list[str]:
    names = sorted(names)
    if not names:
        return []
    return [f'{len(names):,} image{"s" if len(names) > 1 else ""} {what}, such as {", ".join(names[:EXAMPLES])}']


def _line(fault: str) -> str:
    """A line of a text file; a file's name may hold anything but NUL."""
    return fault.encode(errors='backslashreplace').decode().replace('\n', r'\n') + '\n'


def _write(path: Path, values: dict[str, Any]) -> None:
    replace_file(path, json.dumps({**values, DIGEST: _digest(values)}, indent=1) + '\n')


def _read(path: Path) -> dict[str, Any] | None:
    """What `_write` wrote; None if that is not there."""
    try:
        values = json.loads(path.read_bytes())
        whole = values.pop(DIGEST) == _digest(values)
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return None
    return values if whole else None


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
