"""`flaxzoo.load`: the network that torch has, from every kind of source, and never silently another one."""

import dataclasses
import hashlib
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision

import flaxzoo
from flaxzoo.weights import adapt, catalog
from flaxzoo.weights.diagnose import resembling
from tests.weights.server import Server


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    for name in ('FLAXZOO_OFFLINE', 'FLAXZOO_WEIGHTS_MIRROR', 'TORCH_HOME', 'http_proxy', 'HTTP_PROXY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('FLAXZOO_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """A module in eval mode with statistics that matter."""
    torch.manual_seed(0)
    for name, value in module.state_dict().items():
        if name.endswith('running_mean') or name.endswith('bias'):
            value.normal_(0, 0.1)
        elif name.endswith('running_var'):
            value.uniform_(0.5, 2)
    return module.eval()


@pytest.fixture(scope='module')
def network():
    return randomised(torchvision.models.resnet18())


@pytest.fixture(scope='module')
def path(network, tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'resnet18.pth'
    torch.save(network.state_dict(), path)
    return path


def images(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 70, 50, channels)).astype(np.float32)


def torch_logits(module: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()


def same_logits(module: torch.nn.Module, model, variables, x: np.ndarray) -> None:
    ours, theirs = np.asarray(jax.jit(model.apply)(variables, x)), torch_logits(module, x)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def test_a_path(network, path, caplog):
    model, variables, report = flaxzoo.load_with_report('resnet18', path)
    same_logits(network, model, variables, images())
    assert model == flaxzoo.create('resnet18')
    assert report.path == path
    assert report.release is None
    assert str(report.changes) == 'everything is as in the file'
    assert caplog.text == ''
    model, again = flaxzoo.load('resnet18', str(path))
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, again))


def release_of(url: str, content: bytes, **changes) -> catalog.Release:
    row = catalog.find('resnet18')
    return dataclasses.replace(row, url=url, sha256=hashlib.sha256(content).hexdigest()[:8], **changes)


def test_tags_urls_and_hub(network, path, monkeypatch, tmp_path):
    torch_file = path.read_bytes()
    safetensors.torch.save_file(network.state_dict(), tmp_path / 'x.safetensors')
    hub = '/huggingface.co/timm/resnet18.x/resolve/main/model.safetensors'
    files = {'/r.pth': torch_file, hub: (tmp_path / 'x.safetensors').read_bytes()}
    with Server(files) as server:
        row = release_of(server.url('/r.pth'), torch_file)
        rows = (
            row,
            dataclasses.replace(row, tag='IMAGENET1K_V0', default=False, sha256='0' * 8, url=server.url('/v0.pth')),
        )
        monkeypatch.setattr(catalog, 'releases', lambda: rows)
        expected = flaxzoo.load('resnet18', path)[1]
        for weights in ('DEFAULT', 'IMAGENET1K_V1', server.url('/r.pth')):
            _, variables, report = flaxzoo.load_with_report('resnet18', weights)
            assert jax.tree.all(jax.tree.map(np.array_equal, variables, expected))
            assert report.release == row
        assert len(server.requests) == 1
        server.files['/v0.pth'] = torch_file
        with pytest.raises(flaxzoo.DownloadError, match='SHA-256'):
            flaxzoo.load('resnet18', 'IMAGENET1K_V0')
        monkeypatch.setenv('FLAXZOO_WEIGHTS_MIRROR', server.url(''))
        _, variables = flaxzoo.load('resnet18', 'hf-hub:timm/resnet18.x')
        assert jax.tree.all(jax.tree.map(np.array_equal, variables, expected))
        monkeypatch.setenv('FLAXZOO_OFFLINE', '1')
        flaxzoo.load('resnet18')
        with pytest.raises(flaxzoo.DownloadError, match='offline'):
            flaxzoo.load('resnet18', 'hf-hub:timm/another')


def test_another_number_of_classes(network, path, caplog):
    with caplog.at_level(logging.WARNING, 'flaxzoo'):
        model, variables, report = flaxzoo.load_with_report('resnet18', path, num_classes=10, rng=3)
    assert set(report.changes.new) == {'fc.weight', 'fc.bias'}
    assert 'fc.weight, fc.bias: initialised for 10 classes, the file has 1000: train it' in caplog.text
    assert 'new fc.weight: initialised for 10 classes' in str(report)
    weights = flaxzoo.to_torch(variables)
    limit = 512**-0.5  # torch's initialisation: uniform up to it
    assert 0.95 * limit < np.abs(weights['fc.weight']).max() <= limit
    other = flaxzoo.load('resnet18', path, num_classes=10, rng=jax.random.key(4))[1]
    assert not np.array_equal(variables['params']['fc']['kernel'], other['params']['fc']['kernel'])
    assert np.array_equal(variables['params']['conv1']['kernel'], other['params']['conv1']['kernel'])
    ten = torchvision.models.resnet18(num_classes=10)
    ten.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    same_logits(ten.eval(), model, variables, images())


