"""Inception v3.

Paper: https://arxiv.org/abs/1512.00567. Reference: torchvision.models.inception; names of parameters are its own.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxzoo.dialect import Dialect
from flaxzoo.layers import (
    BatchNorm,
    ConvNormAct,
    Dropout,
    Linear,
    NormLayer,
    adaptive_avg_pool2d,
    avg_pool2d,
    flatten,
    global_avg_pool2d,
    max_pool2d,
    remat,
)
from flaxzoo.layers.initializers import normal

# Torchvision truncates at +-2, 20 standard deviations and more: a plain normal. It means to start AuxLogits.conv1 at
# 0.01, but sets that where nothing reads it.
kernel_init = normal(0.1)
aux_kernel_init = normal(0.001)

# The zeros of the padding count in the mean, in torch by default.
smooth = partial(avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=True)
pool = partial(max_pool2d, kernel_size=3, stride=2)


class InceptionOutputs(NamedTuple):
    """Logits (N, num_classes) of the network and of its auxiliary head, in training."""

    logits: jax.Array
    aux_logits: jax.Array


class InceptionBlock(nn.Module):
    """What every block is told: `conv` builds a ConvNormAct of the arguments that it is called with."""

    conv: Callable[..., nn.Module]


class InceptionA(InceptionBlock):
    """Figure 5: 1x1, 5x5, double 3x3 and pool branches, (N, H, W, C) -> (N, H, W, 224 + pool_features)."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        branch1x1 = self.conv(64, 1, name='branch1x1')(x, train)
        branch5x5 = self.conv(48, 1, name='branch5x5_1')(x, train)
        branch5x5 = self.conv(64, 5, padding=2, name='branch5x5_2')(branch5x5, train)
        branch3x3dbl = self.conv(64, 1, name='branch3x3dbl_1')(x, train)
        branch3x3dbl = self.conv(96, 3, padding=1, name='branch3x3dbl_2')(branch3x3dbl, train)
        branch3x3dbl = self.conv(96, 3, padding=1, name='branch3x3dbl_3')(branch3x3dbl, train)
        branch_pool = self.conv(self.pool_features, 1, average=smooth, name='branch_pool')(x, train)
        return jnp.concatenate([branch1x1, branch5x5, branch3x3dbl, branch_pool], -1)


