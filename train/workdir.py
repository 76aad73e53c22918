"""A run's directory: whose it is, and what it holds.

config.json   metrics.jsonl   weights.safetensors   report.png   checkpoints/STEP   tensorboard/

It belongs to a run from the first step on, when config.json is written. What a run needs before is the lock (.lock); it
and what a killed run was writing (.NAME.tmp) are nobody's, and the next run clears them.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ml_collections import ConfigDict

from flaxzoo.weights.lock import UNSUPPORTED, try_lock
from train.config import differences, from_json, to_json
from train.errors import UserError
from train.files import replace_file

logger = logging.getLogger('train')


class WorkdirError(UserError):
    """A directory that this run must not or cannot write to, or that holds no run."""


def check(workdir: Path, config: ConfigDict) -> None:
    """Raises WorkdirError if `workdir` holds something else than a run of this config."""
    try:
        if (workdir / 'config.json').exists():
            differing = differences(_read(workdir), to_json(config))
            if differing:
                raise WorkdirError(
                    f'{workdir} holds a run of another config; use another --workdir. What differs:\n  '
                    + '\n  '.join(differing)
                )
        elif workdir.exists() and (not workdir.is_dir() or not all(map(_is_nobodys, workdir.iterdir()))):
            raise WorkdirError(f'{workdir} is not empty and holds no run (no config.json); use another --workdir')
    except OSError as error:
        raise WorkdirError(f'{workdir} cannot be used: {error.strerror or error}') from error


class Workdir:
    """A run's directory while this process works in it."""

    def __init__(self, path: Path, lock: IO) -> None:
        self.path, self._lock = path, lock

    def begin(self, config: ConfigDict) -> None:
        """Makes the directory that of a run of this config."""
        replace_file(self.path / 'config.json', json.dumps(to_json(config), indent=2) + '\n')

    @property
    def is_there(self) -> bool:
        """Whether the path still names the directory that was claimed, and not another one or none."""
        try:
            return os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self.path / '.lock'))
        except FileNotFoundError:
            return False

    def check_there(self) -> None:
        """Raises WorkdirError if the directory was removed or replaced since it was claimed."""
        if not self.is_there:
            raise WorkdirError('it was removed or replaced while the run was at work in it')


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[Workdir]:
    """Keeps other runs out of the directory `path` while this one works in it; makes it if need be.

    The lock is the system's, so that of a killed process is gone with it. A directory in which no run began is removed
    again if this made it.

    Raises:
      WorkdirError: another run works in it, or it cannot be written to.
    """
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / '.lock').open('w')
    except OSError as error:
        raise WorkdirError(f'{path} cannot be written to: {error.strerror}') from error
    with lock:
        try:
            if not try_lock(lock.fileno()):
                raise WorkdirError(f'another process is at work in {path}')
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            logger.warning('%s: this file system has no locks, so nothing keeps a second run out of it', path)
        else:
            _clear(path)
        workdir = Workdir(path, lock)
        try:
            yield workdir
        finally:
            if made and workdir.is_there and not (path / 'config.json').exists():
                with contextlib.suppress(OSError):
                    (path / '.lock').unlink()
                    path.rmdir()


def record(workdir: Path) -> dict[str, Any]:
    """The config of the run in `workdir` as it was recorded; empty if there is none."""
    return _read(workdir) if (workdir / 'config.json').exists() else {}


def read_config(workdir: Path) -> ConfigDict:
    """The config of the run in `workdir`."""
    if not (workdir / 'config.json').exists():
        raise WorkdirError(f'{workdir} holds no run (no config.json)')
    return from_json(_read(workdir))


def _read(workdir: Path) -> dict[str, Any]:
    path = workdir / 'config.json'
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise WorkdirError(f'{path} cannot be read: {error.strerror}') from error
    except ValueError:  # of JSON or of its encoding
        values = None
    if not isinstance(values, dict) or not values:
        raise WorkdirError(
            f'{path} is damaged: it is not the JSON object that a run writes. The checkpoints are as they were: to go '
            'on from them, start the same command with another --workdir, stop it after its first step and copy its '
            'config.json here'
        )
    return values


def _clear(workdir: Path) -> None:
    """Removes what killed runs were writing."""
    for left in [*workdir.glob('.*.tmp'), *(workdir / 'checkpoints').glob('*.orbax-checkpoint-tmp*')]:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _is_nobodys(path: Path) -> bool:
    return path.name == '.lock' or (path.name.startswith('.') and path.name.endswith('.tmp'))
