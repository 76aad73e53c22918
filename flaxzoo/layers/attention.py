"""Attention layers with torch's names and arithmetic."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flaxzoo.layers.conv import Linear
from flaxzoo.layers.initializers import trunc_normal, xavier_uniform
from flaxzoo.layers.naming import sequential
from flaxzoo.layers.regularize import Dropout
from flaxzoo.ops.attention import attention, log_spaced_positions, partition, relative_positions, reverse, shift_mask
from flaxzoo.ops.pairs import Pair

MAX_LOGIT_SCALE = math.log(100)  # of Swin V2
# Swin's initial values.
linear = partial(Linear, kernel_init=trunc_normal(0.02), bias_init=nn.initializers.zeros)


class MultiheadAttention(nn.Module):
    """`torch.nn.MultiheadAttention` of a sequence with itself: (..., L, C) -> (..., L, C).

    The parameters `in_proj_weight` (3 * C, C), whose rows make queries, keys and values, and `in_proj_bias` (3 * C,)
    have torch's layout; `out_proj` is a Linear.

    Attributes:
      num_heads: it divides C.
      dropout: probability with which training drops attention weights.

    Raises:
      ValueError: the heads do not divide the channels.
    """

    num_heads: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        width = x.shape[-1]
        weight = self.param('in_proj_weight', xavier_uniform, (3 * width, width), jnp.float32)
        bias = self.param('in_proj_bias', nn.initializers.zeros, (3 * width,), jnp.float32)
        q, k, v = split_heads(self, x @ weight.T.astype(x.dtype) + bias.astype(x.dtype), self.num_heads)
        drop = Dropout(self.dropout, name='dropout') if self.dropout else None
        x = attention(q, k, v, drop=drop and partial(drop, train=train))
        return Linear(width, bias_init=nn.initializers.zeros, name='out_proj')(join_heads(x))


def split_heads(module: nn.Module, qkv: jax.Array, num_heads: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values of `module`, which lie side by side in `qkv: (..., L, 3 * C)`: (..., heads, L, D)."""
    width = qkv.shape[-1] // 3
    if width % num_heads:
        raise ValueError(f'{".".join(module.path)}: num_heads={num_heads} must divide the {width} channels')
    qkv = qkv.reshape(*qkv.shape[:-1], 3, num_heads, width // num_heads)
    # Heads before places, as torch has them: XLA:CPU then takes half as long for the products.
    q, k, v = jnp.moveaxis(qkv, -3, 0).swapaxes(-2, -3)
    return q, k, v


def join_heads(x: jax.Array) -> jax.Array:
    """The results of the heads side by side: (..., heads, L, D) -> (..., L, C)."""
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


class ShiftedWindowAttention(nn.Module):
    """Attention within windows, which every other block shifts by half a window: (N, H, W, C) -> (N, H, W, C).

    The image is padded with zeros to whole windows; a window as large as the image is not shifted. The parameter
    `relative_position_bias_table` has a row for each difference of two pixels' places, and a column a head.

    Attributes:
      window_size, shift_size: (height, width).
      attention_dropout, dropout: probabilities with which training drops attention weights and results.
    """

    num_heads: int
    window_size: Pair
    shift_size: Pair
    attention_dropout: float = 0.0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        height, width, channels = x.shape[1:]
        below, right = ((-size) % window for size, window in zip(x.shape[1:3], self.window_size, strict=True))
        x = jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0)))
        size = x.shape[1:3]
        shift = effective_shift(self.shift_size, self.window_size, size)
        if any(shift):
            x = jnp.roll(x, (-shift[0], -shift[1]), (1, 2))
        x = self.attend(partition(x, self.window_size), self.bias(size, shift, x.dtype), train)
        x = linear(channels, name='proj')(join_heads(x))
        x = Dropout(self.dropout)(x, train) if self.dropout else x
        x = reverse(x, self.window_size, size)
        if any(shift):
            x = jnp.roll(x, shift, (1, 2))
        return x[:, :height, :width]

    def attend(self, x: jax.Array, bias: jax.Array, train: bool) -> jax.Array:
        """Attention of the windows `x: (N, windows, pixels, C)`, whose heads stay apart: (..., heads, pixels, D)."""
        q, k, v = split_heads(self, linear(3 * x.shape[-1], name='qkv')(x), self.num_heads)
        return attention(q, k, v, bias=bias, drop=self.drop(train))

    def drop(self, train: bool) -> partial | None:
        """What training does to attention weights."""
        return partial(Dropout(self.attention_dropout), train=train) if self.attention_dropout else None

    def bias(self, size: Pair, shift: Pair, dtype: jnp.dtype) -> jax.Array:
        """What is added to the logits: (heads, pixels, pixels), or one such for each window if they are shifted."""
        pixels = math.prod(self.window_size)
        rows = self.position_bias(dtype)[relative_positions(self.window_size)]
        bias = rows.reshape(pixels, pixels, self.num_heads).transpose(2, 0, 1)
        return bias + shift_mask(size, self.window_size, shift) if any(shift) else bias

    def position_bias(self, dtype: jnp.dtype) -> jax.Array:
        """The bias of each difference of two places: ((2 * height - 1) * (2 * width - 1), heads)."""
        rows = math.prod(2 * size - 1 for size in self.window_size)
        return self.param('relative_position_bias_table', trunc_normal(0.02), (rows, self.num_heads), jnp.float32)


def effective_shift(shift: Pair, window: Pair, size: Pair) -> Pair:
    """`shift` where a window is smaller than the image of `size`, else 0."""
    return tuple(0 if w >= length else s for s, w, length in zip(shift, window, size, strict=True))


class KeysWithoutBias(Linear):
    """The linear layer of queries, keys and values, whose keys get no bias though the parameter has a place for it."""

    def add_bias(self, y: jax.Array, bias: jax.Array) -> jax.Array:
        width = y.shape[-1] // 3
        return y + jnp.asarray(bias).at[width : 2 * width].set(0)


class ShiftedWindowAttentionV2(ShiftedWindowAttention):
    """V2's: the logits are cosines times a learned factor, their bias is an MLP's of the places' logarithms."""

    def attend(self, x: jax.Array, bias: jax.Array, train: bool) -> jax.Array:
        qkv = KeysWithoutBias(3 * x.shape[-1], **linear.keywords, name='qkv')(x)
        q, k, v = split_heads(self, qkv, self.num_heads)
        init = nn.initializers.constant(math.log(10))
        scale = self.param('logit_scale', init, (self.num_heads, 1, 1), jnp.float32)
        scale = jnp.exp(jnp.minimum(scale, MAX_LOGIT_SCALE))
        return attention(normalize(q), normalize(k), v, scale=scale, bias=bias, drop=self.drop(train))

    def position_bias(self, dtype: jnp.dtype) -> jax.Array:
        x = jnp.asarray(log_spaced_positions(self.window_size), dtype)
        layers = partial(linear, 512), nn.relu, partial(linear, self.num_heads, bias=False)
        x = sequential(self, x, False, 'cpb_mlp', layers).reshape(-1, self.num_heads)
        return 16 * nn.sigmoid(x.astype(jnp.promote_types(dtype, jnp.float32)))


def normalize(x: jax.Array) -> jax.Array:
    """`torch.nn.functional.normalize` over the last axis, in float32 or wider."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.square(wide).sum(-1, keepdims=True)
    return (wide * lax.rsqrt(jnp.maximum(square, 1e-24))).astype(x.dtype)
