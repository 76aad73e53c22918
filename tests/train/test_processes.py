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


def train_in_two(start, config: Path, directory: Path) -> str:
    """Runs two processes to their end; what the first said."""
    command = ['-m', 'train', '--config', str(config), '--workdir', str(directory)]
    command += ['--coordinator', f'127.0.0.1:{free_port()}', '--num-processes', '2', '--process-id']
    first, second = [start('-W', 'default::UserWarning', *command, str(i)) for i in range(2)]
    output = finish(first)
    assert 'images/s' not in finish(second)  # only process 0 shows progress
    return output


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
