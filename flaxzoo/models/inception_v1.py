"""Inception v1: GoogLeNet as the paper and its Caffe release have it, without batch normalisation.

Paper: https://arxiv.org/abs/1409.4842. Reference for what the paper leaves open (the places of the local response
normalisation, initial values): Caffe's bvlc_googlenet. No torch package has this network: names of parameters are those
of torchvision's GoogLeNet, whose convolutions here have a bias and no `bn`.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxzoo.layers import (
    Conv2d,
    Dropout,
    Linear,
    adaptive_avg_pool2d,
    avg_pool2d,
    flatten,
    global_avg_pool2d,
    local_response_norm,
    max_pool2d,
    remat,
)
from flaxzoo.layers.initializers import variance_scaling
from flaxzoo.models.googlenet import GoogLeNetOutputs, Inception, inception_stages
from flaxzoo.ops.pairs import IntOrPair

xavier = variance_scaling(1.0, 'fan_in', 'uniform')  # Caffe's: U(-sqrt(3 / fan_in), sqrt(3 / fan_in))
bias_init = nn.initializers.constant(0.2)
# The last layer of each head starts with a zero bias.
classifier = partial(Linear, kernel_init=xavier, bias_init=nn.initializers.zeros)

pool = partial(max_pool2d, kernel_size=3, stride=2, ceil_mode=True)
lrn = partial(local_response_norm, size=5, alpha=1e-4, beta=0.75)


class ConvAct(nn.Module):
    """A convolution with a bias, `conv`, and a ReLU: (N, H, W, C) -> (N, H', W', out_channels)."""

    out_channels: int
    kernel_size: IntOrPair
    stride: IntOrPair = 1
    padding: IntOrPair = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`train` changes nothing; it is there because `Inception` calls any convolution with it."""
        shape = (self.out_channels, self.kernel_size, self.stride, self.padding)
        return nn.relu(Conv2d(*shape, kernel_init=xavier, bias_init=bias_init, name='conv')(x))


class InceptionAux(nn.Module):
    """An auxiliary classifier on the maps of a block: (N, H, W, C) -> (N, num_classes)."""

    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = avg_pool2d(x, 5, stride=3)
        x = adaptive_avg_pool2d(x, 4)  # what it is at 224 pixels; makes other sizes fit fc1
        x = ConvAct(128, 1, name='conv')(x)
        x = nn.relu(Linear(1024, kernel_init=xavier, bias_init=bias_init, name='fc1')(flatten(x)))
        x = Dropout(self.dropout, name='dropout')(x, train)
        return classifier(self.num_classes, name='fc2')(x)


class InceptionV1(nn.Module):
    """The network of the paper. Call it on `x: (N, H, W, C)` for logits (N, num_classes).

    With `train=True` and `aux_logits` it returns GoogLeNetOutputs. It takes images of 31 pixels or more, and of 79 or
    more in training with auxiliary heads, which pool over 5x5 windows.

    Attributes:
      num_classes: width of the head `fc` and of the auxiliary heads.
      aux_logits: have the auxiliary heads `aux1` and `aux2`.
      dropout, dropout_aux: probability with which training drops the inputs of the last linear layers.
      remat: recompute the blocks in the backward pass instead of storing them.
      image_size: the size in pixels that the network was designed for; it takes others.
    """

    num_classes: int = 1000
    aux_logits: bool = True
    dropout: float = 0.4
    dropout_aux: float = 0.7
    remat: bool = False
    image_size: int = 224

    aux_weight: ClassVar[float] = 0.3  # of each auxiliary loss, from the paper

    @property
    def has_aux(self) -> bool:
        """A network without a head has no auxiliary heads either."""
        return self.aux_logits and self.num_classes > 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array | GoogLeNetOutputs:
        block: Callable[..., nn.Module] = partial(remat(Inception, self.remat), conv=ConvAct)

        def aux(x: jax.Array, name: str) -> jax.Array | None:
            head = partial(InceptionAux, self.num_classes, self.dropout_aux, name=name)
            if self.has_aux and train:
                return head()(x, train)
            if self.has_aux and self.is_initializing():
                # Parameters depend on the channels alone: init also takes images too small for the head.
                head()(jnp.zeros((1, 14, 14, x.shape[-1]), x.dtype))
            return None

        x = ConvAct(64, 7, stride=2, padding=3, name='conv1')(x)
        x = lrn(pool(x))
        x = ConvAct(64, 1, name='conv2')(x)
        x = ConvAct(192, 3, padding=1, name='conv3')(x)
        x = pool(lrn(x))
        x, aux2, aux1 = inception_stages(x, train, block, aux, last_pool=pool)
        x = Dropout(self.dropout, name='dropout')(global_avg_pool2d(x), train)
        logits = classifier(self.num_classes, name='fc')(x)
        return GoogLeNetOutputs(logits, aux2, aux1) if train and self.has_aux else logits


VARIANTS = {'inception_v1': partial(InceptionV1)}
