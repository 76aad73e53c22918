"""What `load` takes: tags before files, paths, dicts, one of several state dicts, files that say what they are."""

import dataclasses
import hashlib
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision

import flaxzoo
from flaxzoo.preset import Preset
from flaxzoo.weights import catalog
from flaxzoo.weights.hub import fetch
from flaxzoo.weights.source import parse
from tests.weights.server import Server

NAME = 'resnext29_32x4d'
SMALL = {'layers': (1,), 'groups': 4}
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    for name in ('FLAXZOO_OFFLINE', 'FLAXZOO_WEIGHTS_MIRROR', 'TORCH_HOME', 'http_proxy', 'HTTP_PROXY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('FLAXZOO_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    (tmp_path / 'home').mkdir()
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')


@pytest.fixture(scope='module')
def variables():
    return flaxzoo.init(flaxzoo.create(NAME, num_classes=10, **SMALL), jax.random.key(0))


@pytest.fixture(scope='module')
def weights(variables):
    return flaxzoo.to_torch(variables)


def shifted(weights, by=1.0):
    return {key: value + np.float32(by) for key, value in weights.items()}


def same(given, expected) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, given, expected))


def as_torch(weights):
    return {key: torch.from_numpy(np.array(value)) for key, value in weights.items()}


@pytest.fixture
def release(variables, tmp_path, monkeypatch):
    """Weights of ten classes as the release 'TAG' of the small network, and the server that has them."""
    flaxzoo.save(tmp_path / 'x.safetensors', variables)
    content = (tmp_path / 'x.safetensors').read_bytes()
    with Server({'/x.safetensors': content}) as server:
        row = dataclasses.replace(
            catalog.find('resnet18'),
            model=NAME,
            tag='TAG',
            url=server.url('/x.safetensors'),
            sha256=hashlib.sha256(content).hexdigest()[:8],
            classes=10,
            mean=MEAN,
            std=STD,
        )
        monkeypatch.setattr(catalog, 'releases', lambda: (row,))
        yield server


def test_a_tag_comes_before_a_file_of_its_name(release, variables, weights, tmp_path):
    for name in ('TAG', 'DEFAULT', 'TAGG'):
        torch.save(as_torch(shifted(weights)), name)
    for tag in ('TAG', 'DEFAULT'):
        assert same(flaxzoo.load(NAME, tag, **SMALL)[1], variables)
    with pytest.raises(flaxzoo.WeightsError, match=r"no weights 'TAGG', did you mean TAG.*this name is \./TAGG"):
        flaxzoo.load(NAME, 'TAGG', **SMALL)
    assert not same(flaxzoo.load(NAME, './TAGG', **SMALL)[1], variables)


@pytest.mark.parametrize(
    'path', ['x.pth', 'x.pt', 'x.pth.tar', 'x.tar', 'x.bin', 'x.ckpt', 'x.pkl', './x', '~/x', '~/x.pth.tar']
)
def test_paths(variables, weights, tmp_path, path):
    folder = tmp_path / ('home' if path.startswith('~') else 'here')
    with pytest.raises(FileNotFoundError, match=r'there is no file .*x'):
        flaxzoo.load(NAME, path, **SMALL)
    torch.save(as_torch(weights), folder / path.rpartition('/')[2])
    assert same(flaxzoo.load(NAME, path, **SMALL)[1], variables)


@pytest.mark.parametrize('name', ['none.pth.tar', 'none.index.json', 'none.safetensors', 'none.npz', 'a/b'])
def test_missing_files(name):
    with pytest.raises(FileNotFoundError, match=name):
        flaxzoo.load(NAME, name, **SMALL)


def test_a_missing_file_is_looked_for_among_its_neighbours(tmp_path):
    (tmp_path / 'here/checkpoint_best.pth').touch()
    with pytest.raises(FileNotFoundError, match=r'did you mean checkpoint_best\.pth'):
        flaxzoo.load(NAME, 'chekpoint_best.pth', **SMALL)


