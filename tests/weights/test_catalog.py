"""The catalogue says what torchvision and timm say of their weights."""

import math
import re

import pytest
import timm
import torchvision

import flaxzoo
import reference
from flaxzoo.weights import catalog
from flaxzoo.weights.adapt import Architecture
from flaxzoo.weights.hub import resolve

TORCHVISION = [row for row in catalog.releases() if row.source == 'torchvision']
TIMM = [row for row in catalog.releases() if row.source == 'timm']
TIMM_NAMES = {'xception': 'legacy_xception'}
identity = lambda row: f'{row.model}.{row.tag}'  # noqa: E731


def test_all_torchvision_releases_are_there():
    theirs = {
        (name, weights.name)
        for name in torchvision.models.list_models(module=torchvision.models)
        for weights in torchvision.models.get_model_weights(name)
    }
    assert len(theirs) == 115
    assert {(row.model, row.tag) for row in TORCHVISION} == theirs


@pytest.mark.parametrize('row', TORCHVISION, ids=identity)
def test_torchvision_release(row):
    theirs = torchvision.models.get_model_weights(row.model)
    weights = theirs[row.tag]
    preset = weights.transforms()
    assert row.url == weights.url
    assert row.sha256 == re.search(r'-([0-9a-f]{8,})\.pth$', row.url)[1]
    assert row.default == (theirs.DEFAULT is weights)
    assert (row.resize, row.crop) == (preset.resize_size[0], preset.crop_size[0])
    assert row.interpolation == preset.interpolation.value
    assert row.mean == tuple(preset.mean)
    assert row.std == tuple(preset.std)
    assert row.parameters == weights.meta['num_params']
    assert row.size_mib == weights.meta['_file_size']
    assert row.license == ('CC-BY-NC-4.0' if 'SWAG' in row.tag else 'BSD-3-Clause')
    metrics = weights.meta['_metrics']['ImageNet-1K']
    if weights.meta['categories'] is None:
        assert (row.classes, row.acc1, row.acc5) == (0, None, None)
    else:
        assert catalog.imagenet_classes() == tuple(weights.meta['categories'])
        assert (row.classes, row.acc1, row.acc5) == (1000, metrics['acc@1'], metrics['acc@5'])
    assert row.transform_input == (row.model in ('googlenet', 'inception_v3'))


@pytest.mark.parametrize('row', TIMM, ids=identity)
def test_timm_release(row):
    name, tag = TIMM_NAMES.get(row.model, row.model), row.tag.removesuffix('_1001')
    config = timm.models.get_pretrained_cfg(f'{name}.{tag}')
    data = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    assert data['crop_mode'] == 'center'
    assert (row.resize, row.crop) == (int(data['input_size'][1] / data['crop_pct']), data['input_size'][1])
    assert (row.interpolation, row.mean, row.std) == (data['interpolation'], data['mean'], data['std'])
    assert row.classes == config.num_classes == 1000
    assert row.license.lower() == config.license
    if row.tag == tag:
        assert row.url == (config.url or f'hf-hub:{config.hf_hub_id}')
    assert row.label_offset == (row.tag != tag)
    in_name = re.search(r'-([0-9a-f]{8,})\.pth$', row.url)
    assert row.sha256 == (in_name[1] if in_name else '')


@pytest.mark.parametrize('row', [row for row in catalog.releases() if row.source != 'torchvision'], ids=identity)
def test_parameters_of_other_releases(row):
    module = reference.build(row.model, num_classes=row.classes)
    assert sum(value.numel() for value in module.parameters()) == row.parameters


@pytest.mark.parametrize('name', sorted({row.model for row in catalog.releases()} & set(flaxzoo.list_models())))
def test_parameters_of_our_networks(name):
    """Each release is of the network that we register under its name; GoogLeNet is counted without its aux heads."""
    rows = [row for row in catalog.releases() if row.model == name]
    fixed = flaxzoo.create(name).fixed_size
    # {(classes, size of the images if the network's tables follow it): parameters}
    released = {(row.classes or 1000, row.crop if fixed else None): row.parameters for row in rows}
    for (classes, size), parameters in released.items():
        fields = {'aux_logits': False} if name == 'googlenet' else {}
        sized = {'image_size': size} if size else {}
        shapes = Architecture(name, {**fields, **sized, 'num_classes': classes}).shapes()
        assert sum(math.prod(shape) for key, shape in shapes.items() if 'running_' not in key) == parameters
    assert {row.parameters for row in rows} == set(released.values())


def test_every_row_is_consistent():
    rows = catalog.releases()
    assert len({(row.model, row.tag) for row in rows}) == len(rows)
    for model in {row.model for row in rows}:
        assert sum(row.default for row in rows if row.model == model) == 1
        assert catalog.find(model).tag == catalog.tags(model)[0]
    for row in rows:
        assert resolve(row.url).startswith('https://')
        assert re.fullmatch('([0-9a-f]{8,64})?', row.sha256)
        assert 'NC' not in row.license or not row.default or 'SWAG' in row.tag
    assert 'CC-BY-NC-4.0' in {row.license for row in rows}


def test_class_names():
    names = catalog.imagenet_classes()
    assert len(names) == 1000
    assert (names[0], names[1], names[999]) == ('tench', 'goldfish', 'toilet tissue')


def test_unknown_names():
    with pytest.raises(flaxzoo.WeightsError, match=r'IMAGENET1K_V3.*did you mean IMAGENET1K_V'):
        catalog.find('resnet50', 'IMAGENET1K_V3')
    for tag in ('imagenet1k_v2', 'ResNet50_Weights.IMAGENET1K_V2'):
        with pytest.raises(flaxzoo.WeightsError, match='did you mean IMAGENET1K_V2'):
            catalog.find('resnet50', tag)
    with pytest.raises(flaxzoo.WeightsError, match=r"no weights for 'resnet5'.*did you mean"):
        catalog.find('resnet5')
