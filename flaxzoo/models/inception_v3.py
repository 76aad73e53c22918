"""Inception v3.

Paper: https://arxiv.org/abs/1512.00567. Reference: torchvision.models.inception; names of parameters are its own.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxzoo.dialect import Dialect
from flaxzoo.layers import (
    AveragedConv2d,
    ConvNormAct,
    Dropout,
    Linear,
    Network,
    Norm,
    adaptive_avg_pool2d,
    avg_pool2d,
    flatten,
    global_avg_pool2d,
    max_pool2d,
    tap,
)
from flaxzoo.layers.initializers import normal

# Torchvision truncates at +-2, 20 standard deviations and more: a plain normal. It means to start AuxLogits.conv1 at
# 0.01, but sets that where nothing reads it.
kernel_init = normal(0.1)
aux_kernel_init = normal(0.001)

# The zeros of the padding count in the mean, in torch by default.
smooth = partial(avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=True)
pool = partial(max_pool2d, kernel_size=3, stride=2)
conv = partial(ConvNormAct, norm_layer=Norm(eps=1e-3), kernel_init=kernel_init)
averaged_conv = partial(conv, conv=partial(AveragedConv2d, average=smooth))


class InceptionOutputs(NamedTuple):
    """Logits (N, num_classes) of the network and of its auxiliary head, in training."""

    logits: jax.Array
    aux_logits: jax.Array


class InceptionA(nn.Module):
    """Figure 5: 1x1, 5x5, double 3x3 and pool branches, (N, H, W, C) -> (N, H, W, 224 + pool_features)."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        branch1x1 = conv(64, 1, name='branch1x1')(x, train)
        branch5x5 = conv(48, 1, name='branch5x5_1')(x, train)
        branch5x5 = conv(64, 5, padding=2, name='branch5x5_2')(branch5x5, train)
        branch3x3dbl = conv(64, 1, name='branch3x3dbl_1')(x, train)
        branch3x3dbl = conv(96, 3, padding=1, name='branch3x3dbl_2')(branch3x3dbl, train)
        branch3x3dbl = conv(96, 3, padding=1, name='branch3x3dbl_3')(branch3x3dbl, train)
        branch_pool = averaged_conv(self.pool_features, 1, name='branch_pool')(x, train)
        return jnp.concatenate([branch1x1, branch5x5, branch3x3dbl, branch_pool], -1)


