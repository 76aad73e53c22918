"""The command line: list, info and convert."""

import itertools
import logging
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import torchvision

import flaxzoo
from flaxzoo.cli import main
from flaxzoo.weights import catalog


@pytest.fixture(autouse=True)
def quiet():
    """`main` configures logging: undo it."""
    handlers = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = handlers


def test_entry_point():
    project = tomllib.loads((Path(flaxzoo.__file__).parents[1] / 'pyproject.toml').read_text())['project']
    assert project['scripts']['flaxzoo'] == 'flaxzoo.cli:main'


def test_list(capsys):
    assert main(['list', 'resnet*']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ['resnet18', 'IMAGENET1K_V1']
    assert [line.split()[0] for line in lines] == flaxzoo.list_models('resnet*')
    assert main(['list', 'nothing*']) == 1
    assert 'no network matches' in capsys.readouterr().err


@pytest.mark.parametrize('pattern', ['*', 'resnet18'], ids=['while it writes', 'at its end'])
def test_a_reader_that_goes_away(pattern):
    """As `flaxzoo list | head -1` does."""
    command = f'import sys; from flaxzoo.cli import main; sys.exit(main(["list", {pattern!r}]))'
    reads, writes = os.pipe()
    process = subprocess.Popen([sys.executable, '-c', command], stdout=writes, stderr=subprocess.PIPE)
    os.close(writes)
    os.close(reads)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b'')


@pytest.mark.parametrize('name', ['resnet50', 'googlenet', 'inception_v4'])
def test_info(capsys, name):
    assert main(['info', name]) == 0
    text = capsys.readouterr().out
    for tag in catalog.tags(name):
        row = catalog.find(name, tag)
        assert f'{name}.{tag}' in text
        assert row.url in text
        assert row.license in text
        assert str(row.normalisation[0]) in text


def test_info_of_others(capsys):
    assert main(['info', 'resnext29_8x64d']) == 0
    assert 'no released weights' in capsys.readouterr().out
    assert main(['info', 'resnet51']) == 1
    assert 'did you mean' in capsys.readouterr().err


def test_convert_both_ways(tmp_path, capsys):
    """pth -> safetensors -> npz -> pth keeps every number, counters included, and torch loads the end."""
    state_dict = torchvision.models.resnet18(num_classes=10).state_dict()
    torch.save({'state_dict': {f'module.{key}': value for key, value in state_dict.items()}}, tmp_path / 'a.pth')
    steps = ['a.pth', 'b.safetensors', 'c.npz', 'd.pth', 'e.safetensors']
    for source, target in itertools.pairwise(steps):
        model = ['--model', 'resnet18', '--num-classes', '10']
        assert main(['convert', str(tmp_path / source), str(tmp_path / target), *model]) == 0
        assert f'{target}: 122 tensors of resnet18' in capsys.readouterr().out
        read = flaxzoo.read_weights(tmp_path / target)
        assert read.keys() == state_dict.keys()
        assert all(np.array_equal(read[key], value.numpy()) for key, value in state_dict.items())
    loaded = torch.load(tmp_path / 'd.pth', weights_only=True)
    torchvision.models.resnet18(num_classes=10).load_state_dict(loaded, strict=True)


def test_convert_refuses(tmp_path, capsys):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / 'a.pth')
    convert = ['convert', str(tmp_path / 'a.pth'), str(tmp_path / 'b.safetensors')]
    assert main([*convert, '--model', 'resnet34']) == 1
    assert 'They resemble resnet18 most' in capsys.readouterr().err
    assert main([*convert, '--model', 'resnet18', '--num-classes', '10']) == 1
    assert 'num_classes=1000' in capsys.readouterr().err
    assert main(['convert', str(tmp_path / 'none.pth'), str(tmp_path / 'b.npz'), '--model', 'resnet18']) == 1
    assert 'none.pth' in capsys.readouterr().err
    assert main([*convert[:2], str(tmp_path / 'b.txt'), '--model', 'resnet18']) == 1
    assert 'suffix' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']


def test_convert_a_file_that_states_its_network(tmp_path, capsys):
    """Names, fields and other metadata stay with the weights."""
    model = flaxzoo.create('resnet18', layers=(1, 1, 1, 1), num_classes=3)
    variables = flaxzoo.init(model, jax.random.key(0))
    a, b = tmp_path / 'a.safetensors', tmp_path / 'b.safetensors'
    flaxzoo.save(a, variables, {'epoch': 3}, model=model)
    assert main(['convert', str(a), str(b)]) == 0
    assert a.read_bytes() == b.read_bytes()
    assert main(['convert', str(b), str(tmp_path / 'c.npz')]) == 0
    assert main(['convert', str(tmp_path / 'c.npz'), str(b)]) == 1
    assert 'does not say what network' in capsys.readouterr().err


def test_convert_one_of_several(tmp_path):
    state_dict = torchvision.models.squeezenet1_1().state_dict()
    both = {f'{name}.{key}': value for name in ('encoder_q', 'encoder_k') for key, value in state_dict.items()}
    torch.save(both, tmp_path / 'a.pth')
    convert = ['convert', str(tmp_path / 'a.pth'), str(tmp_path / 'b.npz'), '--model', 'squeezenet1_1']
    assert main(convert) == 1
    assert main([*convert, '--key', 'encoder_k']) == 0
    assert flaxzoo.read_weights(tmp_path / 'b.npz').keys() == state_dict.keys()