def test_network_and_tag_in_one(release, variables):
    assert same(flaxzoo.load(f'{NAME}.TAG', **SMALL)[1], variables)
    assert flaxzoo.transforms(f'{NAME}.TAG') == flaxzoo.transforms(NAME, 'TAG')


def test_sources(release):
    row = catalog.releases()[0]
    assert parse(NAME, row.url) == parse(NAME, 'TAG') == parse(NAME, 'DEFAULT')
    kinds = {'hf-hub:a/b': 'hub', 'https://a.b/c': 'url', 'x.pth': 'file', './x': 'file'}
    assert {text: parse(NAME, text).kind for text in kinds} == kinds
    assert parse('resnet18', row.url).release is None


@pytest.mark.parametrize('convert', [np.asarray, jnp.asarray, lambda value: torch.from_numpy(np.array(value))])
def test_a_dict(variables, weights, convert):
    model, loaded, report = flaxzoo.load_with_report(
        NAME, {key: convert(value) for key, value in weights.items()}, **SMALL
    )
    assert same(loaded, variables)
    assert model.num_classes == 10
    assert report.path is None
    assert str(report) == 'a dict\neverything is as in the file'
    _, _, report = flaxzoo.load_with_report(NAME, weights, num_classes=5, **SMALL)
    assert set(report.changes.new) == {'fc.weight', 'fc.bias'}
    with pytest.raises(flaxzoo.ConversionError, match='the dict: the weights do not fit'):
        flaxzoo.load('resnet18', weights)


def test_what_is_no_source(release, variables):
    module = torchvision.models.squeezenet1_1()
    wrong = {
        r"'params' is a dict; did you mean weights\['params'\]": variables,
        r"'state_dict' is a dict": {'state_dict': {'x': np.ones(1)}},
        r'a tag, a path or a URL.*flaxzoo\.init': None,
        'leave it out': True,
        r'weights=module\.state_dict\(\)': module,
        r"weights='IMAGENET1K_V1'": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
        r'a tag, a path or a URL, or a dict': 3,
    }
    for message, value in wrong.items():
        with pytest.raises(TypeError, match=message):
            flaxzoo.load(NAME, value)


def test_arguments_of_other_libraries_and_misspelt_ones(release):
    with pytest.raises(TypeError, match=r"no argument pretrained: flaxzoo\.load\('resnet50'\)"):
        flaxzoo.load('resnet50', pretrained=True)
    for word, meant in {'wieghts': 'weights', 'num_clases': 'num_classes', 'in_chanels': 'in_channels'}.items():
        with pytest.raises(TypeError, match=f"no argument '{word}', did you mean {meant}"):
            flaxzoo.load('resnet50', **{word: 1})
    with pytest.raises(TypeError, match='did you mean remat'):
        flaxzoo.load(NAME, 'TAG', remaat=True)


def test_the_state_dict_that_fits_is_taken(variables, weights, caplog):
    other = {key: value[..., :1] for key, value in weights.items() if value.ndim > 1}
    torch.save({'discriminator': as_torch(other), 'generator': as_torch(weights)}, 'x.pth')
    _, loaded, report = flaxzoo.load_with_report(NAME, 'x.pth', **SMALL)
    assert same(loaded, variables)
    assert report.key == 'generator'
    assert caplog.text == ''


@pytest.mark.parametrize('key', ['state_dict_ema', 'model_ema', 'ema', 'swa_model', 'averaged', 'ema.module'])
def test_averages_are_preferred_among_equals(variables, weights, caplog, key):
    content = as_torch(weights)
    for part in reversed(key.split('.')):
        content = {part: content}
    torch.save({'model': as_torch(shifted(weights)), **content}, 'x.pth')
    with caplog.at_level(logging.WARNING, 'flaxzoo'):
        _, loaded, report = flaxzoo.load_with_report(NAME, 'x.pth', **SMALL)
    assert same(loaded, variables)
    assert report.key == key
    assert f'reading the average, {key!r}' in caplog.text
    assert not same(flaxzoo.load(NAME, 'x.pth', key='model', **SMALL)[1], variables)


