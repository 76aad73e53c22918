"""Attention in torch's arithmetic, windows and their masks, tables of positions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxzoo.ops.attention import attention, log_spaced_positions, partition, relative_positions, reverse, shift_mask
from tests.optional import torch


def queries_keys_values(dtype, batch=(2, 3), length=5, keys=7, heads=2, depth=4):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(*batch, heads, n, depth)), dtype) for n in (length, keys, keys)]


class AttentionTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_values_and_gradients_are_torchs(self):
        with jax.enable_x64(True):
            inputs = queries_keys_values(jnp.float64)
            bias = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2, 5, 7)))
            out = self.variant(lambda *args: attention(*args[:3], bias=args[3]))(*inputs, bias)
            grads = self.variant(jax.grad(lambda *args: jnp.sin(attention(*args[:3], bias=args[3])).sum(), range(4)))(
                *inputs, bias
            )
        given = [torch.tensor(np.asarray(a), requires_grad=True) for a in (*inputs, bias)]
        expected = torch.nn.functional.scaled_dot_product_attention(*given[:3], attn_mask=given[3])
        expected.sin().sum().backward()
        chex.assert_trees_all_close(np.asarray(out), expected.detach().numpy(), atol=1e-13)
        chex.assert_trees_all_close([np.asarray(g) for g in grads], [a.grad.numpy() for a in given], atol=1e-13)


def test_softmax_of_half_precision_is_in_float32():
    """Weights that add up to 1 within bfloat16's rounding: a sum of 3,000 of them in bfloat16 would not."""
    q, k, v = queries_keys_values(jnp.bfloat16, batch=(1,), keys=3000)
    out = attention(q, k, jnp.ones_like(v))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), 1, atol=0.01)
    wide = attention(*(a.astype(jnp.float32) for a in (q, k, v)))
    np.testing.assert_allclose(np.asarray(attention(q, k, v), np.float32), wide, atol=0.01)


def test_windows_come_back():
    x = jnp.arange(2 * 6 * 8 * 3).reshape(2, 6, 8, 3)
    windows = partition(x, (3, 4))
    assert windows.shape == (2, 4, 12, 3)
    np.testing.assert_array_equal(windows[1, 2], x[1, 3:6, 0:4].reshape(12, 3))
    np.testing.assert_array_equal(reverse(windows, (3, 4), (6, 8)), x)


@pytest.mark.parametrize('shift', [(1, 2), (0, 2), (1, 0)])
def test_the_mask_parts_what_a_shift_brings_together(shift):
    """Two pixels of a window attend to each other if and only if they were neighbours before the roll."""
    size, window = (6, 8), (3, 4)
    mask = shift_mask(size, window, shift)
    places = np.stack(np.indices(size), -1)
    rolled = partition(jnp.roll(jnp.asarray(places)[None], (-shift[0], -shift[1]), (1, 2)), window)[0]
    for index, pixels in enumerate(np.asarray(rolled)):
        apart = np.abs(pixels[:, None] - pixels[None])
        near = (apart < np.array(window)).all(-1)
        np.testing.assert_array_equal(mask[index, 0], np.where(near, 0, -100))


def test_tables_of_positions():
    """A row for each difference; Swin v2's coordinates are odd, 0 in the middle and log2(9) / 3 at the border."""
    index = relative_positions((2, 3)).reshape(6, 6)
    assert set(index.ravel()) == set(range(3 * 5))
    assert (np.diag(index) == 7).all()
    assert index[0, 5] == 0
    assert index[5, 0] == 14
    table = log_spaced_positions((4, 8))
    assert table.shape == (1, 7, 15, 2)
    np.testing.assert_array_equal(table, -table[:, ::-1, ::-1])
    np.testing.assert_allclose(table[0, -1, -1], np.log2(9) / 3, rtol=1e-6)
