"""Random convolutions, and comparing a lowering of them with XLA's own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from flaxzoo.ops.native import Geometry, native_conv
from tests.compiling import jit


def relative(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max()


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw, groups=None, kernel=None, outputs_a_group=None, padding=None, stride=None, dilation=None):
    """(x shape, kernel shape, Geometry) of a random convolution that has an output, and an input gradient in XLA.

    XLA (jaxlib 0.10.2) ends the process while it compiles some input gradients of its own, with "Window dimensions do
    not match RHS shape", for example that of x (1, 3, 4, 1), kernel (3, 2, 1, 1), stride 2, padding 1.
    """
    groups = groups or draw(st.sampled_from([2, 3, 4, 6]))
    inputs, outputs = draw(st.integers(1, 4)), outputs_a_group or draw(st.integers(1, 3))
    kernel = kernel or draw(pairs)
    stride, dilation = stride or draw(pairs), dilation or draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = padding or draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    axes = zip(kernel, stride, padding, dilation, strict=True)
    assume(not any(s > 1 and p > 0 and p == d * (k - 1) for k, s, p, d in axes))
    size = [draw(st.integers((k - 1) * d + 1, 9)) for k, d in zip(kernel, dilation, strict=True)]
    geometry = Geometry(stride, padding, dilation, groups)
    return (draw(st.integers(1, 2)), *size, inputs * groups), (*kernel, inputs, outputs * groups), geometry


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


def assert_equal(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def value_and_gradients(conv, x, kernel):
    """The value and both gradients for a cotangent that depends on the value, so that nothing is linear."""

    @jit
    def both(x, kernel):
        value, pull = jax.vjp(conv, x, kernel)
        return value, pull(jnp.cos(value))

    return both(x, kernel)


def assert_equal_with_gradients(lowering, x_shape, kernel_shape, geometry):
    x, kernel = arrays(x_shape, kernel_shape)
    native = partial(native_conv, geometry=geometry)
    assert_equal(value_and_gradients(lowering, x, kernel), value_and_gradients(native, x, kernel))
