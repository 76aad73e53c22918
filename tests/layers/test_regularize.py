"""Dropout and stochastic depth: what is kept, how it is scaled, and that evaluation leaves the input alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxzoo.layers import Dropout, StochasticDepth

x = jnp.ones((4000, 2, 2, 3))


def apply(layer, train=True, seed=0):
    return layer.apply({}, x, train, rngs={'dropout': jax.random.key(seed)})


@pytest.mark.parametrize('layer', [Dropout(0.3), StochasticDepth(0.3), StochasticDepth(0.3, 'batch')])
def test_evaluation_is_the_identity(layer):
    np.testing.assert_array_equal(layer.apply({}, x), x)


@pytest.mark.parametrize(('layer', 'units'), [(Dropout(0.3), x.size), (StochasticDepth(0.3), len(x))])
def test_the_mean_is_kept(layer, units):
    y = np.asarray(apply(layer))
    assert set(np.unique(y).tolist()) == {0.0, float(np.float32(1) / np.float32(0.7))}
    assert abs((y == 0).mean() - 0.3) < 4 * (0.3 * 0.7 / units) ** 0.5


def test_row_drops_whole_images_and_batch_all_of_them():
    rows = np.asarray(apply(StochasticDepth(0.3))).reshape(len(x), -1)
    assert (rows == rows[:, :1]).all()
    draws = {np.unique(apply(StochasticDepth(0.5, 'batch'), seed=s)).tolist()[0] for s in range(12)}
    assert draws == {0.0, 2.0}


@pytest.mark.parametrize('layer', [Dropout(1.0), StochasticDepth(1.0)])
def test_dropping_everything_gives_zeros(layer):
    np.testing.assert_array_equal(apply(layer), 0)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r'p must lie in \[0, 1\], got 1.5'):
        StochasticDepth(1.5)
    with pytest.raises(ValueError, match="mode must be 'row' or 'batch', got 'column'"):
        StochasticDepth(0.1, 'column')
