"""A fresh network is drawn from torchvision's distributions, so that training from scratch starts alike."""

import jax
import numpy as np
import pytest
import torch
import torchvision

import flaxzoo
from flaxzoo.weights.convert import to_torch

FIELDS = {'googlenet': {'init_weights': True}, 'inception_v3': {'init_weights': True}}
NAMES = [
    'squeezenet1_0',
    'googlenet',
    'mobilenet_v3_small',
    'efficientnet_b0',
    'densenet121',
    *(pytest.param(n, marks=pytest.mark.slow) for n in ('inception_v3', 'alexnet', 'vgg11')),
]


@pytest.mark.parametrize('name', NAMES)
def test_spread_and_range_of_every_parameter(name):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, **FIELDS.get(name, {})).state_dict()
    variables = flaxzoo.init(flaxzoo.create(name), jax.random.key(0))
    for key, ours in to_torch(variables).items():
        expected = theirs[key].numpy()
        spread = float(expected.std())
        if spread == 0:
            np.testing.assert_array_equal(ours, expected, err_msg=key)
        elif ours.size >= 500:
            assert abs(ours.mean() - expected.mean()) < 0.25 * spread, key
            assert ours.std() == pytest.approx(spread, rel=0.15), key
            # The largest of a uniform distribution is 1.7 spreads, of a normal one 3 to 5, as chance has it.
            assert 0.6 < np.abs(ours).max() / np.abs(expected).max() < 1.6, key
