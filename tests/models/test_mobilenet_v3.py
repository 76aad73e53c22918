"""MobileNetV3's own: the arguments of torchvision's builders, which change its blocks."""

import numpy as np
import pytest
import torch
import torchvision

import flaxzoo
from flaxzoo.analysis.parity import compare, randomise
from flaxzoo.weights.convert import template, torch_names, torch_shape

FORMS = [
    {'width_mult': 0.35},
    {'width_mult': 1.3},
    {'reduced_tail': True},
    {'dilated': True},
    {'reduced_tail': True, 'dilated': True},
]
IDS = [' '.join(fields) + str(fields.get('width_mult', '')) for fields in FORMS]


@pytest.mark.parametrize('fields', FORMS, ids=IDS)
@pytest.mark.parametrize('name', ['mobilenet_v3_small', 'mobilenet_v3_large'])
def test_names_and_shapes(name, fields):
    with torch.device('meta'):
        theirs = torchvision.models.get_model(name, **fields).state_dict()
    leaves = torch_names(template(flaxzoo.create(name, **fields)))
    ours = {key: torch_shape(path, leaf.shape) for key, (path, leaf) in leaves.items()}
    assert ours == {key: tuple(value.shape) for key, value in theirs.items() if 'num_batches' not in key}


@pytest.mark.parametrize('fields', [{'dilated': True}, {'reduced_tail': True, 'dilated': True}], ids=IDS[3:])
def test_dilated_blocks(fields):
    """With half the tail the first dilated block keeps the channels, and still has no shortcut: it had a stride."""
    module = randomise(torchvision.models.mobilenet_v3_small(num_classes=10, **fields))
    x = np.random.default_rng(0).normal(size=(2, 67, 81, 3))
    report = compare(flaxzoo.create('mobilenet_v3_small', num_classes=10, **fields), module, x)
    assert report.error <= 1e-10, report.first_above(1e-10)


def test_stages_of_the_dilated_network():
    info = flaxzoo.feature_info(flaxzoo.create('mobilenet_v3_large', dilated=True))
    assert [(stage.name, stage.stride) for stage in info] == [
        ('features.1', 2),
        ('features.3', 4),
        ('features.6', 8),
        ('features.16', 16),
    ]
