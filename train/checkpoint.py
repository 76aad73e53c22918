"""Checkpoints that are whole or not there: asynchronous, atomic (orbax), and verified by a digest when read.

A checkpoint is a directory named by its step. It holds the state as host arrays, so it does not depend on the number
of devices, and a record: what evaluation said, the names of the classes, and a SHA-256 over all arrays and the record,
because a flipped bit in an array file would otherwise be read as a weight.
"""

import hashlib
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from train.errors import UserError


class CheckpointError(UserError):
    """Checkpoints that cannot be used, or a state that must not become one."""


class Checkpoints:
    """The checkpoints in `directory`: the newest `keep` and the best. Use as a context manager: it waits for saves.

    All processes of a run call the same methods in the same order; process 0 writes.
    """

    def __init__(self, directory: Path, keep: int = 3) -> None:
        self.directory, self.keep = directory.absolute(), keep
        self._saving: ocp.AsyncResponse | None = None
        self._scores: dict[int, float | None] = {}  # of the checkpoints whose record was read or written here

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    @property
    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, ascending."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if re.fullmatch(r'\d+', p.name))

    @property
    def best(self) -> int | None:
        """The step with the highest score, the later of equals; None if none was evaluated."""
        for step in set(self.steps) - self._scores.keys():
            self._scores[step] = self._read_score(step)
        scored = [(score, step) for step, score in self._scores.items() if score is not None and step in self.steps]
        return max(scored)[1] if scored else None

    def save(self, state: Any, record: dict[str, Any], score: float | None) -> None:
        """Begins to save host arrays at `state.step`; the one begun before is finished first.

        Args:
          record: JSON values to keep with the state.
          score: higher is better; None if it was not measured.

        Raises:
          CheckpointError: the state holds a NaN or an infinity; nothing is written.
        """
        self.wait()
        _check_finite(state)
        step = int(state.step)
        record = json.loads(json.dumps({**record, 'score': score}))
        self._saving = ocp.save_async(
            self._path(step), state, custom_metadata={**record, 'digest': digest(state, record)}
        )
        self._scores[step] = score

    def wait(self) -> None:
        """Returns when what was begun is on disk, and deletes what need not be kept."""
        if self._saving is None:
            return
        self._saving.result()
        self._saving = None
        kept = {*self.steps[-self.keep :], self.best}
        for step in set(self.steps) - kept:
            self._scores.pop(step, None)
            if jax.process_index() == 0:
                shutil.rmtree(self._path(step))

    def restore(self, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
        """The state and the record of one checkpoint, verified; `target` gives the structure, shapes and dtypes.

        Raises:
          CheckpointError: it is damaged or does not fit; says how.
        """
        path = self._path(step)
        try:
            record = _record(path)
            expected = record.pop('digest')
            state = ocp.load(path, jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), target))
        except Exception as error:  # orbax and tensorstore raise many types for damaged files
            reason = next(iter(str(error).strip().splitlines()), '')[:200]
            raise CheckpointError(f'checkpoint {path} cannot be read: {type(error).__name__}: {reason}') from error
        if digest(state, record) != expected:
            raise CheckpointError(f'checkpoint {path} is damaged: its arrays are not those that were saved')
        return state, record

    def restore_newest(self, target: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest whole checkpoint, or None if there is none at all.

        Damaged newer ones are named in a warning and renamed to `STEP.damaged`, out of the way of the steps to come.

        Raises:
          CheckpointError: there are checkpoints, but none can be used.
        """
        errors = {}
        for step in reversed(self.steps):
            try:
                found = self.restore(step, target)
            except CheckpointError as error:
                errors[step] = error
                continue
            for damaged, error in errors.items():
                warnings.warn(f'{error}; using step {step} before it', stacklevel=2)
                self._move_aside(damaged)
            return found
        if errors:
            raise CheckpointError(
                'none of the checkpoints can be used; move them away to start again:\n'
                + '\n'.join(f'  {error}' for error in errors.values())
            )
        return None

    def read_record(self, step: int) -> dict[str, Any]:
        """The record of one checkpoint, not verified: what it takes to know the target of `restore`."""
        try:
            return _record(self._path(step))
        except Exception as error:
            raise CheckpointError(f'checkpoint {self._path(step)} cannot be read: {error}') from error

    def _move_aside(self, step: int) -> None:
        multihost_utils.sync_global_devices(f'checkpoint {step} was read')
        if jax.process_index() == 0:
            path = self._path(step)
            names = [path.with_suffix('.damaged')] + [path.with_suffix(f'.damaged{i}') for i in range(2, 100)]
            path.rename(next(name for name in names if not name.exists()))
        multihost_utils.sync_global_devices(f'checkpoint {step} was renamed')

    def _read_score(self, step: int) -> float | None:
        try:
            return _record(self._path(step))['score']
        except Exception:  # damaged: restoring says so, here it is only not the best
            return None

    def _path(self, step: int) -> Path:
        return self.directory / f'{step:08d}'


def _record(path: Path) -> dict[str, Any]:
    return dict(ocp.metadata(path).custom_metadata)


def digest(state: Any, record: dict[str, Any]) -> str:
    """SHA-256 over the record and every array's path, dtype, shape and bytes."""
    sha = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for path, leaf in jax.tree.leaves_with_path(state):
        array = np.ascontiguousarray(leaf)
        sha.update(f'{jax.tree_util.keystr(path)} {array.dtype} {np.shape(leaf)}'.encode())
        sha.update(array.reshape(-1).view(np.uint8))
    return sha.hexdigest()


def _check_finite(state: Any) -> None:
    for path, leaf in jax.tree.leaves_with_path(state):
        if not np.isfinite(np.asarray(leaf, np.float32 if leaf.dtype.itemsize < 4 else None)).all():
            raise CheckpointError(f'state{jax.tree_util.keystr(path)} is not finite; it is not saved')
