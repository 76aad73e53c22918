"""Signals, in processes of their own: a process has one handler of each."""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import ROOT

HANGS = """
import ctypes
from train import stop
stop.listen()
with stop.finishing():
    print('ready', flush=True)
    mutex, library = (ctypes.c_char * 64)(), ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)  # as a long compilation: no handler of Python runs until it returns
"""

WAITS = """
import time
from train import stop
stop.listen()
try:
    print('ready', flush=True)
    time.sleep(60)
except Exception:
    print('swallowed')
finally:
    print('left in order')
"""

FINISHES = """
import time
from train import stop
stop.listen()
with stop.finishing():
    print('ready', flush=True)
    while not stop.requested():
        time.sleep(0.01)
    time.sleep(0.2)
    stop.end(stop.requested(), 'saved')
"""


@pytest.fixture
def python():
    """python(script): a process that has said it is ready."""
    with contextlib.ExitStack() as stack:

        def python(script: str) -> subprocess.Popen:
            pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
            process = stack.enter_context(
                subprocess.Popen([sys.executable, '-c', script], cwd=ROOT, text=True, **pipes)
            )
            stack.callback(process.kill)
            assert process.stdout.readline() == 'ready\n'
            return process

        yield python


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_in_order_with_one_line(python, number: signal.Signals):
    process = python(WAITS)
    process.send_signal(number)
    output, errors = process.communicate(timeout=10)
    assert (process.returncode, output, errors) == (128 + number, 'left in order\n', f'stopped by {number.name}\n')


@pytest.mark.parametrize('times', [1, 2])
def test_a_command_finishes_what_it_is_at(python, times: int):
    process = python(FINISHES)
    for _ in range(times):  # twice at once is once, as GNU timeout sends it
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 143
    assert errors.splitlines() == [
        'SIGTERM: finishing the step and saving it; a second SIGTERM ends the run at once',
        'saved',
    ]


def test_a_second_signal_ends_the_process_wherever_it_is(python):
    process = python(HANGS)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.6)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130


def test_an_ignored_signal_stays_ignored(python):
    process = python(f'import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{WAITS.replace("60", "1")}')
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0


def listens(process: subprocess.Popen) -> bool:
    """Whether the process has a handler of SIGTERM."""
    (caught,) = [line for line in Path(f'/proc/{process.pid}/status').read_text().splitlines() if 'SigCgt' in line]
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('module', ['train', 'train.predict'])
def test_a_command_may_be_stopped_while_it_imports(start, module: str):
    process = start('-m', module, '--workdir', 'none')
    while not listens(process):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert (process.returncode, output) == (130, 'stopped by SIGINT\n')
