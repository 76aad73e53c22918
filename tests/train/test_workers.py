"""Loading processes: they end with the run, leave nothing, and are named when they die."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.data import workers

from .conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc and /dev/shm')

LOADS = """
import multiprocessing
from tests.train.conftest import make_tiny_config
from train.data.digits import open_digits
from train.data.pipeline import Rows, train_batches
from train.errors import run_command
from train.prefetch import Prefetcher

def load(_):
    config = make_tiny_config()
    config.num_workers = 2
    with Prefetcher(train_batches(open_digits().train, config, Rows(64), 0, 10**9), lambda batch: batch) as batches:
        for step, batch in enumerate(batches):
            if step == 3:
                print(*[process.pid for process in multiprocessing.active_children()], flush=True)
                input()

if __name__ == '__main__':
    run_command(load)
"""


def segments(owner: int) -> list[Path]:
    return list(workers.SEGMENTS.glob(workers._prefix(owner) + '*'))


def wait_until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def lives(process: int) -> bool:
    stat = Path(f'/proc/{process}/stat')
    return stat.exists() and stat.read_text().rpartition(')')[2].split()[0] != 'Z'


@pytest.fixture
def loading(tmp_path: Path):
    """A process that loads with two others, and their numbers."""
    (tmp_path / 'loads.py').write_text(LOADS)
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    with subprocess.Popen([sys.executable, tmp_path / 'loads.py'], env=environment, text=True, **pipes) as process:
        numbers = process.stdout.readline().split()
        assert numbers, process.stderr.read()
        yield process, [int(number) for number in numbers]
        process.kill()


def test_they_end_with_a_run_that_is_killed_and_its_memory_is_freed(loading):
    process, numbers = loading
    assert len(numbers) == 2
    assert all(map(lives, numbers))
    for number in numbers:  # what stops a run is not for them
        os.kill(number, signal.SIGINT)
        os.kill(number, signal.SIGTERM)
    assert segments(process.pid)
    process.kill()
    wait_until(lambda: not any(map(lives, numbers)) and not segments(process.pid))
    assert process.stderr.read() == ''


def test_one_that_dies_is_one_sentence(loading):
    process, numbers = loading
    os.kill(numbers[0], signal.SIGKILL)
    _, errors = process.communicate('\n' * 10**4, timeout=20)
    assert process.returncode == 1
    assert errors.startswith(
        'error: a loading process was ended by signal 9 (the system does that when memory is short'
    )
    assert errors.count('\n') == 1
    wait_until(lambda: not any(map(lives, numbers)) and not segments(process.pid))


def test_what_killed_runs_left_is_removed_and_nothing_else():
    dead = subprocess.Popen(['true'])
    dead.wait()
    ours, theirs = segment(workers._prefix(os.getpid())), segment(workers._prefix(dead.pid))
    elsewhere = segment(f'flaxzoo-1-{dead.pid}-')  # in another namespace the number is another process's
    try:
        workers.remove_abandoned()
        assert (ours.exists(), theirs.exists(), elsewhere.exists()) == (True, False, True)
    finally:
        for path in (ours, theirs, elsewhere):
            path.unlink(missing_ok=True)


def segment(prefix: str) -> Path:
    path = workers.SEGMENTS / f'{prefix}0123456789abcdef'
    path.write_bytes(b'')
    return path