def test_equals_are_listed(variables, weights):
    both = {'student': as_torch(weights), 'teacher': as_torch(shifted(weights))}
    names = {f'{key}.{name}': value for key, part in both.items() for name, value in part.items()}
    for content in (both, names, {'model': names}):
        torch.save(content, 'x.pth')
        with pytest.raises(flaxzoo.WeightsError, match=r"equally: '(model\.)?student', '(model\.)?teacher'; .*key='"):
            flaxzoo.load(NAME, 'x.pth', **SMALL)
        key = 'model.student' if 'model' in content else 'student'
        assert same(flaxzoo.load(NAME, 'x.pth', key=key, **SMALL)[1], variables)
        with pytest.raises(flaxzoo.WeightsError, match=f"no state dict with key='studnet', did you mean {key}"):
            flaxzoo.load(NAME, 'x.pth', key='studnet', **SMALL)


def test_a_head_is_taken_rather_than_none(variables, weights):
    body = {key: value for key, value in shifted(weights).items() if not key.startswith('fc.')}
    torch.save({'backbone': as_torch(body), 'classifier': as_torch(weights)}, 'x.pth')
    assert same(flaxzoo.load(NAME, 'x.pth', **SMALL)[1], variables)


@pytest.mark.parametrize('prefix', ['module.', 'net.backbone.', 'trunk.inner.'])
def test_one_network_under_a_prefix_is_not_several(variables, weights, prefix, caplog):
    named = as_torch({f'{prefix}{key}': value for key, value in weights.items()})
    torch.save({'state_dict': named, 'epoch': 3}, 'x.pth')
    model, loaded = flaxzoo.load(NAME, 'x.pth', **SMALL)
    assert same(loaded, variables)
    assert model.num_classes == 10
    assert caplog.text == ''


@pytest.mark.parametrize('fields', [{}, {'num_classes': 10}, {'num_classes': 0}, {'remat': True, 'num_classes': 10}])
def test_files_that_say_what_they_are(fields, tmp_path):
    model = flaxzoo.create(NAME, **SMALL, **fields).clone(preset=Preset(20, 16, 'bicubic', MEAN, STD))
    variables = flaxzoo.init(model, jax.random.key(0))
    flaxzoo.save(tmp_path / 'home/mine.safetensors', variables, model=model)
    for path in ('~/mine.safetensors', tmp_path / 'home/mine.safetensors'):
        loaded, again = flaxzoo.load(path)
        assert same(again, variables)
        assert loaded.num_classes == model.num_classes
        assert flaxzoo.with_policy(loaded, remat=model.remat) == model
        assert flaxzoo.transforms(loaded) == flaxzoo.transforms(NAME, path) == model.preset
    assert flaxzoo.load(NAME, '~/mine.safetensors', **SMALL)[0].num_classes == model.num_classes
    assert flaxzoo.load('~/mine.safetensors', remat=True)[0].remat
    five, _, report = flaxzoo.load_with_report('~/mine.safetensors', num_classes=5)
    assert five.num_classes == 5
    assert set(report.changes.new) == {'fc.weight', 'fc.bias'}


def test_files_that_do_not_say_what_they_are(variables, weights):
    with pytest.raises(FileNotFoundError, match=r'no file none\.safetensors'):
        flaxzoo.load('none.safetensors')
    flaxzoo.save('x.safetensors', variables)
    torch.save(as_torch(weights), 'x.pth')
    for path in ('x.safetensors', 'x.pth'):
        with pytest.raises(flaxzoo.WeightsError, match=rf"{path} does not say what .*flaxzoo\.load\(NAME, '{path}'\)"):
            flaxzoo.load(path)
    for key, text in {'fields': '[]', 'preset': '{"mean": 1}'}.items():
        flaxzoo.save('x.safetensors', variables, {'flaxzoo.model': NAME, f'flaxzoo.{key}': text})
        with pytest.raises(flaxzoo.WeightsError, match=r'x\.safetensors: its metadata'):
            flaxzoo.load('x.safetensors', **SMALL)
    flaxzoo.save('x.safetensors', variables, {'flaxzoo.model': 'resnet_1'})
    with pytest.raises(ValueError, match='no model'):
        flaxzoo.load('x.safetensors')


