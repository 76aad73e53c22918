"""Inception-v4.

Paper: https://arxiv.org/abs/1602.07261, figures 3 to 9. Reference: timm.models.inception_v4, with its parameter names.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxzoo.layers import Branches, Dropout, Linear, Network, averaged, global_avg_pool2d
from flaxzoo.layers.naming import run, sequential
from flaxzoo.models.inception_parts import avg_pool, max_pool, reduction_a, same, valid

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
    'branch3': averaged(avg_pool, same(96)),
}
INCEPTION_B = {
    'branch0': (same(384),),
    'branch1': (same(192), same(224, (1, 7)), same(256, (7, 1))),
    'branch2': (same(192), same(192, (7, 1)), same(224, (1, 7)), same(224, (7, 1)), same(256, (1, 7))),
    'branch3': averaged(avg_pool, same(128)),
}
REDUCTION_B = {
    'branch0': (same(192), valid(192, 3, stride=2)),
    'branch1': (same(256), same(256, (1, 7)), same(320, (7, 1)), valid(320, 3, stride=2)),
    'branch2': (max_pool,),
}


class InceptionC(nn.Module):
    """8x8 grids, where two branches fork at their end: (N, H, W, 1536) -> (N, H, W, 1536)."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def conv(x: jax.Array, name: str, *layer) -> jax.Array:
            return run(partial(same(*layer), name=name), x, train)

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
            sequential(self, x, train, 'branch3', averaged(avg_pool, same(256))),
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


class InceptionV4(Network):
    """`timm.models.InceptionV4`, for images of 75 pixels or more; its head is called `last_linear`.

    Attributes:
      drop_rate: dropout before the head.
    """

    image_size: int = 299
    drop_rate: float = 0.0

    stages = ('features.2', 'features.3', 'features.9', 'features.17', 'features.21')

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for i, layer in enumerate(FEATURES):
            x = self.run_block(partial(layer, name=f'features.{i}'), x, train)
        x = global_avg_pool2d(x)
        x = Dropout(self.drop_rate, name='head_drop')(x, train)
        return Linear(self.num_classes, name='last_linear')(x)


VARIANTS = {
    'inception_v4': partial(InceptionV4),
}
