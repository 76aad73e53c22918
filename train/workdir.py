"""A run's directory: whose it is, and what it holds.

config.json   metrics.jsonl   report.png   checkpoints/STEP   tensorboard/
"""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from train.config import differences, from_json, to_json
from train.errors import UserError
from train.records import replace_file


class WorkdirError(UserError):
    """A directory that this run must not write to, or that holds no run."""


def check(workdir: Path, config: ConfigDict) -> None:
    """Raises WorkdirError if `workdir` holds something else than a run of this config."""
    if (workdir / 'config.json').exists():
        differing = differences(_read(workdir), to_json(config))
        if differing:
            raise WorkdirError(
                f'{workdir} holds a run of another config; use another --workdir. What differs:\n  '
                + '\n  '.join(differing)
            )
    elif workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise WorkdirError(f'{workdir} is not empty and holds no run (no config.json); use another --workdir')


@contextlib.contextmanager
def claimed(workdir: Path, config: ConfigDict) -> Iterator[None]:
    """Makes `workdir` that of this config and keeps other runs out while this one works in it.

    The lock is the system's, so that of a killed process is gone with it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / '.lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkdirError(f'another process is at work in {workdir}') from None
        replace_file(workdir / 'config.json', json.dumps(to_json(config), indent=2) + '\n')
        yield


def record(workdir: Path) -> dict[str, Any]:
    """The config of the run in `workdir` as it was recorded; empty if there is none."""
    return _read(workdir) if (workdir / 'config.json').exists() else {}


def read_config(workdir: Path) -> ConfigDict:
    """The config of the run in `workdir`."""
    if not (workdir / 'config.json').exists():
        raise WorkdirError(f'{workdir} holds no run (no config.json)')
    return from_json(_read(workdir))


def _read(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / 'config.json').read_text())
