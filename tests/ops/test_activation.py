"""The ReLU at the end of a residual block: jax.nn.relu's numbers, from its result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxzoo.layers import kept, kept_relu
from flaxzoo.ops.cpu.products import product

TRANSFORMATIONS = {
    'value': jax.vmap,
    'gradient': lambda f: jax.vmap(jax.grad(f)),
    'forward mode': lambda f: lambda x: jax.jvp(f, (x,), (jnp.sin(x),))[1],
    'second order': lambda f: jax.vmap(jax.grad(jax.grad(f))),
    'remat': lambda f: jax.vmap(jax.grad(jax.checkpoint(f))),
}


@pytest.mark.parametrize('name', TRANSFORMATIONS)
def test_it_is_jaxs_relu(name):
    """The gradient at zero included, which is 0."""
    with jax.enable_x64(True):
        x = jnp.asarray([-2.0, -1e-300, -0.0, 0.0, 1e-300, 3.0, jnp.inf])
        ours, theirs = (TRANSFORMATIONS[name](lambda x, f=f: f(x) ** 3 + f(x)) for f in (kept_relu, jax.nn.relu))
        np.testing.assert_array_equal(ours(x), theirs(x))
        np.testing.assert_allclose(jax.jit(ours)(x), theirs(x), rtol=1e-14)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32'])
def test_the_dtype_is_kept(dtype):
    x = jnp.ones(3, dtype)
    assert kept_relu(x).dtype == jax.grad(lambda x: kept_relu(x).astype('float32').sum())(x).dtype == dtype


def sums(relu) -> int:
    """How many sums XLA:CPU computes for three residual blocks and their gradient."""

    def loss(x, kernels):
        for kernel in kernels:
            x = relu(x + product(x, kernel))
        return (x**2).sum()

    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 16), (16, 16)))
    program = jax.jit(jax.grad(loss)).lower(x, [kernel] * 3).compile().as_text()
    return program.count(' add(')


def test_its_gradient_computes_no_sum_anew():
    """Three sums in the forward pass and three in the backward pass."""
    assert sums(lambda x: kept(jax.nn.relu(x))) > 6
    assert sums(kept_relu) == 6
