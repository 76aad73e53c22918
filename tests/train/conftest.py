"""What several tests of the training program use: tiny data, tiny networks, real processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from train.config import default_config, to_json

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tiny_config() -> ConfigDict:
    return make_tiny_config()


def make_tiny_config() -> ConfigDict:
    """A ResNeXt of one block on the digits, 22 steps of 64 images an epoch."""
    config = default_config()
    config.model = 'resnext29_32x4d'
    config.model_fields = ConfigDict({'layers': (1,), 'groups': 4})
    config.dataset = 'digits'
    config.mean, config.std = (0.305,), (0.376,)
    config.crop, config.pad = 'pad', 1
    config.batch_size = 64
    config.epochs = 1
    config.learning_rate = 0.01
    config.log_every_steps = 5
    config.compilation_cache = False
    return config


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A directory of three classes of ten small JPEG files of several sizes; each class has a colour."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(('blue', 'green', 'red')):
        (tmp_path / 'photographs' / name).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 80, (*rng.integers(20, 40, 2), 3), dtype=np.uint8)
            pixels[..., 2 - index] += 150
            Image.fromarray(pixels).save(tmp_path / 'photographs' / name / f'{number}.jpg')
    return tmp_path / 'photographs'


@pytest.fixture(scope='session')
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes that tests start share compiled programs."""
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='session')
def start(compilation_cache: Path):
    """start(*arguments, devices=1): a Python process in the repository, on so many virtual CPU devices."""
    processes = []

    def start(*arguments: str, devices: int = 1) -> subprocess.Popen:
        environment = os.environ | {
            'JAX_PLATFORMS': 'cpu',
            'JAX_NUM_CPU_DEVICES': str(devices),
            'XDG_CACHE_HOME': str(compilation_cache),
        }
        process = subprocess.Popen(
            [sys.executable, '-W', 'error', *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def write_config(path: Path, config: ConfigDict) -> Path:
    """A config file whose get_config() gives `config`."""
    path.write_text(
        f'from train.config import from_json\n\n\ndef get_config():\n    return from_json({to_json(config)!r})\n'
    )
    return path


def finish(process: subprocess.Popen) -> str:
    """Waits for a process to succeed; what it printed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output
