"""A fresh network is drawn from torchvision's distributions, so that training from scratch starts alike."""

import jax
import jax.numpy as jnp
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
    *(pytest.param(n, marks=pytest.mark.slow) for n in ('inception_v3', 'alexnet', 'vgg11')),
]


@pytest.mark.parametrize('name', NAMES)
def test_spread_and_range_of_every_parameter(name):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, **FIELDS.get(name, {})).state_dict()
    # Parameters do not depend on the size of the image.
    variables = jax.jit(flaxzoo.create(name).init)(jax.random.key(0), jnp.zeros((1, 75, 75, 3)))
    for key, ours in to_torch(variables).items():
        expected = theirs[key].numpy()
        spread = float(expected.std())
        if spread == 0:
            np.testing.assert_array_equal(ours, expected, err_msg=key)
        elif ours.size >= 500:
            assert abs(ours.mean() - expected.mean()) < 0.25 * spread, key
            assert ours.std() == pytest.approx(spread, rel=0.15), key
            # A uniform and a normal distribution of one spread differ in this.
            assert np.abs(ours).max() == pytest.approx(float(np.abs(expected).max()), rel=0.4), key
