"""Swin Transformer and Swin Transformer V2.

Papers: https://arxiv.org/abs/2103.14030, https://arxiv.org/abs/2111.09883.
Reference: torchvision.models.swin_transformer; names of parameters are its own.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxzoo.dialect import Dialect
from flaxzoo.layers import (
    Conv2d,
    LayerNorm,
    Linear,
    Network,
    Norm,
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    StochasticDepth,
    global_avg_pool2d,
    mlp,
    sequential,
    tap,
)
from flaxzoo.layers.initializers import trunc_normal
from flaxzoo.layers.naming import run
from flaxzoo.ops.attention import log_spaced_positions, relative_positions
from flaxzoo.ops.pairs import IntOrPair, Pair, pair

linear = partial(Linear, kernel_init=trunc_normal(0.02), bias_init=nn.initializers.zeros)


class SwinTransformerBlock(nn.Module):
    """Attention and an MLP, each after a norm and beside a shortcut: (N, H, W, C) -> (N, H, W, C)."""

    num_heads: int
    window_size: Pair
    shift_size: Pair
    mlp_ratio: float
    dropout: float
    attention_dropout: float
    stochastic_depth_prob: float
    norm_layer: Norm

    attention: ClassVar[type[ShiftedWindowAttention]] = ShiftedWindowAttention
    norm_first: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        channels = x.shape[-1]
        fields = self.num_heads, self.window_size, self.shift_size, self.attention_dropout, self.dropout
        attend = self.attention(*fields, name='attn')
        layers = mlp(int(channels * self.mlp_ratio), channels, self.dropout, linear)
        drop = StochasticDepth(self.stochastic_depth_prob, name='stochastic_depth')

        def norm(name: str, x: jax.Array) -> jax.Array:
            return run(partial(self.norm_layer, name=name), x, train)

        if self.norm_first:
            x = x + drop(attend(norm('norm1', x), train), train)
            return x + drop(sequential(self, norm('norm2', x), train, 'mlp', layers), train)
        x = x + drop(norm('norm1', attend(x, train)), train)
        return x + drop(norm('norm2', sequential(self, x, train, 'mlp', layers)), train)


class SwinTransformerBlockV2(SwinTransformerBlock):
    """V2's: what a shortcut joins has gone through attention or the MLP first, and then through the norm."""

    attention = ShiftedWindowAttentionV2
    norm_first = False


