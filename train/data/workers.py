"""Loading processes that end with the run, leave no shared memory behind and are named when they die.

Grain starts them and hands batches over in shared memory, a segment an array. Python names segments at random; here the
name says whose they are, so what a killed run left can be told from what others use.
"""

import logging
import multiprocessing
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import connection, resource_tracker, shared_memory
from pathlib import Path
from typing import Any

from train.errors import UserError
from train.stop import SIGNALS

logger = logging.getLogger('train')

SEGMENTS = Path('/dev/shm')  # where Linux shows them
DEAD = 'Worker process was terminated unexpectedly with exit code '  # how Grain's message begins


class WorkerError(UserError):
    """A loading process died."""


def watched(batches: Callable[[Callable[[int, int], None]], Iterator[Any]]) -> Iterator[Any]:
    """The batches of `batches(start)`, whose loading processes call `start` first.

    Raises:
      WorkerError: a loading process died.
    """
    _quiet_tracker()
    iterator = batches(partial(_begin, _prefix(os.getpid())))
    try:
        yield from iterator
    except RuntimeError as error:
        if not str(error).startswith(DEAD):
            raise
        code = str(error).removeprefix(DEAD).split('.')[0]
        words = f'signal {-int(code)}' if code.startswith('-') else f'status {code}'
        hint = (
            ' (the system does that when memory is short: fewer config.num_workers take less)' if code == '-9' else ''
        )
        raise WorkerError(
            f'a loading process was ended by {words}{hint}; start the same command again to go on'
        ) from None
    finally:
        iterator.close()


def remove_abandoned() -> None:
    """Removes the shared memory of runs on this machine that were killed together with all their processes."""
    for segment in SEGMENTS.glob(_prefix('*') + '*'):
        owner = segment.name.split('-')[2]
        if owner.isdecimal() and not Path('/proc', owner).exists():
            segment.unlink(missing_ok=True)


def _prefix(process: int | str) -> str:
    """How the names of a process's segments begin; process numbers mean something in their namespace only."""
    namespace = Path('/proc/self/ns/pid')
    return f'flaxzoo-{namespace.stat().st_ino if namespace.exists() else 0}-{process}-'


def _begin(prefix: str, _: int, __: int) -> None:
    """What a loading process does first."""
    for number in SIGNALS:  # the run decides when its processes end
        signal.signal(number, signal.SIG_IGN)
    if SEGMENTS.is_dir():
        # A private name: if it goes, names are Python's again, and only `remove_abandoned` finds nothing.
        shared_memory._make_filename = lambda: f'/{prefix}{secrets.token_hex(8)}'
    threading.Thread(target=_end_with_parent, name='parent', daemon=True).start()


def _end_with_parent() -> None:
    connection.wait(
        [multiprocessing.parent_process().sentinel]
    )  # ready as soon as the parent is gone, however it ended
    os._exit(1)


def _quiet_tracker() -> None:
    """Starts the process that removes what killed processes leave in shared memory, so that it does so silently.

    Python's resource tracker warns of what it removes, as of a mistake in the program.
    """
    before = os.environ.get('PYTHONWARNINGS')
    os.environ['PYTHONWARNINGS'] = ','.join(filter(None, [before, 'ignore:resource_tracker:UserWarning']))
    try:
        resource_tracker.ensure_running()
    finally:
        os.environ.pop('PYTHONWARNINGS')
        if before is not None:
            os.environ['PYTHONWARNINGS'] = before
