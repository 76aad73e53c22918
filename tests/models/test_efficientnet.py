"""EfficientNet's own: the rate of each block's stochastic depth, which images lose a block, and timm's names."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flaxzoo
import reference
from flaxzoo.layers import Norm, StochasticDepth
from flaxzoo.models.efficientnet import FusedMBConv, MBConv


def rates(model):
    """{name: rate} of what stochastic depth there is."""
    found = {}

    def intercept(call, args, kwargs, context):
        if isinstance(context.module, StochasticDepth):
            found['.'.join(context.module.path)] = context.module.p
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    return found


@pytest.mark.parametrize('fields', [{}, {'stochastic_depth_prob': 0.5}], ids=['default', '0.5'])
@pytest.mark.parametrize('name', flaxzoo.list_models('efficientnet*'))
def test_each_block_is_dropped_at_torchs_rate(name, fields):
    with torch.device('meta'):
        module = reference.build(name, **fields)
    expected = {
        f'{block}.stochastic_depth': child.stochastic_depth.p
        for block, child in module.named_modules()
        if getattr(child, 'use_res_connect', False)
    }
    assert expected
    assert rates(flaxzoo.create(name, **fields)) == expected


@pytest.mark.parametrize('kind', [MBConv, FusedMBConv])
def test_training_drops_the_branch_of_some_images_and_keeps_the_mean(kind):
    """Images that are alike have the same branch: it is there for an image, divided by its probability, or not."""
    rate, count = 0.3, 2000
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 3, 5, 8)), (count, 3, 5, 8))
    block = partial(kind, 4, 3, 1, 8, norm_layer=Norm())
    variables = flaxzoo.init(block(stochastic_depth_prob=rate), jax.random.key(1), x)

    def branch(rate):
        y, _ = block(stochastic_depth_prob=rate).apply(
            variables, x, True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(2)}
        )
        return np.asarray(y - x)

    whole, dropped = branch(0.0), branch(rate)
    kept = np.abs(dropped).reshape(count, -1).max(1) > 0
    np.testing.assert_allclose(dropped[kept], whole[kept] / (1 - rate), rtol=1e-4, atol=1e-5)
    assert abs(kept.mean() - (1 - rate)) < 4 * (rate * (1 - rate) / count) ** 0.5


@pytest.mark.parametrize('name', flaxzoo.list_models('efficientnet*'))
def test_epsilon_and_momentum_are_torchs(name):
    """The parity of evaluation shows the epsilon of those that it runs, that of training the momentum."""
    with torch.device('meta'):
        theirs = next(child for child in reference.build(name).modules() if isinstance(child, torch.nn.BatchNorm2d))
    ours = flaxzoo.create(name).norm_layer
    assert (ours.eps, ours.momentum) == (theirs.eps, theirs.momentum)