def test_the_preparation_comes_with_the_weights(release):
    model, _, report = flaxzoo.load_with_report(NAME, **SMALL)
    assert flaxzoo.transforms(model) == flaxzoo.transforms(NAME) == Preset(256, 224, 'bilinear', MEAN, STD)
    assert model == flaxzoo.create(NAME, num_classes=10, **SMALL)
    assert hash(model) == hash(flaxzoo.create(NAME, num_classes=10, **SMALL))
    assert report.sha256 == hashlib.sha256(release.files['/x.safetensors']).hexdigest()
    for fields in ({'num_classes': 0}, {'remat': True}, {'in_channels': 1, 'num_classes': 5}):
        assert flaxzoo.transforms(flaxzoo.load(NAME, **SMALL, **fields)[0]) == model.preset
    with pytest.raises(flaxzoo.WeightsError, match=r'nothing is known .* this ResNet.*Name one: flaxzoo\.transforms'):
        flaxzoo.transforms(flaxzoo.create(NAME))
    with pytest.raises(
        flaxzoo.WeightsError, match=r'nothing is known of how images are prepared for https://a\.b/x\.pth'
    ):
        flaxzoo.transforms(NAME, 'https://a.b/x.pth')


def test_the_preparation_of_a_repository(variables, tmp_path, monkeypatch):
    flaxzoo.save(tmp_path / 'x.safetensors', variables)
    address = '/huggingface.co/me/net/resolve/main'
    config = {'input_size': [3, 16, 16], 'crop_pct': 0.8, 'interpolation': 'bicubic', 'mean': MEAN, 'std': STD}
    files = {f'{address}/model.safetensors': (tmp_path / 'x.safetensors').read_bytes()}
    with Server(files) as server:
        monkeypatch.setenv('FLAXZOO_WEIGHTS_MIRROR', server.url(''))
        server.headers = {'X-Repo-Commit': 'c' * 40}
        model, _, report = flaxzoo.load_with_report(NAME, 'hf-hub:me/net', **SMALL)
        assert model.preset is None
        assert report.revision == 'c' * 40
        server.files[f'{address}/config.json'] = json.dumps({'pretrained_cfg': config}).encode()
        model = flaxzoo.load(NAME, 'hf-hub:me/net', **SMALL)[0]
        assert flaxzoo.transforms(model) == Preset(20, 16, 'bicubic', MEAN, STD)
        server.files[f'{address}/config.json'] = json.dumps({'pretrained_cfg': {**config, 'mean': STD}}).encode()
        server.headers = {'ETag': '"1"'}
        assert flaxzoo.transforms(NAME, 'hf-hub:me/net', refresh=True).mean == STD
        assert flaxzoo.load(NAME, 'hf-hub:me/net', offline=True, **SMALL)[0].preset.mean == STD


def test_a_damaged_download_says_how_to_go_on(release, variables):
    content = release.files['/x.safetensors']
    release.files['/y.safetensors'] = content[:-100]
    release.headers = {'ETag': '"1"'}
    url = release.url('/y.safetensors')
    with pytest.raises(flaxzoo.WeightsError, match=rf'truncated.*the copy of {url} in the cache, which refresh=True'):
        flaxzoo.load(NAME, url, **SMALL)
    release.files['/y.safetensors'] = content
    assert same(flaxzoo.load(NAME, url, refresh=True, **SMALL)[1], variables)


def test_refresh_reaches_the_server(release):
    flaxzoo.load(NAME, **SMALL)
    flaxzoo.load(NAME, **SMALL)
    assert len(release.requests) == 1
    flaxzoo.load(NAME, refresh=True, **SMALL)
    assert len(release.requests) == 2
    assert fetch(catalog.releases()[0].url, offline=True).path.is_file()
