"""Inception-v4.

Paper: https://arxiv.org/abs/1602.07261, figures 3 to 9. Reference: timm.models.inception_v4, with its parameter names.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxzoo.layers import (
    BatchNorm,
    Dropout,
    Linear,
    NormLayer,
    avg_pool2d,
    global_avg_pool2d,
    max_pool2d,
    remat,
)
from flaxzoo.layers.branches import Branches, same, valid


def avg_pool(x: jax.Array) -> jax.Array:
    """3x3 mean of what lies inside the image; Inception-v3 counts the padding, this paper's networks do not."""
    return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def max_pool(x: jax.Array) -> jax.Array:
    """Halves the image: 3x3 maximum, stride 2, no padding."""
    return max_pool2d(x, 3, stride=2)


def reduction_a(k: int, l: int, m: int, n: int) -> dict:  # noqa: E741
    """35x35 -> 17x17; the widths have the letters of the paper's figure 7 and table 1."""
    return {
        'branch0': (valid(n, 3, stride=2),),
        'branch1': (same(k), same(l, 3), valid(m, 3, stride=2)),
        'branch2': (max_pool,),
    }


# Of an average pool and a convolution the latter is `branch3.1`, by its place in torch's Sequential `branch3`.
MIXED_3A = {'maxpool': (max_pool,), 'conv': (valid(96, 3, stride=2),)}
MIXED_4A = {
    'branch0': (same(64), valid(96, 3)),
    'branch1': (same(64), same(64, (1, 7)), same(64, (7, 1)), valid(96, 3)),
}
MIXED_5A = {'conv': (valid(192, 3, stride=2),), 'maxpool': (max_pool,)}
INCEPTION_A = {
    'branch0': (same(96),),
    'branch1': (same(64), same(96, 3)),
    'branch2': (same(64), same(96, 3), same(96, 3)),
    'branch3.1': (same(96, average=avg_pool),),
}
INCEPTION_B = {
    'branch0': (same(384),),
    'branch1': (same(192), same(224, (1, 7)), same(256, (7, 1))),
    'branch2': (same(192), same(192, (7, 1)), same(224, (1, 7)), same(224, (7, 1)), same(256, (1, 7))),
    'branch3.1': (same(128, average=avg_pool),),
}
REDUCTION_B = {
    'branch0': (same(192), valid(192, 3, stride=2)),
    'branch1': (same(256), same(256, (1, 7)), same(320, (7, 1)), valid(320, 3, stride=2)),
    'branch2': (max_pool,),
}


class InceptionC(nn.Module):
    """8x8 grids, where two branches fork at their end: (N, H, W, 1536) -> (N, H, W, 1536)."""

    norm_layer: NormLayer = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def conv(x: jax.Array, name: str, *layer) -> jax.Array:
            return same(*layer)(norm_layer=self.norm_layer, name=name)(x, train)

        one = conv(x, 'branch1_0', 384)
        two = conv(x, 'branch2_0', 384)
        two = conv(two, 'branch2_1', 448, (3, 1))
        two = conv(two, 'branch2_2', 512, (1, 3))
        branches = (
            conv(x, 'branch0', 256),
            conv(one, 'branch1_1a', 256, (1, 3)),
            conv(one, 'branch1_1b', 256, (3, 1)),
            conv(two, 'branch2_3a', 256, (1, 3)),
            conv(two, 'branch2_3b', 256, (3, 1)),
            conv(x, 'branch3.1', 256, 1, avg_pool),
        )
        return jnp.concatenate(branches, axis=-1)


FEATURES = (
    valid(32, 3, stride=2),
    valid(32, 3),
    same(64, 3),
    partial(Branches, MIXED_3A),
    partial(Branches, MIXED_4A),
    partial(Branches, MIXED_5A),
    *[partial(Branches, INCEPTION_A)] * 4,
    partial(Branches, reduction_a(192, 224, 256, 384)),
    *[partial(Branches, INCEPTION_B)] * 7,
    partial(Branches, REDUCTION_B),
    *[partial(InceptionC)] * 3,
)


class InceptionV4(nn.Module):
    """`timm.models.InceptionV4`.

    Call it on `x: (N, H, W, C)` of any floating dtype for logits (N, num_classes). H and W are at least 75.

    Attributes:
      num_classes: width of the head `last_linear`.
      drop_rate: dropout before the head.
      norm_layer: builds the normalisation, for example `partial(BatchNorm, eps=1e-3, axis_name='batch')`.
      remat: recompute the modules in the backward pass instead of storing what is inside them.
      image_size: the size in pixels that the network was designed for; it takes others.
    """

    num_classes: int = 1000
    drop_rate: float = 0.0
    norm_layer: NormLayer = partial(BatchNorm, eps=1e-3)
    remat: bool = False
    image_size: int = 299

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for i, layer in enumerate(FEATURES):
            build = partial(remat(layer.func, self.remat), *layer.args, **layer.keywords)
            x = build(norm_layer=self.norm_layer, name=f'features.{i}')(x, train)
        x = global_avg_pool2d(x)
        x = Dropout(self.drop_rate, name='head_drop')(x, train)
        return Linear(self.num_classes, name='last_linear')(x)


VARIANTS = {
    'inception_v4': partial(InceptionV4),
}
