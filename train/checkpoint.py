"""Checkpoints that are whole or not there: asynchronous, atomic (orbax), and verified by a digest when read.

A checkpoint is a directory named by its step. It holds the state as host arrays, so it does not depend on the number
of devices, and a record: what evaluation said, the names of the classes, and a SHA-256 over all arrays and the record,
because a flipped bit in an array file would otherwise be read as a weight.
"""

import contextlib
import gc
import hashlib
import json
import logging
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from train.errors import UserError
from train.files import sync_directory


class CheckpointError(UserError):
    """Checkpoints that cannot be used, or a state that must not become one."""


class Checkpoints:
    """The checkpoints in `directory`: the newest `keep` and the best. Use as a context manager: it waits for saves.

    All processes of a run call the same methods in the same order; process 0 writes.
    """

    def __init__(self, directory: Path, keep: int = 3) -> None:
        self.directory, self.keep = directory.absolute(), keep
        self._saving: tuple[int, ocp.AsyncResponse] | None = None  # the step that is being saved
        self._last: int | None = None  # saved or restored here
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
    def last_good(self) -> str:
        """Words for an error: which step can be gone back to."""
        step = next(reversed(self.steps), None) if self._last is None else self._last
        return 'there is no checkpoint yet' if step is None else f'the last good checkpoint is that of step {step}'

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
          CheckpointError: the state holds a NaN or an infinity, or the one begun before cannot be written; nothing is
            written, and what was saved before is as it was.
        """
        self.wait()
        step = int(state.step)
        if place := _not_finite(state):
            raise CheckpointError(
                f'state{place} is not finite at step {step}, which is not saved; {self.last_good}, in '
                f'{self.directory}. Try a lower learning rate or clip_norm'
            )
        record = json.loads(json.dumps({**record, 'score': score}))
        with self._writing(step):
            saving = ocp.save_async(
                self._path(step), state, custom_metadata={**record, 'digest': digest(state, record)}
            )
        self._saving = step, saving
        self._scores[step] = score

    def wait(self) -> None:
        """Returns when what was begun is on disk, and deletes what need not be kept.

        Raises:
          CheckpointError: it cannot be written; names the step and the last good one.
        """
        if self._saving is None:
            return
        (step, saving), self._saving = self._saving, None
        with self._writing(step):
            saving.result()
            self._last = step
            if jax.process_index() == 0:
                sync_directory(self.directory)
        kept = {*self.steps[-self.keep :], self.best}
        for step in set(self.steps) - kept:
            self._scores.pop(step, None)
            if jax.process_index() == 0:
                shutil.rmtree(self._path(step), ignore_errors=True)

    def abandon(self) -> None:
        """Waits for what was begun, where it cannot be helped if it fails: the directory is not what it was."""
        with contextlib.suppress(CheckpointError):
            self.wait()

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """Says what went wrong in one sentence, and leaves no half of a checkpoint on a full disk."""
        try:
            with _quiet():
                yield
        except Exception as error:  # orbax and tensorstore raise many types
            if jax.process_index() == 0:
                for half in self.directory.glob(f'{self._path(step).name}.*-tmp*'):
                    shutil.rmtree(half, ignore_errors=True)
            reason = _reason(error)
            raise CheckpointError(
                f'step {step} cannot be saved in {self.directory}: {reason}; {self.last_good}'
            ) from error

    def restore(self, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
        """The state and the record of one checkpoint, verified; `target` gives the structure, shapes and dtypes.

        Raises:
          CheckpointError: it is damaged or does not fit; says how.
        """
        path, record = self._path(step), self.read_record(step)
        expected = record.pop('digest')
        try:
            with _quiet():
                # Before it is read, because orbax would give every array the dtype that is wanted.
                _check_fits(path, ocp.metadata(path).metadata, target)
                state = ocp.load(path, jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), target))
        except CheckpointError:
            raise
        except Exception as error:  # orbax and tensorstore raise many types for damaged files
            raise CheckpointError(f'checkpoint {path} cannot be read: {_reason(error)}') from error
        if digest(state, record) != expected:
            raise CheckpointError(f'checkpoint {path} is damaged: its arrays are not those that were saved')
        self._last = step
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
        """The record of one checkpoint, not verified: what it takes to know the target of `restore`.

        Raises:
          CheckpointError: it is missing or damaged.
        """
        path = self._path(step)
        try:
            with _quiet():
                record = ocp.metadata(path).custom_metadata
        except Exception as error:
            raise CheckpointError(f'checkpoint {path} cannot be read: {_reason(error)}') from error
        if not isinstance(record, dict) or not isinstance(record.get('digest'), str) or 'score' not in record:
            raise CheckpointError(f'checkpoint {path} cannot be read: its record (_CHECKPOINT_METADATA) is damaged')
        return dict(record)

    def _move_aside(self, step: int) -> None:
        multihost_utils.sync_global_devices(f'checkpoint {step} was read')
        if jax.process_index() == 0:
            path = self._path(step)
            names = [path.with_suffix('.damaged')] + [path.with_suffix(f'.damaged{i}') for i in range(2, 100)]
            path.rename(next(name for name in names if not name.exists()))
        multihost_utils.sync_global_devices(f'checkpoint {step} was renamed')

    def _read_score(self, step: int) -> float | None:
        try:
            return self.read_record(step)['score']
        except CheckpointError:  # restoring says so, here it is only not the best
            return None

    def _path(self, step: int) -> Path:
        return self.directory / f'{step:08d}'


def digest(state: Any, record: dict[str, Any]) -> str:
    """SHA-256 over the record and every array's path, dtype, shape and bytes."""
    sha = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for path, leaf in jax.tree.leaves_with_path(state):
        array = np.ascontiguousarray(leaf)
        sha.update(f'{jax.tree_util.keystr(path)} {array.dtype} {np.shape(leaf)}'.encode())
        sha.update(array.reshape(-1).view(np.uint8))
    return sha.hexdigest()


