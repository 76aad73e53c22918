"""The stored index of names and shapes is that of the networks."""

import time

import pytest

import flaxzoo
from flaxzoo.weights import index
from flaxzoo.weights.convert import torch_names, torch_shape
from flaxzoo.weights.diagnose import resembling
from tests.models.cases import shapes


def test_it_has_every_network_and_no_other():
    assert sorted(index.index()) == sorted(flaxzoo.list_models()), f'run `{index.COMMAND}`'


@pytest.mark.parametrize('name', flaxzoo.list_models())
def test_it_is_up_to_date(name):
    traced = {key: torch_shape(path, leaf.shape) for key, (path, leaf) in torch_names(shapes(name)).items()}
    assert index.index().get(name) == traced, f'run `{index.COMMAND}`'


def test_writing_it(tmp_path, monkeypatch, capsys):
    """Only what differs is named, and equal networks give equal bytes."""
    stored = index.index()
    monkeypatch.setattr(index, 'PATH', tmp_path / 'index.json.gz')
    monkeypatch.setattr(index, 'trace', lambda: {'resnet18': stored['resnet18']})
    index.index.cache_clear()
    assert index.main([]) == 1
    assert 'out of date, run `python -m flaxzoo.weights.index --write`: resnet18' in capsys.readouterr().out
    assert index.main(['--write']) == 0
    written = index.PATH.read_bytes()
    assert index.index() == {'resnet18': stored['resnet18']}
    assert index.main(['--write']) == 0
    assert 'up to date' in capsys.readouterr().out
    index.PATH.unlink()
    index.index.cache_clear()
    index.main(['--write'])
    assert index.PATH.read_bytes() == written
    index.index.cache_clear()


def test_diagnosis_is_fast_for_hundreds_of_networks(monkeypatch):
    """Ten times the networks: the time grows with their number, and is a fraction of what tracing one takes."""
    many = {f'{name}_{i}': shapes for name, shapes in index.index().items() for i in range(10)}
    monkeypatch.setattr(index, 'index', lambda: many)
    monkeypatch.setattr('flaxzoo.weights.diagnose.MODELS', dict.fromkeys(many))
    monkeypatch.setattr('flaxzoo.weights.diagnose.dialects', lambda name: ())
    started = time.perf_counter()
    (best, share), *_ = resembling({f'net.{key}': shape for key, shape in many['resnet50_3'].items()})
    assert time.perf_counter() - started < 2
    assert best.startswith('resnet50_')
    assert share == 1
