"""Two processes on one machine, joined by jax.distributed, train as one process with two devices does."""

import queue
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from train.checkpoint import Checkpoints
from train.experiment import abstract_state
from train.processes import Watch
from train.records import read_metrics
from train.state import build_model

from .conftest import finish, make_tiny_config, write_config


def config_of(parallel: str = 'pmap'):
    config = make_tiny_config()
    config.parallel, config.compilation_cache = parallel, True
    config.checkpoint_every_steps = 10
    config.batch_size, config.eval_batch_size = 62, 50  # neither divides the number of images
    return config


@pytest.fixture(scope='module')
def alone(start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run in one process with two devices."""
    directory = tmp_path_factory.mktemp('alone')
    config = write_config(directory / 'config.py', config_of())
    finish(start('-m', 'train', '--config', str(config), '--workdir', str(directory / 'run'), devices=2))
    return directory / 'run'


def final_arrays(directory: Path):
    """The state after the last step."""
    target = abstract_state(config_of(), build_model(config_of(), 10), (8, 8, 1))
    return Checkpoints(directory / 'checkpoints').restore(23, target)[0]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def start_two(start, config: Path, directory: Path) -> list[subprocess.Popen]:
    command = ['-m', 'train', '--config', str(config), '--workdir', str(directory)]
    command += ['--coordinator', f'127.0.0.1:{free_port()}', '--num-processes', '2', '--process-id']
    return [start('-W', 'default::UserWarning', *command, str(i)) for i in range(2)]


def train_in_two(start, config: Path, directory: Path) -> str:
    """Runs two processes to their end; what the first said."""
    first, second = start_two(start, config, directory)
    output = finish(first)
    assert 'images/s' not in finish(second)  # only process 0 shows progress
    return output


def long_run(start, tmp_path: Path) -> list[subprocess.Popen]:
    """Two processes in the middle of a run of many epochs."""
    config = config_of('mesh')
    config.epochs = 1000
    processes = start_two(start, write_config(tmp_path / 'config.py', config), tmp_path / 'run')
    while not (tmp_path / 'run' / 'checkpoints' / '00000010').is_dir():
        assert processes[0].poll() is None, processes[0].communicate()[0]
        time.sleep(0.01)
    return processes


@pytest.mark.parametrize('victim', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_when_one_is_killed_the_others_end_and_say_which(start, tmp_path: Path, victim: int):
    processes = long_run(start, tmp_path)
    processes[victim].kill()
    output, _ = processes[1 - victim].communicate(timeout=10)
    assert processes[1 - victim].returncode == 1
    assert output.splitlines()[-1] == f'error: process {victim} of 2 is gone; start all of them again'


@pytest.mark.slow
@pytest.mark.parametrize('reached', [0, 1])
def test_a_signal_that_reaches_one_stops_both_at_the_same_step(start, tmp_path: Path, reached: int):
    processes = long_run(start, tmp_path)
    processes[reached].send_signal(signal.SIGTERM)
    ends = [process.communicate(timeout=60)[0].splitlines()[-1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143]
    assert ends[0] == ends[1]
    assert ends[0].startswith('stopped at step ')


def pair() -> tuple[socket.socket, socket.socket]:
    server = socket.create_server(('127.0.0.1', 0))
    with server:
        here = socket.create_connection(server.getsockname())
        return here, server.accept()[0]


def watched_by(ends: queue.Queue, peers: dict[int, socket.socket]) -> Watch:
    def end(status: int) -> None:
        ends.put((min(peers), status))
        threading.Event().wait()  # it never returns, as the end of a process does not

    return Watch(peers, 3, end)


def test_who_is_gone_is_told_to_all(capfd: pytest.CaptureFixture):
    (to_1, one), (to_2, two) = pair(), pair()
    ends: queue.Queue = queue.Queue()
    watched_by(ends, {1: to_1, 2: to_2})
    watched_by(ends, {0: two})
    one.close()  # as the system does for a process that is killed
    assert {ends.get(timeout=5), ends.get(timeout=5)} == {(1, 1), (0, 1)}
    assert capfd.readouterr().err.count('process 1 of 3 is gone') == 2
    for connection in (to_1, to_2, two):
        connection.close()


def test_who_leaves_in_good_order_is_not_missed():
    here, there = pair()
    ends: queue.Queue = queue.Queue()
    watched_by(ends, {1: here})
    watched_by(ends, {0: there}).leave()
    there.close()
    with pytest.raises(queue.Empty):
        ends.get(timeout=0.3)
    here.close()


@pytest.mark.parametrize('parallel', ['pmap', pytest.param('mesh', marks=pytest.mark.slow)])
def test_two_processes_train_as_one(start, alone: Path, tmp_path: Path, parallel: str):
    config = write_config(tmp_path / 'config.py', config_of(parallel))
    assert 'held-out accuracy' in train_in_two(start, config, tmp_path / 'run')
    if parallel == 'mesh':  # and again, from the checkpoint before a damaged one
        before = final_arrays(tmp_path / 'run')
        (tmp_path / 'run' / 'checkpoints' / '00000023' / 'state' / '_METADATA').write_text('{')
        assert 'using step 20 before it' in train_in_two(start, config, tmp_path / 'run')
        jax.tree.map(np.testing.assert_array_equal, final_arrays(tmp_path / 'run'), before)
    ours, theirs = final_arrays(tmp_path / 'run'), final_arrays(alone)
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    assert max(np.abs(a - b).max() for a, b in pairs) < 1e-6
    two, one = (read_metrics(run / 'metrics.jsonl') for run in (tmp_path / 'run', alone))
    assert [r['step'] for r in two] == [r['step'] for r in one]
    assert [r['accuracy'] for r in two] == pytest.approx([r['accuracy'] for r in one], abs=1e-6)
    assert (tmp_path / 'run' / 'report.png').exists()
