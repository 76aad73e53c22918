"""Parameters and multiply-adds against those torchvision publishes."""

import pytest
import torchvision

import flaxzoo
from flaxzoo.analysis.summary import summarize


@pytest.mark.parametrize('name', [n for n in flaxzoo.list_models() if n in torchvision.models.list_models()])
def test_costs_are_those_published(name):
    model = flaxzoo.create(name)
    releases = torchvision.models.get_model_weights(name)
    weights = next(w for w in releases if w.transforms.keywords['crop_size'] == model.image_size)
    costs = summarize(model)
    assert costs.macs / 1e9 == pytest.approx(weights.meta['_ops'], abs=6e-4)
    # Torchvision's figure for GoogLeNet is that of its weights, which carry the auxiliary heads no more.
    if name != 'googlenet':
        assert costs.parameters == weights.meta['num_params']


def test_multiply_adds_follow_the_image():
    model = flaxzoo.create('resnet18')
    small, large = (summarize(model, (1, size, size, 3)) for size in (64, 128))
    assert small.parameters == large.parameters
    head = 512 * 1000
    assert large.macs - head == 4 * (small.macs - head)
