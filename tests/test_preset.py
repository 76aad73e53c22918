"""The presets give torchvision's and timm's images, on photographs of many sizes."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import sklearn.datasets
import timm
import torch
import torchvision
from PIL import Image

import flaxzoo
from flaxzoo.preset import Preset
from flaxzoo.weights import catalog
from tests.weights.server import Server

PHOTOS = Path(sklearn.datasets.__file__).parent / 'images'
BY_PRESET = {
    (row.resize, row.crop, row.interpolation, row.mean, row.std, row.transform_input): row for row in catalog.releases()
}
ROWS = [row for row in BY_PRESET.values() if row.source != 'facenet-pytorch']
identity = lambda row: f'{row.model}.{row.tag}'  # noqa: E731


def photos() -> dict[str, Image.Image]:
    """Two real JPEGs (640 x 427), and parts of them: tall, small, narrow, tiny, of odd sizes."""
    china, flower = (Image.open(PHOTOS / name) for name in ('china.jpg', 'flower.jpg'))
    return {
        'china': china,
        'flower': flower,
        'tall': china.transpose(Image.Transpose.ROTATE_90),
        'square': flower.crop((100, 50, 357, 307)),
        'exact': china.crop((0, 0, 256, 256)),
        'small': flower.crop((200, 100, 301, 178)),
        'narrow': china.crop((300, 0, 337, 427)),
        'flat': china.crop((0, 200, 640, 233)),
        'tiny': flower.crop((300, 200, 303, 205)),
    }


def theirs(row, image) -> torch.Tensor:
    """(3, H, W), as torchvision or timm prepares it; with the affine map that torchvision's network applies itself."""
    if row.source == 'timm':
        name = {'xception': 'legacy_xception'}.get(row.model, row.model)
        config = timm.models.get_pretrained_cfg(f'{name}.{row.tag.removesuffix("_1001")}')
        data = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
        return timm.data.create_transform(**data, is_training=False)(image)
    prepared = torchvision.models.get_model_weights(row.model)[row.tag].transforms()(image)
    if not row.transform_input:
        return prepared
    network = torchvision.models.inception.Inception3.__new__(torchvision.models.inception.Inception3)
    torch.nn.Module.__init__(network)
    network.transform_input = True
    return network._transform_input(prepared[None])[0]


@pytest.mark.parametrize('row', ROWS, ids=identity)
def test_photographs(row):
    preset = flaxzoo.transforms(row.model, row.tag)
    mean, std = (np.asarray(values, np.float32) for values in row.normalisation)
    for name, photo in photos().items():
        ours, expected = preset(photo), theirs(row, photo).permute(1, 2, 0).numpy()
        assert ours.shape == expected.shape == (row.crop, row.crop, 3)
        assert ours.dtype == np.float32
        steps = np.abs(ours - expected) * std * 255  # in steps of the image's 256
        assert steps.max() < (1e-2 if row.transform_input else 1e-3), name
        np.testing.assert_array_equal(np.rint((expected * std + mean) * 255), preset.pixels(photo), err_msg=name)


def test_every_release_has_one_of_these_presets():
    for row in catalog.releases():
        preset = flaxzoo.transforms(row.model, row.tag)
        assert (preset.resize, preset.crop, preset.interpolation) == (row.resize, row.crop, row.interpolation)
        assert (preset.mean, preset.std) == row.normalisation


def test_faces():
    """facenet-pytorch: (x - 127.5) / 128 of values from 0 to 255."""
    pixels = np.asarray(photos()['china'].resize((160, 160)))
    ours = flaxzoo.transforms('inception_resnet_v1')(pixels)
    np.testing.assert_allclose(ours, (pixels.astype(np.float32) - 127.5) / 128, atol=1e-6)


def test_names():
    preset = flaxzoo.transforms('efficientnet_b1', 'IMAGENET1K_V2')
    assert preset == flaxzoo.transforms('efficientnet_b1') == flaxzoo.transforms('efficientnet_b1.IMAGENET1K_V2')
    assert preset != flaxzoo.transforms('efficientnet_b1.IMAGENET1K_V1')
    hub = 'hf-hub:timm/inception_v4.tf_in1k'
    assert flaxzoo.transforms('inception_v4', hub) == flaxzoo.transforms('inception_v4.tf_in1k')
    with pytest.raises(flaxzoo.WeightsError, match='did you mean'):
        flaxzoo.transforms('resnet50', 'IMAGENET1K_V9')
    with pytest.raises(flaxzoo.WeightsError, match='no weights for'):
        flaxzoo.transforms('IMAGENET1K_V2')


