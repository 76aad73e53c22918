"""A run's directory: whose it is, and what it holds.

config.json   metrics.jsonl   report.png   checkpoints/STEP   tensorboard/
"""

import json
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


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes `workdir` that of this config."""
    workdir.mkdir(parents=True, exist_ok=True)
    replace_file(workdir / 'config.json', json.dumps(to_json(config), indent=2) + '\n')


def read_config(workdir: Path) -> ConfigDict:
    """The config of the run in `workdir`."""
    if not (workdir / 'config.json').exists():
        raise WorkdirError(f'{workdir} holds no run (no config.json)')
    return from_json(_read(workdir))


def _read(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / 'config.json').read_text())