class InceptionB(nn.Module):
    """Halves the image: (N, H, W, C) -> (N, (H - 1) // 2, (W - 1) // 2, 480 + C)."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        branch3x3 = conv(384, 3, stride=2, name='branch3x3')(x, train)
        branch3x3dbl = conv(64, 1, name='branch3x3dbl_1')(x, train)
        branch3x3dbl = conv(96, 3, padding=1, name='branch3x3dbl_2')(branch3x3dbl, train)
        branch3x3dbl = conv(96, 3, stride=2, name='branch3x3dbl_3')(branch3x3dbl, train)
        return jnp.concatenate([branch3x3, branch3x3dbl, pool(x)], -1)


class InceptionC(nn.Module):
    """Figure 6: 7x7 convolutions split in 1x7 and 7x1, (N, H, W, C) -> (N, H, W, 768)."""

    channels_7x7: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        width = self.channels_7x7
        row = partial(conv, kernel_size=(1, 7), padding=(0, 3))
        column = partial(conv, kernel_size=(7, 1), padding=(3, 0))
        branch1x1 = conv(192, 1, name='branch1x1')(x, train)
        branch7x7 = conv(width, 1, name='branch7x7_1')(x, train)
        branch7x7 = row(width, name='branch7x7_2')(branch7x7, train)
        branch7x7 = column(192, name='branch7x7_3')(branch7x7, train)
        branch7x7dbl = conv(width, 1, name='branch7x7dbl_1')(x, train)
        branch7x7dbl = column(width, name='branch7x7dbl_2')(branch7x7dbl, train)
        branch7x7dbl = row(width, name='branch7x7dbl_3')(branch7x7dbl, train)
        branch7x7dbl = column(width, name='branch7x7dbl_4')(branch7x7dbl, train)
        branch7x7dbl = row(192, name='branch7x7dbl_5')(branch7x7dbl, train)
        branch_pool = averaged_conv(192, 1, name='branch_pool')(x, train)
        return jnp.concatenate([branch1x1, branch7x7, branch7x7dbl, branch_pool], -1)


class InceptionD(nn.Module):
    """Halves the image: (N, H, W, C) -> (N, (H - 1) // 2, (W - 1) // 2, 512 + C)."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        branch3x3 = conv(192, 1, name='branch3x3_1')(x, train)
        branch3x3 = conv(320, 3, stride=2, name='branch3x3_2')(branch3x3, train)
        branch7x7x3 = conv(192, 1, name='branch7x7x3_1')(x, train)
        branch7x7x3 = conv(192, (1, 7), padding=(0, 3), name='branch7x7x3_2')(branch7x7x3, train)
        branch7x7x3 = conv(192, (7, 1), padding=(3, 0), name='branch7x7x3_3')(branch7x7x3, train)
        branch7x7x3 = conv(192, 3, stride=2, name='branch7x7x3_4')(branch7x7x3, train)
        return jnp.concatenate([branch3x3, branch7x7x3, pool(x)], -1)


class InceptionE(nn.Module):
    """Figure 7: 1x3 and 3x1 side by side, (N, H, W, C) -> (N, H, W, 2048)."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        row = partial(conv, kernel_size=(1, 3), padding=(0, 1))
        column = partial(conv, kernel_size=(3, 1), padding=(1, 0))
        branch1x1 = conv(320, 1, name='branch1x1')(x, train)
        branch3x3 = conv(384, 1, name='branch3x3_1')(x, train)
        branch3x3 = [
            row(384, name='branch3x3_2a')(branch3x3, train),
            column(384, name='branch3x3_2b')(branch3x3, train),
        ]
        branch3x3dbl = conv(448, 1, name='branch3x3dbl_1')(x, train)
        branch3x3dbl = conv(384, 3, padding=1, name='branch3x3dbl_2')(branch3x3dbl, train)
        branch3x3dbl = [
            row(384, name='branch3x3dbl_3a')(branch3x3dbl, train),
            column(384, name='branch3x3dbl_3b')(branch3x3dbl, train),
        ]
        branch_pool = averaged_conv(192, 1, name='branch_pool')(x, train)
        return jnp.concatenate([branch1x1, *branch3x3, *branch3x3dbl, branch_pool], -1)


class InceptionAux(nn.Module):
    """The auxiliary classifier on maps of 17x17 or more: (N, H, W, C) -> (N, num_classes)."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = avg_pool2d(x, 5, stride=3)
        x = conv(128, 1, name='conv0')(x, train)
        x = conv(768, 5, name='conv1')(x, train)
        x = global_avg_pool2d(x)
        return Linear(self.num_classes, kernel_init=aux_kernel_init, name='fc')(x)


class Inception3(Network):
    """`torchvision.models.Inception3`, without its `transform_input`, which belongs to the weights.

    Training with `aux_logits` returns InceptionOutputs. It takes images of 75 pixels or more, and of 299 or more in
    training with the auxiliary head.

    Attributes:
      aux_logits: have the auxiliary head `AuxLogits`.
      dropout: probability with which training drops the inputs of the head `fc`.
    """

    image_size: int = 299
    aux_logits: bool = True
    dropout: float = 0.5

    aux_weight = 0.4  # as torchvision's training recipe
    stages = ('Conv2d_2b_3x3', 'Conv2d_4a_3x3', 'Mixed_5d', 'Mixed_6e', 'Mixed_7c')

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array | InceptionOutputs:
        x = conv(32, 3, stride=2, name='Conv2d_1a_3x3')(x, train)
        x = conv(32, 3, name='Conv2d_2a_3x3')(x, train)
        x = conv(64, 3, padding=1, name='Conv2d_2b_3x3')(x, train)
        x = tap(self, 'maxpool1', pool(x))
        x = conv(80, 1, name='Conv2d_3b_1x1')(x, train)
        x = conv(192, 3, name='Conv2d_4a_3x3')(x, train)
        x = tap(self, 'maxpool2', pool(x))
        x = self.run_block(partial(InceptionA, 32, name='Mixed_5b'), x, train)
        x = self.run_block(partial(InceptionA, 64, name='Mixed_5c'), x, train)
        x = self.run_block(partial(InceptionA, 64, name='Mixed_5d'), x, train)
        x = self.run_block(partial(InceptionB, name='Mixed_6a'), x, train)
        x = self.run_block(partial(InceptionC, 128, name='Mixed_6b'), x, train)
        x = self.run_block(partial(InceptionC, 160, name='Mixed_6c'), x, train)
        x = self.run_block(partial(InceptionC, 160, name='Mixed_6d'), x, train)
        x = self.run_block(partial(InceptionC, 192, name='Mixed_6e'), x, train)
        aux = self.auxiliary(partial(InceptionAux, self.num_classes, name='AuxLogits'), x, train, (17, 17))
        x = self.run_block(partial(InceptionD, name='Mixed_7a'), x, train)
        x = self.run_block(partial(InceptionE, name='Mixed_7b'), x, train)
        x = self.run_block(partial(InceptionE, name='Mixed_7c'), x, train)
        x = tap(self, 'avgpool', adaptive_avg_pool2d(x, 1))
        x = Dropout(self.dropout, name='dropout')(x, train)
        logits = Linear(self.num_classes, kernel_init=kernel_init, name='fc')(flatten(x))
        return logits if aux is None else InceptionOutputs(logits, aux)


VARIANTS = {'inception_v3': partial(Inception3)}

DIALECTS = (Dialect('pretrainedmodels', marker=r'last_linear\.weight', rename=((r'last_linear\.(\w+)', r'fc.\1'),)),)