def test_only_what_is_new_is_initialised():
    """The program that makes a new head has no convolution in it and no other parameter."""
    architecture = adapt.Architecture('resnet18', {'num_classes': 10})
    compiled = []
    with pytest.MonkeyPatch.context() as patch:
        jit = jax.jit

        def spy(function):
            compiled.append(jit(function))
            return compiled[-1]

        patch.setattr(jax, 'jit', spy)
        adapt.initialise(architecture, {'fc.weight': ''}, jax.random.key(0))
    text = compiled[0].lower(jax.random.key(0)).compile().as_text()
    assert 'convolution' not in text
    assert 'f32[512,10]' in text
    assert 'f32[7,7,3,64]' not in text


def test_a_file_of_another_number_of_classes(tmp_path, path):
    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), tmp_path / 'ten.pth')
    for fields in ({}, {'num_classes': 10}):
        model, _, report = flaxzoo.load_with_report('resnet18', tmp_path / 'ten.pth', **fields)
        assert model == flaxzoo.create('resnet18', num_classes=10)
        assert not report.changes.new
    model, _, report = flaxzoo.load_with_report('resnet18', tmp_path / 'ten.pth', num_classes=0)
    assert model.num_classes == 0
    assert set(report.changes.dropped) == {'fc.weight', 'fc.bias'}


@pytest.mark.parametrize('channels', [1, 2, 4, 6])
def test_another_number_of_channels(network, path, channels, caplog):
    with caplog.at_level(logging.WARNING, 'flaxzoo'):
        model, variables, report = flaxzoo.load_with_report('resnet18', path, in_channels=channels)
    assert report.changes.adapted == {'conv1.weight': f'from 3 to {channels} input channels'}
    assert 'from 3 to' in caplog.text
    theirs = timm.models.adapt_input_conv(channels, network.conv1.weight.detach())
    ours = flaxzoo.to_torch(variables)['conv1.weight']
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6, atol=1e-7)
    if channels == 1:  # a grey image gives what it gave as three channels
        grey = images(1)
        three = model.apply(flaxzoo.load('resnet18', path)[1], np.repeat(grey, 3, -1))
        np.testing.assert_allclose(model.apply(variables, grey), three, rtol=0, atol=1e-4 * np.abs(three).max())


def test_a_file_of_four_channels(tmp_path):
    weights = torchvision.models.resnet18().state_dict()
    weights['conv1.weight'] = torch.randn(64, 4, 7, 7)
    torch.save(weights, tmp_path / 'four.pth')
    _, _, report = flaxzoo.load_with_report('resnet18', tmp_path / 'four.pth', in_channels=4)
    assert not report.changes.adapted
    with pytest.raises(flaxzoo.ConversionError, match='for images of 4 channels: in_channels=4'):
        flaxzoo.load('resnet18', tmp_path / 'four.pth')


def test_background_class(tmp_path, monkeypatch):
    """Heads of 1001 rows, the first for the background, as the TensorFlow releases have."""
    network = randomised(torchvision.models.resnet18(num_classes=1001))
    torch.save(network.state_dict(), tmp_path / 'x.pth')
    content = (tmp_path / 'x.pth').read_bytes()
    with Server({'/x.pth': content}) as server:
        rows = (release_of(server.url('/x.pth'), content, label_offset=1),)
        monkeypatch.setattr(catalog, 'releases', lambda: rows)
        model, variables, report = flaxzoo.load_with_report('resnet18')
        ten = flaxzoo.load_with_report('resnet18', num_classes=10)
    ours, theirs = np.asarray(model.apply(variables, images())), torch_logits(network, images())
    assert ours.shape == (2, 1000)
    np.testing.assert_allclose(ours, theirs[:, 1:], rtol=0, atol=2e-5 * np.abs(theirs).max())
    assert set(report.changes.adapted) == {'fc.weight', 'fc.bias'}
    assert set(ten[2].changes.new) == {'fc.weight', 'fc.bias'}


def test_features_without_a_head_are_said_to_be(path, monkeypatch, caplog):
    content = path.read_bytes()
    with Server({'/x.pth': content}) as server:
        rows = (release_of(server.url('/x.pth'), content, classes=0),)
        monkeypatch.setattr(catalog, 'releases', lambda: rows)
        flaxzoo.load('resnet18')
        assert 'no usable head' in caplog.text
        caplog.clear()
        flaxzoo.load('resnet18', num_classes=10)
        assert 'no usable head' not in caplog.text


