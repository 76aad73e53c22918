"""Initialisers that torch's names stand for."""

import jax
import numpy as np
import pytest

from flaxzoo.layers.initializers import trunc_normal, xavier_uniform
from tests.optional import torch


def test_xavier_uniform_takes_the_mean_of_both_fans():
    """On a weight (O, I) as on a kernel (I, O); on a convolution's kernel with its pixels."""
    for shape in ((300, 100), (3, 3, 50, 20)):
        theirs = torch.nn.init.xavier_uniform_(torch.empty([*shape[:-3:-1], *shape[:-2]]))
        ours = xavier_uniform(jax.random.key(0), shape)
        assert np.abs(ours).max() == pytest.approx(float(theirs.abs().max()), rel=0.02)
        assert ours.std() == pytest.approx(float(theirs.std()), rel=0.03)


def test_trunc_normal_is_torchs_and_refuses_what_it_would_cut():
    theirs = torch.nn.init.trunc_normal_(torch.empty(400, 100), std=0.2)
    ours = trunc_normal(0.2)(jax.random.key(0), (400, 100))
    assert ours.std() == pytest.approx(float(theirs.std()), rel=0.02)
    with pytest.raises(ValueError, match=r'standard deviation above 0\.25, got 1'):
        trunc_normal(1.0)
