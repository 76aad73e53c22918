"""The activations that families take from flax are torch's: values, gradients at the kinks too, and dtypes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.optional import torch

ACTIVATIONS = {nn.silu: 'SiLU', nn.hard_swish: 'Hardswish', nn.hard_sigmoid: 'Hardsigmoid'}
POINTS = [-800.0, -30.0, -4.0, -3.0, -2.9, -1e-9, 0.0, 0.3, 2.9, 3.0, 3.1, 6.0, 40.0, 800.0]


@pytest.mark.parametrize('ours', ACTIVATIONS, ids=lambda function: function.__name__)
def test_values_and_gradients(ours):
    x = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
    y = getattr(torch.nn, ACTIVATIONS[ours])()(x)
    y.sum().backward()
    with jax.enable_x64(True):
        points = jnp.asarray(POINTS)
        np.testing.assert_allclose(ours(points), y.detach().numpy(), rtol=1e-14)
        # torch's gradient of the hard sigmoid has 1/6 rounded to float32.
        rtol = 4e-8 if ours is nn.hard_sigmoid else 1e-14
        np.testing.assert_allclose(jax.vmap(jax.grad(ours))(points), x.grad.numpy(), rtol=rtol)


@pytest.mark.parametrize('ours', ACTIVATIONS, ids=lambda function: function.__name__)
def test_bfloat16_stays(ours):
    x = np.linspace(-8, 8, 1001)
    y = ours(jnp.asarray(x, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    theirs = getattr(torch.nn, ACTIVATIONS[ours])()(torch.from_numpy(x).to(torch.bfloat16)).float().numpy()
    np.testing.assert_allclose(np.asarray(y, np.float32), theirs, rtol=0.02, atol=0.01)