def test_a_part_that_is_switched_off(tmp_path):
    """GoogLeNet's file has auxiliary heads; with transform_input in the normalisation the logits are torchvision's."""
    network = randomised(torchvision.models.googlenet(transform_input=True, init_weights=False))
    torch.save(network.state_dict(), tmp_path / 'x.pth')
    model, variables, report = flaxzoo.load_with_report('googlenet', tmp_path / 'x.pth', aux_logits=False)
    assert {key.split('.')[0] for key in report.changes.dropped} == {'aux1', 'aux2'}
    assert 'aux_logits=False' in str(report)
    photo = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    ours = flaxzoo.transforms('googlenet')(photo)
    with torch.no_grad():
        prepared = torchvision.models.GoogLeNet_Weights.DEFAULT.transforms()(torchvision.transforms.ToPILImage()(photo))
        theirs = network(prepared[None]).numpy()
    assert np.abs(ours - prepared.permute(1, 2, 0).numpy()).max() > 0.1
    logits = np.asarray(jax.jit(model.apply)(variables, ours[None]))
    np.testing.assert_allclose(logits, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def test_another_architecture(path):
    with pytest.raises(flaxzoo.ConversionError) as caught:
        flaxzoo.load('resnet34', path)
    message = str(caught.value)
    assert f'{path}: the weights do not fit resnet34. They resemble resnet18 most: 100%' in message
    assert '- layer1.2.bn1.bias' in message
    assert len(message) < 2000


def test_resemblance(path):
    """Also with another head, and of networks that are not in the catalogue."""
    cases = {
        'resnet50': torchvision.models.resnet50(num_classes=7),
        'resnext50_32x4d': torchvision.models.resnext50_32x4d(num_classes=7),
    }
    for name, module in cases.items():
        shapes = {k: tuple(v.shape) for k, v in module.state_dict().items() if not k.endswith('num_batches_tracked')}
        (best, share), *_ = resembling(shapes)
        assert best == name
        assert share > 0.95
    name = 'resnext50_32x4d_cifar'
    shapes = adapt.Architecture(name, {}).shapes()
    assert resembling(shapes)[0] == (name, 1.0)


def test_weights_of_nothing_known(tmp_path):
    torch.save({'encoder.w': torch.ones(3), 'decoder.w': torch.ones(3)}, tmp_path / 'x.pth')
    with pytest.raises(flaxzoo.ConversionError, match='resemble no registered network'):
        flaxzoo.load('resnet18', tmp_path / 'x.pth')


def test_missing_and_extra_tensors(network, tmp_path):
    weights = network.state_dict()
    del weights['layer4.1.bn2.weight']
    weights['spare'] = torch.ones(1)
    torch.save(weights, tmp_path / 'x.pth')
    with pytest.raises(flaxzoo.ConversionError, match=r'(?s)nearest to resnet18.*\+ spare.*- layer4\.1\.bn2\.weight'):
        flaxzoo.load('resnet18', tmp_path / 'x.pth')


def test_prefixes(network, tmp_path):
    weights = network.state_dict()
    torch.save({f'module.{key}': value for key, value in weights.items()}, tmp_path / 'parallel.pth')
    flaxzoo.load('resnet18', tmp_path / 'parallel.pth')
    torch.save({f'trunk.{key}': value for key, value in weights.items()}, tmp_path / 'inner.pth')
    model, variables, report = flaxzoo.load_with_report('resnet18', tmp_path / 'inner.pth')
    same_logits(network, model, variables, images())
    assert "the file has names under 'trunk.'" in str(report)


def test_bad_files_and_names(tmp_path, path):
    (tmp_path / 'page.pth').write_text('<html>404</html>')
    (tmp_path / 'empty.pth').touch()
    torch.save(torch.optim.Adam([torch.ones(1)]).state_dict(), tmp_path / 'optimizer.pth')
    for name, message in {'page': 'web page', 'empty': 'empty', 'optimizer': 'optimizer'}.items():
        with pytest.raises(flaxzoo.WeightsError, match=message):
            flaxzoo.load('resnet18', tmp_path / f'{name}.pth')
    with pytest.raises(FileNotFoundError, match=r'none\.pth'):
        flaxzoo.load('resnet18', 'none.pth')
    with pytest.raises(flaxzoo.WeightsError, match='did you mean IMAGENET1K_V1'):
        flaxzoo.load('resnet18', 'IMAGENET_V1')
    with pytest.raises(ValueError, match='did you mean resnet18'):
        flaxzoo.load('resnet81')
    with pytest.raises(TypeError, match='a tag, a path or a URL'):
        flaxzoo.load('resnet18', None)
    with pytest.raises(ValueError, match='in_channels'):
        flaxzoo.load('resnet18', path, in_channels=0)
    with pytest.raises(flaxzoo.DownloadError, match='not the http'):
        flaxzoo.load('resnet18', 'ftp://a.b/c.pth')


def test_a_release_of_a_network_that_is_not_registered(monkeypatch):
    rows = (dataclasses.replace(catalog.find('resnet18'), model='resnet19'),)
    monkeypatch.setattr(catalog, 'releases', lambda: rows)
    with pytest.raises(ValueError, match='resnet19 has released weights, but the network is not in flaxzoo yet'):
        flaxzoo.load('resnet19')


WITHOUT_TORCH = """
import sys
for name in ('torch', 'torchvision', 'timm', 'huggingface_hub', 'sklearn'):
    sys.modules[name] = None  # an import raises
import flax.linen
before = set(sys.modules)
import flaxzoo
late = {'PIL', 'safetensors', 'urllib.request', 'ml_dtypes'} & (set(sys.modules) - before)
assert not late, f'import flaxzoo imports {late}'
import numpy as np
path, folder = sys.argv[1:]
model, variables = flaxzoo.load('resnet18', path, num_classes=10)
flaxzoo.save(f'{folder}/x.safetensors', variables, {'note': 'x'})
flaxzoo.save(f'{folder}/x.pth', variables)
preset = flaxzoo.transforms('resnet18')
x = preset(np.zeros((70, 50, 3), np.uint8))
assert x.shape == (224, 224, 3)
again = flaxzoo.load('resnet18', f'{folder}/x.pth', num_classes=10)[1]
from flaxzoo.cli import main
model = ['--model', 'resnet18', '--num-classes', '10']
assert main(['convert', f'{folder}/x.safetensors', f'{folder}/y.pth', *model]) == 0
print('done')
"""


def test_without_torch(path, tmp_path):
    command = [sys.executable, '-c', WITHOUT_TORCH, str(path), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith('done\n')
    assert torch.load(tmp_path / 'y.pth', weights_only=True)['fc.weight'].shape == (10, 512)


def test_the_package_has_its_data(tmp_path):
    """Files that are not Python lie beside the code, so the wheel has them."""
    folder = Path(catalog.__file__).parent
    assert (folder / 'catalog.csv').is_file()
    assert (folder / 'imagenet_classes.txt').is_file()
    shutil.copy(folder / 'catalog.csv', tmp_path)
    assert json.dumps([row.tag for row in catalog.releases()])


def test_a_file_states_the_fields_of_its_network(tmp_path):
    path = tmp_path / 'x.safetensors'
    model = flaxzoo.create('resnet18', layers=(1, 1, 1, 1), num_classes=3)
    variables = flaxzoo.init(model, jax.random.key(0))
    flaxzoo.save(path, variables, model=model)
    assert flaxzoo.load('resnet18', path)[0] == flaxzoo.load(path)[0] == model
    assert flaxzoo.load('resnet18', path, num_classes=5)[0] == model.clone(num_classes=5)
    with pytest.raises(flaxzoo.ConversionError, match='do not fit'):
        flaxzoo.load('resnet18', path, layers=(1, 1, 1, 2))
    with pytest.raises(flaxzoo.ConversionError, match='do not fit resnet34'):
        flaxzoo.load('resnet34', path)


def test_integers_of_numpy():
    weights = flaxzoo.to_torch(flaxzoo.init(flaxzoo.create('squeezenet1_1'), jax.random.key(0)))
    numbers = {'num_classes': np.int64(3), 'in_channels': np.int32(1), 'rng': np.uint8(1)}
    _, variables = flaxzoo.load('squeezenet1_1', weights, **numbers)
    _, again = flaxzoo.load('squeezenet1_1', weights, num_classes=3, in_channels=1, rng=1)
    jax.tree.map(np.testing.assert_array_equal, variables, again)


def test_parts_of_another_network_are_not_offered():
    with pytest.raises(flaxzoo.ConversionError, match='They resemble densenet121 most'):
        flaxzoo.load('resnet34', torchvision.models.densenet121().state_dict())


@pytest.mark.parametrize('count', [2, 5])
def test_one_of_several_networks_in_a_dict(count):
    fields = {'layers': (1, 1, 1, 1), 'num_classes': 7}
    model = flaxzoo.create('resnet18', **fields)
    every = [flaxzoo.init(model, jax.random.key(seed)) for seed in range(count)]
    weights = {
        f'nets.n{i}.{name}': value for i, one in enumerate(every) for name, value in flaxzoo.to_torch(one).items()
    }
    with pytest.raises(ValueError, match=r'nets\.n0.* key='):
        flaxzoo.load('resnet18', weights, **fields)
    _, variables = flaxzoo.load('resnet18', weights, key='nets.n1', **fields)
    jax.tree.map(np.testing.assert_array_equal, variables, every[1])