def test_hub_config(monkeypatch, tmp_path):
    monkeypatch.setenv('FLAXZOO_CACHE', str(tmp_path))
    config = {'input_size': [3, 288, 288], 'crop_pct': 0.95, 'crop_mode': 'center', 'interpolation': 'bicubic'}
    config |= {'mean': [0.5, 0.4, 0.3], 'std': [0.2, 0.2, 0.2]}
    contents = {
        'a': {'architecture': 'x', 'pretrained_cfg': config},
        'b': {'pretrained_cfg': {**config, 'crop_mode': 'squash'}},
        'c': {},
        'd': [],
    }
    address = '/huggingface.co/timm/{}/resolve/main/config.json'
    files = {address.format(name): json.dumps(content).encode() for name, content in contents.items()}
    with Server(files) as server:
        monkeypatch.setenv('FLAXZOO_WEIGHTS_MIRROR', server.url(''))
        assert flaxzoo.transforms('resnet50', 'hf-hub:timm/a') == Preset(
            303, 288, 'bicubic', (0.5, 0.4, 0.3), (0.2,) * 3
        )
        with pytest.raises(flaxzoo.WeightsError, match='squash'):
            flaxzoo.transforms('resnet50', 'hf-hub:timm/b')
        for name in 'cd':
            with pytest.raises(flaxzoo.WeightsError, match=r'config\.json(:| does not describe)'):
                flaxzoo.transforms('resnet50', f'hf-hub:timm/{name}')


@pytest.mark.parametrize('mode', ['L', 'LA', 'P', 'RGBA', 'CMYK', '1', 'YCbCr'])
def test_modes(mode):
    preset = flaxzoo.transforms('resnet18')
    image = photos()['small'].convert(mode)
    np.testing.assert_array_equal(preset(image), preset(image.convert('RGB')))


def test_arrays():
    preset = flaxzoo.transforms('resnet18')
    photo = photos()['small']
    np.testing.assert_array_equal(preset(np.asarray(photo)), preset(photo))
    grey = np.asarray(photo.convert('L'))
    np.testing.assert_array_equal(preset(grey), preset(np.stack([grey] * 3, -1)))


def test_other_inputs():
    preset = flaxzoo.transforms('resnet18')
    for wrong in (np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((2, 4, 4, 3), np.uint8), [1, 2], None):
        with pytest.raises(TypeError, match='uint8 array'):
            preset(wrong)
    for mode in ('I', 'F'):
        with pytest.raises(ValueError, match='8 or 16 bits a channel'):
            preset(Image.new(mode, (4, 4)))
    with pytest.raises(ValueError, match='interpolation'):
        Preset(256, 224, 'cubic', (0,), (1,))
    with pytest.raises(ValueError, match='crop'):
        Preset(200, 224, 'bicubic', (0,), (1,))


@pytest.mark.parametrize('size', [16, 32, 48])
def test_a_network_of_a_fixed_size_has_images_of_it(tmp_path, size):
    fields = {'num_layers': 1, 'num_heads': 2, 'hidden_dim': 8, 'mlp_dim': 16, 'num_classes': 3}
    preset = Preset(40, 32, 'bicubic', (0.5,), (0.5,))
    model = flaxzoo.create('vit_b_16', image_size=32, preset=preset, **fields)
    path = tmp_path / 'x.safetensors'
    flaxzoo.save(path, flaxzoo.init(model, jax.random.key(0)), model=model)
    loaded, variables = flaxzoo.load(path, image_size=size)
    assert flaxzoo.transforms(loaded).resize == size * 40 // 32
    image = np.zeros((50, 60, 3), np.uint8)
    assert loaded.apply(variables, flaxzoo.transforms(loaded)(image)[None]).shape == (1, 3)
