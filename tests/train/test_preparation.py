"""Images are prepared as the weights want that a run starts from, unless the config says otherwise; then it is said."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

import flaxzoo
from configs import folder_finetune
from flaxzoo.preset import Preset
from flaxzoo.weights import catalog
from tests.train.conftest import make_tiny_config
from tests.weights.server import Server
from train import loop, workdir
from train.config import ConfigError, differences, to_json
from train.data.pipeline import eval_transform
from train.preparation import as_recorded, say_differences, settled
from train.state import build_model, initial_variables

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
PRESET = Preset(20, 16, 'bicubic', MEAN, STD)


@pytest.fixture
def release(monkeypatch, tmp_path):
    """Weights of the tests' network as a release: a config that starts from them."""
    monkeypatch.setenv('FLAXZOO_CACHE', str(tmp_path / 'cache'))
    monkeypatch.delenv('FLAXZOO_WEIGHTS_MIRROR', raising=False)
    config = make_tiny_config()
    config.mean = config.std = ()
    config.init_from = 'RELEASE'
    variables = flaxzoo.init(flaxzoo.create(config.model, num_classes=10, **config.model_fields), jax.random.key(0))
    flaxzoo.save(tmp_path / 'x.safetensors', variables)
    with Server({'/x.safetensors': (tmp_path / 'x.safetensors').read_bytes()}) as server:
        row = dataclasses.replace(
            catalog.find('resnet18'),
            model=config.model,
            tag='RELEASE',
            url=server.url('/x.safetensors'),
            sha256='',
            classes=10,
            resize=PRESET.resize,
            crop=PRESET.crop,
            interpolation=PRESET.interpolation,
            mean=MEAN,
            std=STD,
        )
        monkeypatch.setattr(catalog, 'releases', lambda: (row,))
        yield config


def preparation(config):
    return config.image_size, config.eval_resize, config.eval_interpolation, config.mean, config.std


def test_what_is_left_open_is_the_weights(release):
    assert preparation(settled(release, 3)) == (16, 20, 'bicubic', MEAN, STD)
    assert preparation(release) == (0, 0, '', (), ())  # a copy
    assert settled(settled(release, 3), 3) == settled(release, 3)
    release.image_size, release.mean = 32, (0.5,)
    assert preparation(settled(release, 3)) == (32, 40, 'bicubic', (0.5,), STD)


def test_grey_images_take_the_average_of_the_colours(release):
    config = settled(release, 1)
    np.testing.assert_allclose((*config.mean, *config.std), (0.2, 0.5))


def test_transform_input_is_in_the_normalisation():
    """GoogLeNet's release applies (x - 0.5) / 0.5 behind ImageNet's normalisation, our network does not."""
    config = folder_finetune.get_config()
    assert preparation(settled(config, 3)) == (224, 232, 'bilinear', (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    config.model, config.init_from = 'googlenet', 'DEFAULT'
    assert preparation(settled(config, 3))[3:] == ((0.5,) * 3, (0.5,) * 3)


def test_without_known_weights(tiny_config, tmp_path, caplog):
    tiny_config.mean = tiny_config.std = ()
    assert preparation(settled(tiny_config, 1)) == (0, 0, '', (0.5,), (0.25,))
    assert caplog.text == ''
    (tmp_path / 'x.pth').touch()
    tiny_config.init_from = str(tmp_path / 'x.pth')
    settled(tiny_config, 1)
    assert 'does not say how its images were normalised: taking config.mean = (0.5,) and config.std' in caplog.text
    tiny_config.init_from = 'NONE'
    with pytest.raises(ConfigError, match=r'config\.init_from: .*no weights'):
        settled(tiny_config, 1)
    tiny_config.init_from, tiny_config.crop = str(tmp_path / 'x.pth'), 'resized'
    with pytest.raises(ConfigError, match=r'needs config\.image_size'):
        settled(tiny_config, 1)


def test_what_is_told_otherwise_is_said(release, caplog):
    config = settled(release, 3)
    initial_variables(config, build_model(config, 10), (16, 16, 3))
    assert caplog.text == ''
    config.mean, config.image_size = (0.5,), 32
    initial_variables(config, build_model(config, 10), (32, 32, 3))
    assert 'otherwise than for RELEASE' in caplog.text
    assert 'config.mean = (0.5,) (the weights: (0.1, 0.2, 0.3))' in caplog.text
    assert 'config.image_size = 32 (the weights: 16)' in caplog.text
    assert 'config.std' not in caplog.text
    caplog.clear()
    say_differences(config, None, 3)
    config = settled(release, 3)
    config.mean = (0.5,)
    say_differences(config, dataclasses.replace(PRESET, mean=(0.5,) * 3), 3)
    assert caplog.text == ''


def test_evaluation_resizes_as_the_release_does(release):
    image = np.random.default_rng(0).integers(0, 256, (41, 67, 3), dtype=np.uint8)
    ours = eval_transform(settled(release, 3))(image)
    np.testing.assert_array_equal(ours, PRESET.pixels(image))
    assert not np.array_equal(ours, dataclasses.replace(PRESET, interpolation='bilinear').pixels(image))


def test_a_run_records_what_it_used_and_goes_on_with_it(release, tmp_path, monkeypatch):
    """Also if the weights say another thing by then, or cannot be asked."""
    release.dataset, release.image_size = 'digits', 8
    built = []

    def started(experiment, _, claimed, *__):
        built.append(experiment)
        claimed.begin(experiment.config)
        return Finished()

    monkeypatch.setattr(loop, '_Run', started)
    loop.train(release, tmp_path / 'run')
    record = json.loads((tmp_path / 'run/config.json').read_text())
    np.testing.assert_allclose((*record['mean'], *record['std']), (0.2, 0.5))
    assert (record['image_size'], record['eval_resize'], record['eval_interpolation']) == (8, 10, 'bicubic')
    assert workdir.read_config(tmp_path / 'run') == built[0].config
    monkeypatch.setattr(catalog, 'releases', functools.partial(tuple, [changed()]))
    loop.train(release, tmp_path / 'run')
    assert built[1].config == built[0].config
    assert as_recorded(release, {}) == release
    release.mean = (0.3,)
    with pytest.raises(workdir.WorkdirError, match=r'mean: \[0\.2.*\] -> \[0\.3\]'):
        loop.train(release, tmp_path / 'run')


def changed() -> catalog.Release:
    return dataclasses.replace(catalog.releases()[0], mean=(0.7, 0.7, 0.7), resize=64, interpolation='nearest')


class Finished:
    """In the place of a run."""

    def run(self, *_):
        return {}


def test_records_of_older_versions_lack_fields(tiny_config):
    old = to_json(tiny_config)
    del old['eval_interpolation']
    assert differences(old, to_json(tiny_config)) == []