class InceptionB(InceptionBlock):
    """Halves the image: (N, H, W, C) -> (N, (H - 1) // 2, (W - 1) // 2, 480 + C)."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        branch3x3 = self.conv(384, 3, stride=2, name='branch3x3')(x, train)
        branch3x3dbl = self.conv(64, 1, name='branch3x3dbl_1')(x, train)
        branch3x3dbl = self.conv(96, 3, padding=1, name='branch3x3dbl_2')(branch3x3dbl, train)
        branch3x3dbl = self.conv(96, 3, stride=2, name='branch3x3dbl_3')(branch3x3dbl, train)
        return jnp.concatenate([branch3x3, branch3x3dbl, pool(x)], -1)


class InceptionC(InceptionBlock):
    """Figure 6: 7x7 convolutions split in 1x7 and 7x1, (N, H, W, C) -> (N, H, W, 768)."""

    channels_7x7: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        width = self.channels_7x7
        row = partial(self.conv, kernel_size=(1, 7), padding=(0, 3))
        column = partial(self.conv, kernel_size=(7, 1), padding=(3, 0))
        branch1x1 = self.conv(192, 1, name='branch1x1')(x, train)
        branch7x7 = self.conv(width, 1, name='branch7x7_1')(x, train)
        branch7x7 = row(width, name='branch7x7_2')(branch7x7, train)
        branch7x7 = column(192, name='branch7x7_3')(branch7x7, train)
        branch7x7dbl = self.conv(width, 1, name='branch7x7dbl_1')(x, train)
        branch7x7dbl = column(width, name='branch7x7dbl_2')(branch7x7dbl, train)
        branch7x7dbl = row(width, name='branch7x7dbl_3')(branch7x7dbl, train)
        branch7x7dbl = column(width, name='branch7x7dbl_4')(branch7x7dbl, train)
        branch7x7dbl = row(192, name='branch7x7dbl_5')(branch7x7dbl, train)
        branch_pool = self.conv(192, 1, average=smooth, name='branch_pool')(x, train)
        return jnp.concatenate([branch1x1, branch7x7, branch7x7dbl, branch_pool], -1)


class InceptionD(InceptionBlock):
    """Halves the image: (N, H, W, C) -> (N, (H - 1) // 2, (W - 1) // 2, 512 + C)."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        branch3x3 = self.conv(192, 1, name='branch3x3_1')(x, train)
        branch3x3 = self.conv(320, 3, stride=2, name='branch3x3_2')(branch3x3, train)
        branch7x7x3 = self.conv(192, 1, name='branch7x7x3_1')(x, train)
        branch7x7x3 = self.conv(192, (1, 7), padding=(0, 3), name='branch7x7x3_2')(branch7x7x3, train)
        branch7x7x3 = self.conv(192, (7, 1), padding=(3, 0), name='branch7x7x3_3')(branch7x7x3, train)
        branch7x7x3 = self.conv(192, 3, stride=2, name='branch7x7x3_4')(branch7x7x3, train)
        return jnp.concatenate([branch3x3, branch7x7x3, pool(x)], -1)


class InceptionE(InceptionBlock):
    """Figure 7: 1x3 and 3x1 side by side, (N, H, W, C) -> (N, H, W, 2048)."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        row = partial(self.conv, kernel_size=(1, 3), padding=(0, 1))
        column = partial(self.conv, kernel_size=(3, 1), padding=(1, 0))
        branch1x1 = self.conv(320, 1, name='branch1x1')(x, train)
        branch3x3 = self.conv(384, 1, name='branch3x3_1')(x, train)
        branch3x3 = [
            row(384, name='branch3x3_2a')(branch3x3, train),
            column(384, name='branch3x3_2b')(branch3x3, train),
        ]
        branch3x3dbl = self.conv(448, 1, name='branch3x3dbl_1')(x, train)
        branch3x3dbl = self.conv(384, 3, padding=1, name='branch3x3dbl_2')(branch3x3dbl, train)
        branch3x3dbl = [
            row(384, name='branch3x3dbl_3a')(branch3x3dbl, train),
            column(384, name='branch3x3dbl_3b')(branch3x3dbl, train),
        ]
        branch_pool = self.conv(192, 1, average=smooth, name='branch_pool')(x, train)
        return jnp.concatenate([branch1x1, *branch3x3, *branch3x3dbl, branch_pool], -1)


class InceptionAux(InceptionBlock):
    """The auxiliary classifier on maps of 17x17 or more: (N, H, W, C) -> (N, num_classes)."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = avg_pool2d(x, 5, stride=3)
        x = self.conv(128, 1, name='conv0')(x, train)
        x = self.conv(768, 5, name='conv1')(x, train)
        x = global_avg_pool2d(x)
        return Linear(self.num_classes, kernel_init=aux_kernel_init, name='fc')(x)


class Inception3(nn.Module):
    """`torchvision.models.Inception3`, without its `transform_input`, which belongs to the weights.

    Call it on `x: (N, H, W, C)` for logits (N, num_classes); with `train=True` and `aux_logits` for InceptionOutputs.
    It takes images of 75 pixels or more, and of 299 or more in training with the auxiliary head.

    Attributes:
      num_classes: width of the head `fc` and of the auxiliary head.
      aux_logits: have the auxiliary head `AuxLogits`.
      dropout: probability with which training drops the inputs of `fc`.
      norm_layer: builds the normalisation, for example `partial(BatchNorm, eps=1e-3, axis_name='batch')`.
      remat: recompute the blocks in the backward pass instead of storing them.
      image_size: the size in pixels that the network was designed for; it takes others.
    """

    num_classes: int = 1000
    aux_logits: bool = True
    dropout: float = 0.5
    norm_layer: NormLayer = partial(BatchNorm, eps=1e-3)
    remat: bool = False
    image_size: int = 299

    aux_weight: ClassVar[float] = 0.4  # of the auxiliary loss, as torchvision's training recipe

    @property
    def has_aux(self) -> bool:
        """A network without a head has no auxiliary heads either."""
        return self.aux_logits and self.num_classes > 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array | InceptionOutputs:
        conv = partial(ConvNormAct, norm_layer=self.norm_layer, kernel_init=kernel_init)
        block = partial(remat, enabled=self.remat)

        x = conv(32, 3, stride=2, name='Conv2d_1a_3x3')(x, train)
        x = conv(32, 3, name='Conv2d_2a_3x3')(x, train)
        x = conv(64, 3, padding=1, name='Conv2d_2b_3x3')(x, train)
        x = pool(x)
        x = conv(80, 1, name='Conv2d_3b_1x1')(x, train)
        x = conv(192, 3, name='Conv2d_4a_3x3')(x, train)
        x = pool(x)
        x = block(InceptionA)(conv, 32, name='Mixed_5b')(x, train)
        x = block(InceptionA)(conv, 64, name='Mixed_5c')(x, train)
        x = block(InceptionA)(conv, 64, name='Mixed_5d')(x, train)
        x = block(InceptionB)(conv, name='Mixed_6a')(x, train)
        x = block(InceptionC)(conv, 128, name='Mixed_6b')(x, train)
        x = block(InceptionC)(conv, 160, name='Mixed_6c')(x, train)
        x = block(InceptionC)(conv, 160, name='Mixed_6d')(x, train)
        x = block(InceptionC)(conv, 192, name='Mixed_6e')(x, train)
        aux = self._aux(x, train, InceptionAux(conv, self.num_classes, name='AuxLogits'))
        x = block(InceptionD)(conv, name='Mixed_7a')(x, train)
        x = block(InceptionE)(conv, name='Mixed_7b')(x, train)
        x = block(InceptionE)(conv, name='Mixed_7c')(x, train)
        x = Dropout(self.dropout, name='dropout')(adaptive_avg_pool2d(x, 1), train)
        logits = Linear(self.num_classes, kernel_init=kernel_init, name='fc')(flatten(x))
        return InceptionOutputs(logits, aux) if train and self.has_aux else logits

    def _aux(self, x: jax.Array, train: bool, head: nn.Module) -> jax.Array | None:
        if self.has_aux and train:
            return head(x, train)
        if self.has_aux and self.is_initializing():
            # Parameters depend on the channels alone: init also takes images too small for the head.
            head(jnp.zeros((1, 17, 17, x.shape[-1]), x.dtype))
        return None


VARIANTS = {'inception_v3': partial(Inception3)}

DIALECTS = (Dialect('pretrainedmodels', marker=r'last_linear\.weight', rename=((r'last_linear\.(\w+)', r'fc.\1'),)),)