class PatchMerging(nn.Module):
    """Four pixels become one of twice the channels: (N, H, W, C) -> (N, ceil(H / 2), ceil(W / 2), 2 * C)."""

    norm_layer: Norm

    norm_first: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        pixels = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]  # torch's order: down, then across
        x, norm = jnp.concatenate(pixels, -1), partial(self.norm_layer, name='norm')
        reduction = linear(x.shape[-1] // 2, bias=False, name='reduction')
        return reduction(run(norm, x, train)) if self.norm_first else run(norm, reduction(x), train)


class PatchMergingV2(PatchMerging):
    """V2's, whose norm comes last."""

    norm_first = False


class SwinTransformer(Network):
    """`torchvision.models.SwinTransformer`, for images of any size from `patch_size` on; its maps are channels last.

    Attributes:
      patch_size: pixels a side of a patch, or (height, width).
      embed_dim: channels of the first stage; each stage has twice those of the one before.
      depths, num_heads: blocks a stage, and heads of their attention.
      window_size: patches a side of a window, or (height, width).
      mlp_ratio: hidden channels of an MLP for each of its own.
      dropout, attention_dropout: probabilities with which training drops results and attention weights.
      stochastic_depth_prob: of the last block, with which training drops a branch; it grows linearly from 0.
      norm_layer: the normalisation.
      block, downsample_layer: those of the first version or of V2.
    """

    patch_size: IntOrPair
    embed_dim: int
    depths: Sequence[int]
    num_heads: Sequence[int]
    window_size: IntOrPair
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    stochastic_depth_prob: float = 0.1
    norm_layer: Norm = Norm(LayerNorm)
    block: type[SwinTransformerBlock] = SwinTransformerBlock
    downsample_layer: type[PatchMerging] = PatchMerging

    no_weight_decay: ClassVar[tuple[str, ...]] = ('*.relative_position_bias_table', '*.logit_scale', '*.cpb_mlp.*')
    # Buffers of torch's, which are computed here.
    ignored: ClassVar[frozenset[str]] = frozenset(('relative_position_index', 'relative_coords_table'))

    @property
    def stages(self) -> tuple[str, ...]:
        """The blocks of each stage, before their patches are merged."""
        return tuple(f'features.{2 * stage + 1}' for stage in range(len(self.depths)))

    def blocks(self) -> list[list[partial]]:
        """What builds the blocks of each stage."""
        window = pair(self.window_size, 'window_size')
        half = tuple(size // 2 for size in window)
        total, stages = sum(self.depths), []
        for depth, num_heads in zip(self.depths, self.num_heads, strict=True):
            before = sum(map(len, stages))
            stages.append(
                [
                    partial(
                        self.block,
                        num_heads,
                        window,
                        half if i % 2 else (0, 0),
                        self.mlp_ratio,
                        self.dropout,
                        self.attention_dropout,
                        self.stochastic_depth_prob * (before + i) / max(total - 1, 1),
                        self.norm_layer,
                    )
                    for i in range(depth)
                ]
            )
        return stages

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        patches = partial(Conv2d, self.embed_dim, self.patch_size, stride=self.patch_size)
        x = sequential(self, x, train, 'features.0', (patches, None, self.norm_layer))
        for stage, blocks in enumerate(self.blocks()):
            if stage:
                x = run(partial(self.downsample_layer, self.norm_layer, name=f'features.{2 * stage}'), x, train)
            for i, block in enumerate(blocks):
                x = self.run_block(partial(block, name=f'features.{2 * stage + 1}.{i}'), x, train)
        x = run(partial(self.norm_layer, name='norm'), x, train)
        return linear(self.num_classes, name='head')(tap(self, 'flatten', global_avg_pool2d(x)))

    def buffers(self) -> dict[str, np.ndarray]:
        """The buffers of each block's attention."""
        window = pair(self.window_size, 'window_size')
        values = {'relative_position_index': relative_positions(window).astype(np.int64)}
        if issubclass(self.block, SwinTransformerBlockV2):
            values['relative_coords_table'] = log_spaced_positions(window)
        blocks = [
            f'{stage}.{i}.attn' for stage, depth in zip(self.stages, self.depths, strict=True) for i in range(depth)
        ]
        return {f'{block}.{name}': value for block in blocks for name, value in values.items()}

    def check_buffer(self, key: str, value: np.ndarray) -> str | None:
        """What is wrong with a file's buffer, if it is not what the network computes."""
        window = pair(self.window_size, 'window_size')
        buffers = {'relative_position_index': relative_positions, 'relative_coords_table': log_spaced_positions}
        expected = buffers[key.rpartition('.')[2]](window)
        if value.shape == expected.shape and np.allclose(value, expected, atol=1e-5):
            return None
        return f'not that of windows of {window[0]}x{window[1]} patches'


base = partial(SwinTransformer, 4, window_size=7)
v2 = partial(
    SwinTransformer, 4, window_size=8, image_size=256, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2
)
tiny = {'embed_dim': 96, 'depths': (2, 2, 6, 2), 'num_heads': (3, 6, 12, 24)}
small = {'embed_dim': 96, 'depths': (2, 2, 18, 2), 'num_heads': (3, 6, 12, 24)}
large = {'embed_dim': 128, 'depths': (2, 2, 18, 2), 'num_heads': (4, 8, 16, 32)}

VARIANTS = {
    'swin_t': partial(base, **tiny, stochastic_depth_prob=0.2),
    'swin_s': partial(base, **small, stochastic_depth_prob=0.3),
    'swin_b': partial(base, **large, stochastic_depth_prob=0.5),
    'swin_v2_t': partial(v2, **tiny, stochastic_depth_prob=0.2),
    'swin_v2_s': partial(v2, **small, stochastic_depth_prob=0.3),
    'swin_v2_b': partial(v2, **large, stochastic_depth_prob=0.5),
}


def _feature(match: re.Match) -> str:
    """Our name of a member of timm's stage: its blocks, or the merging of patches that it begins with."""
    stage, number, member = int(match[1]), match[2], match[3].replace('mlp.fc1', 'mlp.0').replace('mlp.fc2', 'mlp.3')
    return f'features.{2 * stage + 1}.{number}.{member}' if number else f'features.{2 * stage}.{member}'


TIMM = (
    (r'patch_embed\.proj\.(\w+)', r'features.0.0.\1'),
    (r'patch_embed\.norm\.(\w+)', r'features.0.2.\1'),
    (r'layers\.(\d+)\.(?:blocks\.(\d+)|downsample)\.(.+)', _feature),
    (r'head\.fc\.(\w+)', r'head.\1'),
)
# timm's second version has the biases of queries and values apart.
DIALECTS = (Dialect('timm', marker=r'patch_embed\.proj\.weight', rename=TIMM, networks=('swin_[tsb]',)),)
