"""Parallel branches keep the order they are written in, also when they are recomputed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxzoo.layers import Branches, max_pool2d
from flaxzoo.models.inception_parts import same


@pytest.mark.parametrize('recompute', [False, True])
def test_the_order_of_the_channels(recompute):
    """Names that are not in alphabetical order: flax sorts the keys of a mapping under remat."""
    pool = lambda x: max_pool2d(x, 3, stride=1, padding=1)  # noqa: E731
    x = jax.random.normal(jax.random.key(0), (1, 4, 5, 2))
    block = (nn.remat(Branches, static_argnums=(2,)) if recompute else Branches)({'pool': (pool,), 'conv': (same(3),)})
    y, variables = block.init_with_output(jax.random.key(1), x, False)
    assert y.shape == (1, 4, 5, 5)
    np.testing.assert_array_equal(y[..., :2], pool(x))
    assert set(variables['params']) == {'conv'}
    gradient = jax.grad(lambda x: block.apply(variables, x, False)[..., :2].sum())(x)
    np.testing.assert_array_equal(gradient, jax.grad(lambda x: pool(x).sum())(jnp.asarray(x)))