def _not_finite(state: Any) -> str:
    """The place of the first array that holds a NaN or an infinity; empty if there is none."""
    for path, leaf in jax.tree.leaves_with_path(state):
        if not np.isfinite(np.asarray(leaf, np.float32 if leaf.dtype.itemsize < 4 else None)).all():
            return jax.tree_util.keystr(path)
    return ''


def _check_fits(path: Path, found: Any, target: Any) -> None:
    """Raises if an array has another shape or dtype than `target` wants; arrays are known by their names."""
    wanted = {_name(place): leaf for place, leaf in jax.tree.leaves_with_path(target)}
    for place, leaf in jax.tree.leaves_with_path(found):
        want = wanted.get(_name(place), leaf)
        if (leaf.shape, leaf.dtype) != (want.shape, want.dtype):
            raise CheckpointError(
                f'checkpoint {path} does not fit this run: {_name(place)} is {leaf.dtype}{leaf.shape}, expected '
                f'{want.dtype}{want.shape}'
            )


def _name(place: Any) -> str:
    """'params.conv1.kernel', whether dictionaries or classes hold the arrays."""
    return jax.tree_util.keystr(place, simple=True, separator='.')


def _reason(error: Exception) -> str:
    """One line of what orbax or the system says, without what it says of its own arrays."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = next(iter(str(error).strip().splitlines()), '')
    for known in ('No space left on device', 'File too large', 'Read-only file system', 'Permission denied'):
        if known in str(error):
            return known
    return f'{type(error).__name__}: {line[:200]}'


def _is_not_orbax(record: logging.LogRecord) -> bool:
    return 'orbax' not in record.pathname


# Orbax logs what it raises as well, with hundreds of lines of tracebacks, also from its threads.
logging.getLogger('absl').addFilter(_is_not_orbax)


def _unraisablehook(args: Any) -> None:
    """Drops what tensorstore's threads print for each array that was written after another had failed."""
    if not (args.exc_type is RuntimeError and str(args.exc_value) == 'Event loop is closed'):
        _print_unraisable(args)


_print_unraisable, sys.unraisablehook = sys.unraisablehook, _unraisablehook


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what orbax's reads and writes that were given up because of an error say when they are collected."""
    asyncio = logging.getLogger('asyncio')
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    disabled, asyncio.disabled = asyncio.disabled, True
    try:
        yield
    except Exception:
        gc.collect()
        raise
    finally:
        sys.unraisablehook, asyncio.disabled = hook, disabled
