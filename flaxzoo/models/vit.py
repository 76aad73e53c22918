"""Vision Transformer (ViT).

Paper: https://arxiv.org/abs/2010.11929.
Reference: torchvision.models.vision_transformer; names of parameters are its own.
"""

import re
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxzoo.dialect import Dialect
from flaxzoo.layers import (
    Conv2d,
    Dropout,
    LayerNorm,
    Linear,
    MultiheadAttention,
    Network,
    Norm,
    mlp,
    sequential,
    tap,
)
from flaxzoo.layers.initializers import normal, variance_scaling, xavier_uniform
from flaxzoo.layers.naming import run
from flaxzoo.ops.attention import is_square, resize_positions

zeros = nn.initializers.zeros
# torchvision writes trunc_normal_, whose bounds are far out.
patches = partial(Conv2d, kernel_init=variance_scaling(1.0, 'fan_in', 'normal'), bias_init=zeros)
linear = partial(Linear, kernel_init=xavier_uniform, bias_init=normal(1e-6))


class EncoderBlock(nn.Module):
    """Attention and an MLP, each after a norm and beside a shortcut: (N, L, C) -> (N, L, C)."""

    num_heads: int
    mlp_dim: int
    dropout: float
    attention_dropout: float
    norm_layer: Norm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = run(partial(self.norm_layer, name='ln_1'), x, train)
        y = MultiheadAttention(self.num_heads, self.attention_dropout, name='self_attention')(y, train)
        x = x + Dropout(self.dropout, name='dropout')(y, train)
        y = run(partial(self.norm_layer, name='ln_2'), x, train)
        return x + sequential(self, y, train, 'mlp', mlp(self.mlp_dim, x.shape[-1], self.dropout, linear))


class VisionTransformer(Network):
    """`torchvision.models.VisionTransformer`, for images of `image_size` x `image_size` pixels, which its table fits.

    Weights for another size are resized when they are loaded, as torchvision's `interpolate_embeddings` does.

    Attributes:
      patch_size: pixels a side of a patch; it divides `image_size`.
      num_layers, num_heads: blocks, and heads of each one's attention.
      hidden_dim, mlp_dim: channels, and hidden channels of each MLP.
      dropout: probability with which training drops inputs of the encoder and results of its layers.
      attention_dropout: probability with which training drops attention weights.
      representation_size: width of a layer with a tanh before the head, `heads.pre_logits`; None for no such layer.
      norm_layer: the normalisation.

    Raises:
      ValueError: `patch_size` does not divide `image_size`; when called, images of another size.
    """

    patch_size: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    mlp_dim: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    representation_size: int | None = None
    norm_layer: Norm = Norm(LayerNorm, eps=1e-6)

    fixed_size: ClassVar[bool] = True
    no_weight_decay: ClassVar[tuple[str, ...]] = ('class_token', 'encoder.pos_embedding')

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(f'image_size={self.image_size} must be a multiple of patch_size={self.patch_size}')
        super().__post_init__()

    @property
    def stages(self) -> tuple[str, ...]:
        """Every block of the encoder."""
        return tuple(f'encoder.layers.encoder_layer_{i}' for i in range(self.num_layers))

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        self._check_size(x)
        x = patches(self.hidden_dim, self.patch_size, stride=self.patch_size, name='conv_proj')(x)
        x = x.reshape(x.shape[0], -1, self.hidden_dim)
        token = self.param('class_token', zeros, (1, 1, self.hidden_dim), jnp.float32).astype(x.dtype)
        x = jnp.concatenate([token + jnp.zeros_like(x[:, :1]), x], 1)  # sharded as the image is
        x = x + self.param('encoder.pos_embedding', normal(0.02), (1, *x.shape[1:]), jnp.float32).astype(x.dtype)
        x = Dropout(self.dropout, name='encoder.dropout')(x, train)
        fields = self.num_heads, self.mlp_dim, self.dropout, self.attention_dropout, self.norm_layer
        for name in self.stages:
            x = self.run_block(partial(EncoderBlock, *fields, name=name), x, train)
        x = run(partial(self.norm_layer, name='encoder.ln'), x, train)[:, 0]
        if self.representation_size:
            pre_logits = partial(Linear, kernel_init=variance_scaling(1.0, 'fan_in', 'normal'), bias_init=zeros)
            x = tap(self, 'heads.act', jnp.tanh(pre_logits(self.representation_size, name='heads.pre_logits')(x)))
        return Linear(self.num_classes, kernel_init=zeros, bias_init=zeros, name='heads.head')(x)

    def resized(self, name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """The position table of another image size for this one's."""
        if name != 'encoder.pos_embedding' or value.shape[::2] != shape[::2] or not is_square(value.shape[1] - 1):
            return None
        return resize_positions(value, shape[1])

    def _check_size(self, x: jax.Array) -> None:
        size = self.image_size
        if x.ndim == 4 and x.shape[1:3] != (size, size):
            name = self.variant or type(self).__name__
            raise ValueError(
                f'{name} takes images of {size}x{size} pixels, got x of shape {x.shape}; resize them, or create or '
                f'load it with another image_size, a multiple of {self.patch_size}'
            )


base = partial(VisionTransformer, num_layers=12, num_heads=12, hidden_dim=768, mlp_dim=3072)
large = partial(VisionTransformer, num_layers=24, num_heads=16, hidden_dim=1024, mlp_dim=4096)

VARIANTS = {
    'vit_b_16': partial(base, 16),
    'vit_b_32': partial(base, 32),
    'vit_l_16': partial(large, 16),
    'vit_l_32': partial(large, 32),
    'vit_h_14': partial(VisionTransformer, 14, num_layers=32, num_heads=16, hidden_dim=1280, mlp_dim=5120),
}

# The members of a block: timm's name and ours.
MEMBERS = {
    'norm1.': 'ln_1.',
    'attn.qkv.': 'self_attention.in_proj_',
    'attn.proj.': 'self_attention.out_proj.',
    'norm2.': 'ln_2.',
    'mlp.fc1.': 'mlp.0.',
    'mlp.fc2.': 'mlp.3.',
}
TIMM = (
    (r'cls_token', 'class_token'),
    (r'pos_embed', 'encoder.pos_embedding'),
    (r'patch_embed\.proj\.(\w+)', r'conv_proj.\1'),
    *(
        (rf'blocks\.(\d+)\.{re.escape(theirs)}(\w+)', rf'encoder.layers.encoder_layer_\1.{ours}\2')
        for theirs, ours in MEMBERS.items()
    ),
    (r'norm\.(\w+)', r'encoder.ln.\1'),
    (r'head\.(\w+)', r'heads.head.\1'),
)

DIALECTS = (
    Dialect(
        'torchvision before 0.13',
        marker=r'.*\.mlp\.linear_1\.weight',
        rename=((r'(.*\.mlp)\.linear_1\.(\w+)', r'\1.0.\2'), (r'(.*\.mlp)\.linear_2\.(\w+)', r'\1.3.\2')),
    ),
    Dialect('timm', marker=r'pos_embed', rename=TIMM),
)
