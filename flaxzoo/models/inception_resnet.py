"""Inception-ResNet-v1 and -v2.

Paper: https://arxiv.org/abs/1602.07261, figures 10 to 20. References, with their parameter names: timm's
inception_resnet_v2 and facenet-pytorch's InceptionResnetV1. All released weights are of TensorFlow-slim's form of the
networks, which differs from the paper's in widths and ends with one more block, `block8`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flaxzoo.dialect import Dialect
from flaxzoo.layers import (
    Branches,
    Conv2d,
    Dropout,
    Linear,
    Network,
    adaptive_avg_pool2d,
    averaged,
    global_avg_pool2d,
    kept,
    kept_relu,
    tap,
)
from flaxzoo.models.inception_parts import avg_pool, max_pool, norm, reduction_a, same, valid


def block35(*third: int) -> dict:
    """Branches of the residual blocks on 35x35 grids; `third` has the widths of the last branch after its 1x1."""
    return {
        'branch0': (same(32),),
        'branch1': (same(32), same(32, 3)),
        'branch2': (same(32), *(same(width, 3) for width in third)),
    }


def factorised(size: int, pointwise: int, *widths: int) -> dict:
    """Branches of the residual blocks on 17x17 and 8x8 grids: a 1x1; a 1x1 and a `size` x `size` in two steps."""
    first, row, column = widths
    return {'branch0': (same(pointwise),), 'branch1': (same(first), same(row, (1, size)), same(column, (size, 1)))}


def reduction_b(second: int, *third: int) -> dict:
    """17x17 -> 8x8."""
    middle, last = third
    return {
        'branch0': (same(256), valid(384, 3, stride=2)),
        'branch1': (same(256), valid(second, 3, stride=2)),
        'branch2': (same(256), same(middle, 3), valid(last, 3, stride=2)),
        'branch3': (max_pool,),
    }


MIXED_5B = {
    'branch0': (same(96),),
    'branch1': (same(48), same(64, 5)),
    'branch2': (same(64), same(96, 3), same(96, 3)),
    'branch3': averaged(avg_pool, same(64)),
}


class Residual(Branches):
    """Adds `scale` times the projected branches to `x: (N, H, W, C)`, giving the same shape.

    The projection `conv2d` has a bias and no normalisation, so nothing but `scale` bounds what it adds.
    """

    scale: float = 1.0
    relu: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x + self.scale * Conv2d(x.shape[-1], 1, name='conv2d')(self.concatenate(x, train))
        return kept_relu(x) if self.relu else kept(x)


class InceptionResnet(Network):
    """What the two networks share: a stem, three groups of residual blocks with reductions between, `block8`.

    Images of 75 pixels or more.

    Attributes:
      blocks: residual blocks on 35x35, 17x17 and 8x8 grids, `block8` not counted.
      scales: factor of the residual branches of each group. The last block's is 1, and it has no ReLU.
    """

    image_size: int = 299
    blocks: Sequence[int] = (5, 10, 5)
    scales: Sequence[float] = (0.17, 0.10, 0.20)

    groups: ClassVar[Mapping[str, Mapping]]  # {name: branches of its residual blocks}
    reductions: ClassVar[Mapping[str, Mapping]]  # {name: branches}, before the second and the third group

    def __post_init__(self) -> None:
        if len(self.blocks) != 3 or len(self.scales) != 3:
            raise ValueError(f'blocks and scales need three values each, got {self.blocks!r} and {self.scales!r}')
        super().__post_init__()

    def layer(self, x: jax.Array, train: bool, name: str, layer: partial) -> jax.Array:
        """`x` through the module `name` that `layer` builds."""
        return self.run_block(partial(layer, name=name), x, train)

    def stem(self, x: jax.Array, train: bool) -> jax.Array:
        """(N, 299, 299, C) -> (N, 71, 71, 192)."""
        x = self.layer(x, train, 'conv2d_1a', valid(32, 3, stride=2))
        x = self.layer(x, train, 'conv2d_2a', valid(32, 3))
        x = self.layer(x, train, 'conv2d_2b', same(64, 3))
        x = tap(self, 'maxpool_3a', max_pool(x))
        x = self.layer(x, train, 'conv2d_3b', same(80))
        return self.layer(x, train, 'conv2d_4a', valid(192, 3))

    def residuals(self, x: jax.Array, train: bool) -> jax.Array:
        """The three groups with their reductions, and `block8`: (N, 35, 35, C) -> (N, 8, 8, C')."""
        reductions = list(self.reductions.items())
        for i, (group, branches) in enumerate(self.groups.items()):
            if i:
                name, reduction = reductions[i - 1]
                x = self.layer(x, train, name, partial(Branches, reduction))
            for j in range(self.blocks[i]):
                x = self.layer(x, train, f'{group}.{j}', partial(Residual, branches, scale=self.scales[i]))
        return self.layer(x, train, 'block8', partial(Residual, branches, relu=False))


class InceptionResnetV1(InceptionResnet):
    """facenet-pytorch's `InceptionResnetV1`, the FaceNet network, and the paper's classifier.

    By default it is facenet-pytorch's `classify=True`: pooled
    features, a normalised embedding, and `logits` on top of it, (N, num_classes). With `classify=False` the result is
    the embedding scaled to length 1, (N, embedding), and there are no `logits`. With `embedding=None` there is no
    embedding and `logits` see the 1792 pooled features, as in the paper.

    Attributes:
      classify: logits, or embeddings of length 1.
      dropout_prob: dropout of the pooled features.
      embedding: size of the embedding, or None.
    """

    image_size: int = 160
    classify: bool = True
    dropout_prob: float = 0.6
    embedding: int | None = 512

    groups: ClassVar = {
        'repeat_1': block35(32, 32),
        'repeat_2': factorised(7, 128, 128, 128, 128),
        'repeat_3': factorised(3, 192, 192, 192, 192),
    }
    reductions: ClassVar = {'mixed_6a': reduction_a(192, 192, 256, 384), 'mixed_7a': reduction_b(256, 256, 256)}
    stages = ('conv2d_2b', 'conv2d_4a', 'repeat_1', 'repeat_2', 'block8')

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = self.stem(x, train)
        x = self.layer(x, train, 'conv2d_4b', valid(256, 3, stride=2))
        x = self.residuals(x, train)
        x = Dropout(self.dropout_prob, name='dropout')(adaptive_avg_pool2d(x, 1), train)[:, 0, 0]
        if self.embedding is not None:
            x = Linear(self.embedding, bias=False, name='last_linear')(x)
            x = norm(name='last_bn')(x, train)
        return Linear(self.num_classes, name='logits')(x) if self.classify else _unit_length(x)


class InceptionResnetV2(InceptionResnet):
    """`timm.models.InceptionResnetV2`; its head is called `classif`.

    Attributes:
      blocks: timm's `repeat_2` has nine blocks, `block8` is the tenth.
      drop_rate: dropout before the head.
    """

    blocks: Sequence[int] = (10, 20, 9)
    drop_rate: float = 0.0

    groups: ClassVar = {
        'repeat': block35(48, 64),
        'repeat_1': factorised(7, 192, 128, 160, 192),
        'repeat_2': factorised(3, 192, 192, 224, 256),
    }
    reductions: ClassVar = {'mixed_6a': reduction_a(256, 256, 384, 384), 'mixed_7a': reduction_b(288, 288, 320)}
    stages = ('conv2d_2b', 'conv2d_4a', 'repeat', 'repeat_1', 'conv2d_7b')

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = tap(self, 'maxpool_5a', max_pool(self.stem(x, train)))
        x = self.layer(x, train, 'mixed_5b', partial(Branches, MIXED_5B))
        x = self.residuals(x, train)
        x = self.layer(x, train, 'conv2d_7b', same(1536))
        x = Dropout(self.drop_rate, name='head_drop')(global_avg_pool2d(x), train)
        return Linear(self.num_classes, name='classif')(x)


def _unit_length(x: jax.Array) -> jax.Array:
    """`x: (N, C)` divided by its length, or by 1e-12 if that is larger, as torch.nn.functional.normalize."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.square(wide).sum(-1, keepdims=True)
    return (wide * lax.rsqrt(jnp.maximum(squares, 1e-24))).astype(x.dtype)


VARIANTS = {
    'inception_resnet_v1': partial(InceptionResnetV1),
    'inception_resnet_v2': partial(InceptionResnetV2),
}

DIALECTS = (
    # Version 1 has a `last_linear` of its own, without a bias.
    Dialect('pretrainedmodels', marker=r'last_linear\.bias', rename=((r'last_linear\.(\w+)', r'classif.\1'),)),
)
