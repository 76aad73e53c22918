"""Two processes on one machine, joined by jax.distributed, train as one process with two devices does."""

import socket
from pathlib import Path

import jax
import numpy as np
import pytest

from train.checkpoint import Checkpoints
from train.experiment import abstract_state
from train.records import read_metrics
from train.state import build_model

from .conftest import finish, make_tiny_config, write_config


def config_of(parallel: str = 'pmap'):
    config = make_tiny_config()
    config.parallel, config.compilation_cache = parallel, True
    config.batch_size, config.eval_batch_size = 62, 50  # neither divides the number of images
    return config


@pytest.fixture(scope='module')
def alone(start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run in one process with two devices."""
    directory = tmp_path_factory.mktemp('alone')
    config = write_config(directory / 'config.py', config_of())
    finish(start('-m', 'train', '--config', str(config), '--workdir', str(directory / 'run'), devices=2))
    return directory / 'run'


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


@pytest.mark.parametrize('parallel', ['pmap', pytest.param('mesh', marks=pytest.mark.slow)])
def test_two_processes_train_as_one(start, alone: Path, tmp_path: Path, parallel: str):
    config = write_config(tmp_path / 'config.py', config_of(parallel))
    command = ['-m', 'train', '--config', str(config), '--workdir', str(tmp_path / 'run')]
    command += ['--coordinator', f'127.0.0.1:{free_port()}', '--num-processes', '2', '--process-id']
    first, second = [start(*command, str(i)) for i in range(2)]
    assert 'held-out accuracy' in finish(first)
    assert 'step' not in finish(second)  # only process 0 says and writes
    model = build_model(config_of(), 10)
    target = abstract_state(config_of(), model, (8, 8, 1))
    states, records = zip(
        *(Checkpoints(run / 'checkpoints').restore(23, target) for run in (tmp_path / 'run', alone)), strict=True
    )
    pairs = zip(*map(jax.tree.leaves, states), strict=True)
    assert max(np.abs(a - b).max() for a, b in pairs) < 1e-6
    assert records[0]['metrics'] == pytest.approx(records[1]['metrics'], abs=1e-6)
    two, one = (read_metrics(run / 'metrics.jsonl') for run in (tmp_path / 'run', alone))
    assert [r['step'] for r in two] == [r['step'] for r in one]
    assert (tmp_path / 'run' / 'report.png').exists()
