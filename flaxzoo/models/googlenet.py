"""GoogLeNet (Inception v1) with batch normalisation, as torchvision has it.

Paper: https://arxiv.org/abs/1409.4842; flaxzoo.models.inception_v1 is the paper's own network.
Reference: torchvision.models.googlenet; names of parameters are its own.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxzoo.layers import (
    BatchNorm,
    ConvNormAct,
    Dropout,
    Linear,
    NormLayer,
    adaptive_avg_pool2d,
    flatten,
    global_avg_pool2d,
    max_pool2d,
    remat,
)
from flaxzoo.layers.initializers import normal

# Output channels of the blocks: 1x1; 3x3 reduction, 3x3; 5x5 reduction, 5x5; pool projection (the paper's table 1).
WIDTHS = {
    '3a': (64, 96, 128, 16, 32, 32),
    '3b': (128, 128, 192, 32, 96, 64),
    '4a': (192, 96, 208, 16, 48, 64),
    '4b': (160, 112, 224, 24, 64, 64),
    '4c': (128, 128, 256, 24, 64, 64),
    '4d': (112, 144, 288, 32, 64, 64),
    '4e': (256, 160, 320, 32, 128, 128),
    '5a': (256, 160, 320, 32, 128, 128),
    '5b': (384, 192, 384, 48, 128, 128),
}

# Torchvision truncates at +-2, 200 standard deviations: a plain normal.
kernel_init = normal(0.01)
linear = partial(Linear, kernel_init=kernel_init)


class GoogLeNetOutputs(NamedTuple):
    """Logits (N, num_classes) of the network and of its auxiliary heads, in training."""

    logits: jax.Array
    aux_logits2: jax.Array
    aux_logits1: jax.Array


class Inception(nn.Module):
    """Four branches side by side: (N, H, W, C) -> (N, H, W, ch1x1 + ch3x3 + ch5x5 + pool_proj).

    `conv(channels, kernel_size, padding=, name=)` builds a convolution with its activation, called on (x, train).
    """

    ch1x1: int
    ch3x3red: int
    ch3x3: int
    ch5x5red: int
    ch5x5: int
    pool_proj: int
    conv: Callable[..., nn.Module]
    kernel5x5: int = 5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        branch1 = self.conv(self.ch1x1, 1, name='branch1')(x, train)
        branch2 = self.conv(self.ch3x3red, 1, name='branch2.0')(x, train)
        branch2 = self.conv(self.ch3x3, 3, padding=1, name='branch2.1')(branch2, train)
        branch3 = self.conv(self.ch5x5red, 1, name='branch3.0')(x, train)
        branch3 = self.conv(self.ch5x5, self.kernel5x5, padding=self.kernel5x5 // 2, name='branch3.1')(branch3, train)
        branch4 = max_pool2d(x, 3, stride=1, padding=1)
        branch4 = self.conv(self.pool_proj, 1, name='branch4.1')(branch4, train)
        return jnp.concatenate([branch1, branch2, branch3, branch4], -1)


class InceptionAux(nn.Module):
    """An auxiliary classifier on the maps of a block: (N, H, W, C) -> (N, num_classes)."""

    num_classes: int
    dropout: float
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = adaptive_avg_pool2d(x, 4)
        x = self.conv(128, 1, name='conv')(x, train)
        x = nn.relu(linear(1024, name='fc1')(flatten(x)))
        x = Dropout(self.dropout, name='dropout')(x, train)
        return linear(self.num_classes, name='fc2')(x)


def inception_stages(
    x: jax.Array,
    train: bool,
    block: Callable[..., nn.Module],
    aux: Callable[[jax.Array, str], jax.Array | None],
    last_pool: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """The nine Inception blocks: (N, H, W, 192) -> (N, H / 4, W / 4, 1024), and what `aux` makes on the way, 2 then 1.

    `block(*widths, name=)` builds a block, `aux(x, name)` runs an auxiliary head, `last_pool` is before block 5a.
    """

    def blocks(x: jax.Array, *names: str) -> jax.Array:
        for name in names:
            x = block(*WIDTHS[name], name=f'inception{name}')(x, train)
        return x

    x = blocks(x, '3a', '3b')
    x = max_pool2d(x, 3, stride=2, ceil_mode=True)
    x = blocks(x, '4a')
    aux1 = aux(x, 'aux1')
    x = blocks(x, '4b', '4c', '4d')
    aux2 = aux(x, 'aux2')
    x = blocks(x, '4e')
    x = blocks(last_pool(x), '5a', '5b')
    return x, aux2, aux1


class GoogLeNet(nn.Module):
    """`torchvision.models.GoogLeNet`, without its `transform_input`, which belongs to the weights.

    Call it on `x: (N, H, W, C)`, 15 pixels or more, for logits (N, num_classes); with `train=True` and `aux_logits` for
    GoogLeNetOutputs.

    Attributes:
      num_classes: width of the head `fc` and of the auxiliary heads.
      aux_logits: have the auxiliary heads `aux1` and `aux2`.
      dropout, dropout_aux: probability with which training drops the inputs of the last linear layers.
      norm_layer: builds the normalisation, for example `partial(BatchNorm, eps=1e-3, axis_name='batch')`.
      remat: recompute the blocks in the backward pass instead of storing them.
      image_size: the size in pixels that the network was designed for; it takes others.
    """

    num_classes: int = 1000
    aux_logits: bool = True
    dropout: float = 0.2
    dropout_aux: float = 0.7
    norm_layer: NormLayer = partial(BatchNorm, eps=1e-3)
    remat: bool = False
    image_size: int = 224

    aux_weight: ClassVar[float] = 0.3  # of each auxiliary loss, from the paper

    @property
    def has_aux(self) -> bool:
        """A network without a head has no auxiliary heads either."""
        return self.aux_logits and self.num_classes > 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array | GoogLeNetOutputs:
        conv = partial(ConvNormAct, norm_layer=self.norm_layer, kernel_init=kernel_init)
        # The "5x5" is 3x3 as in torchvision, whose weights are so (https://github.com/pytorch/vision/issues/906).
        block = partial(remat(Inception, self.remat), conv=conv, kernel5x5=3)

        def aux(x: jax.Array, name: str) -> jax.Array | None:
            # init makes the parameters of the heads in any mode.
            if self.has_aux and (train or self.is_initializing()):
                return InceptionAux(self.num_classes, self.dropout_aux, conv, name=name)(x, train)
            return None

        x = conv(64, 7, stride=2, padding=3, name='conv1')(x, train)
        x = max_pool2d(x, 3, stride=2, ceil_mode=True)
        x = conv(64, 1, name='conv2')(x, train)
        x = conv(192, 3, padding=1, name='conv3')(x, train)
        x = max_pool2d(x, 3, stride=2, ceil_mode=True)
        # The paper's pool is 3x3.
        last_pool = partial(max_pool2d, kernel_size=2, stride=2, ceil_mode=True)
        x, aux2, aux1 = inception_stages(x, train, block, aux, last_pool)
        x = Dropout(self.dropout, name='dropout')(global_avg_pool2d(x), train)
        logits = linear(self.num_classes, name='fc')(x)
        return GoogLeNetOutputs(logits, aux2, aux1) if train and self.has_aux else logits


VARIANTS = {'googlenet': partial(GoogLeNet)}
