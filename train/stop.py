"""Signals that ask a command to stop: SIGTERM, which schedulers send, and SIGINT, which Ctrl-C sends.

A signal ends the command where it is, with one line and the status 128 + its number. Within `finishing()` it is only
noted: the command asks `requested()` where it can end without a loss. A second one ends the process at once. A thread
waits for that, since Python's own handlers do not run while the main thread compiles.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# GNU timeout and some launchers send a signal twice, to the process and to its group.
SAME = 0.3  # seconds within which a second signal is the first one again


class _State:
    """Of this process, since signals are the process's."""

    requested = 0
    finishing = False
    sender: socket.socket | None = None


def listen() -> None:
    """Takes the signals over for the rest of the process; called in the main thread, before imports that take seconds.

    Signals that the process was told to ignore (by nohup, or by a shell for a job in the background) stay ignored.
    """
    receiver, _State.sender = socket.socketpair()
    _State.sender.setblocking(False)
    signal.set_wakeup_fd(_State.sender.fileno(), warn_on_full_buffer=False)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)
    threading.Thread(target=_watch, args=(receiver,), name='signals', daemon=True).start()


def requested() -> int:
    """The number of the signal that asked for a stop; 0 if there was none."""
    return _State.requested


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """Within it a signal does not end the command, which asks `requested()` and ends itself."""
    _State.finishing = True
    try:
        yield
    finally:
        _State.finishing = False


def end(number: int, words: str) -> NoReturn:
    """Says why the command ends and ends it, with the status that a shell gives for the signal."""
    say(words)
    raise SystemExit(128 + number)


def say(words: str) -> None:
    """A line on stderr, under the progress line if there is one; from any thread."""
    line = ('\n' if sys.stderr.isatty() else '') + words + '\n'
    with contextlib.suppress(OSError):  # nobody reads it any more
        os.write(2, line.encode())


def _handle(number: int, _: FrameType | None) -> None:
    if not _State.finishing:
        _State.requested = _State.requested or number
        end(number, f'stopped by {signal.Signals(number).name}')


def _watch(receiver: socket.socket) -> None:
    first = 0.0
    while True:
        for number in set(receiver.recv(64)).intersection(SIGNALS):
            if not first:
                first, _State.requested = time.monotonic(), number
                if _State.finishing:
                    name = signal.Signals(number).name
                    say(f'{name}: finishing the step and saving it; a second {name} ends the run at once')
            elif time.monotonic() - first > SAME:
                os._exit(128 + number)
