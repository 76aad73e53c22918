"""Inception v1: GoogLeNet with batch normalisation, as torchvision has it, and the paper's own network without.

Paper: https://arxiv.org/abs/1409.4842. References: torchvision.models.googlenet, whose names of parameters both have;
for what the paper leaves open (the places of the local response normalisation, initial values) Caffe's bvlc_googlenet.
No torch package has the paper's network: where torchvision's convolutions have a `bn`, its own have a bias.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxzoo.layers import (
    Conv2d,
    ConvNormAct,
    Dropout,
    Linear,
    Network,
    Norm,
    adaptive_avg_pool2d,
    avg_pool2d,
    flatten,
    global_avg_pool2d,
    local_response_norm,
    max_pool2d,
    sequential,
    tap,
)
from flaxzoo.layers.initializers import normal, variance_scaling
from flaxzoo.layers.naming import run
from flaxzoo.ops.pairs import IntOrPair

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

pool = partial(max_pool2d, kernel_size=3, stride=2, ceil_mode=True)
lrn = partial(local_response_norm, size=5, alpha=1e-4, beta=0.75)

# Torchvision truncates at +-2, 200 standard deviations: a plain normal.
narrow = normal(0.01)
xavier = variance_scaling(1.0, 'fan_in', 'uniform')  # Caffe's: U(-sqrt(3 / fan_in), sqrt(3 / fan_in))
constant = nn.initializers.constant(0.2)

# torchvision.models.googlenet.BasicConv2d
conv_norm = partial(ConvNormAct, norm_layer=Norm(eps=1e-3), kernel_init=narrow)


class ConvAct(nn.Module):
    """A convolution with a bias, `conv`, and a ReLU: (N, H, W, C) -> (N, H', W', out_channels)."""

    out_channels: int
    kernel_size: IntOrPair
    stride: IntOrPair = 1
    padding: IntOrPair = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.out_channels, self.kernel_size, self.stride, self.padding)
        return nn.relu(Conv2d(*shape, kernel_init=xavier, bias_init=constant, name='conv')(x))


def smaller(x: jax.Array) -> jax.Array:
    """At 224 pixels the 5x5 windows give 4x4 maps; the second pool makes other sizes fit the linear layer."""
    return adaptive_avg_pool2d(avg_pool2d(x, 5, stride=3), 4)


class Form(NamedTuple):
    """What the two networks do differently: layers with their initial values, the large kernel, pools and LRN."""

    conv: Callable[..., nn.Module]
    kernel5x5: int
    after_conv1: Callable[[jax.Array], jax.Array]
    after_conv3: Callable[[jax.Array], jax.Array]
    last_pool: Callable[[jax.Array], jax.Array]
    aux_pool: Callable[[jax.Array], jax.Array]
    hidden: Callable[..., nn.Module]
    classifier: Callable[..., nn.Module]


TORCHVISION = Form(
    conv=conv_norm,
    kernel5x5=3,  # as in torchvision, whose weights are so (https://github.com/pytorch/vision/issues/906)
    after_conv1=pool,
    after_conv3=pool,
    last_pool=partial(max_pool2d, kernel_size=2, stride=2, ceil_mode=True),
    aux_pool=partial(adaptive_avg_pool2d, output_size=4),
    hidden=partial(Linear, kernel_init=narrow),
    classifier=partial(Linear, kernel_init=narrow),
)
PAPER = Form(
    conv=ConvAct,
    kernel5x5=5,
    after_conv1=lambda x: lrn(pool(x)),
    after_conv3=lambda x: pool(lrn(x)),
    last_pool=pool,
    aux_pool=smaller,
    hidden=partial(Linear, kernel_init=xavier, bias_init=constant),
    classifier=partial(Linear, kernel_init=xavier, bias_init=nn.initializers.zeros),
)


class GoogLeNetOutputs(NamedTuple):
    """Logits (N, num_classes) of the network and of its auxiliary heads, in training."""

    logits: jax.Array
    aux_logits2: jax.Array
    aux_logits1: jax.Array


class Inception(nn.Module):
    """Four branches side by side: (N, H, W, C) -> (N, H, W, ch1x1 + ch3x3 + ch5x5 + pool_proj).

    `conv(channels, kernel_size, padding=)` builds a convolution with its activation.
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
        conv = partial(partial, self.conv)
        branches = {
            'branch2': [conv(self.ch3x3red, 1), conv(self.ch3x3, 3, padding=1)],
            'branch3': [conv(self.ch5x5red, 1), conv(self.ch5x5, self.kernel5x5, padding=self.kernel5x5 // 2)],
            'branch4': [partial(max_pool2d, kernel_size=3, stride=1, padding=1), conv(self.pool_proj, 1)],
        }
        branch1 = run(conv(self.ch1x1, 1, name='branch1'), x, train)
        return jnp.concatenate([branch1, *(sequential(self, x, train, *branch) for branch in branches.items())], -1)


class InceptionAux(nn.Module):
    """An auxiliary classifier on the maps of a block: (N, H, W, C) -> (N, num_classes)."""

    num_classes: int
    dropout: float
    form: Form

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = run(partial(self.form.conv, 128, 1, name='conv'), self.form.aux_pool(x), train)
        x = nn.relu(self.form.hidden(1024, name='fc1')(flatten(x)))
        x = Dropout(self.dropout, name='dropout')(x, train)
        return self.form.classifier(self.num_classes, name='fc2')(x)


class GoogLeNet(Network):
    """`torchvision.models.GoogLeNet`, without its `transform_input`, which belongs to the weights.

    Images of 15 pixels or more. Training with `aux_logits` returns GoogLeNetOutputs.

    Attributes:
      aux_logits: have the auxiliary heads `aux1` and `aux2`.
      dropout, dropout_aux: probability with which training drops the inputs of the last linear layers.
    """

    aux_logits: bool = True
    dropout: float = 0.2
    dropout_aux: float = 0.7

    aux_weight = 0.3  # from the paper
    stages = ('conv1', 'conv3', 'inception3b', 'inception4e', 'inception5b')

    form: ClassVar[Form] = TORCHVISION

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array | GoogLeNetOutputs:
        form = self.form
        x = run(partial(form.conv, 64, 7, stride=2, padding=3, name='conv1'), x, train)
        x = tap(self, 'maxpool1', form.after_conv1(x))
        x = run(partial(form.conv, 64, 1, name='conv2'), x, train)
        x = run(partial(form.conv, 192, 3, padding=1, name='conv3'), x, train)
        x = tap(self, 'maxpool2', form.after_conv3(x))
        x = self._blocks(x, train, '3a', '3b')
        x = tap(self, 'maxpool3', pool(x))
        x = self._blocks(x, train, '4a')
        aux1 = self._aux(x, train, 'aux1')
        x = self._blocks(x, train, '4b', '4c', '4d')
        aux2 = self._aux(x, train, 'aux2')
        x = self._blocks(x, train, '4e')
        x = tap(self, 'maxpool4', form.last_pool(x))
        x = self._blocks(x, train, '5a', '5b')
        x = Dropout(self.dropout, name='dropout')(global_avg_pool2d(x), train)
        logits = form.classifier(self.num_classes, name='fc')(x)
        return logits if aux2 is None else GoogLeNetOutputs(logits, aux2, aux1)

    def _blocks(self, x: jax.Array, train: bool, *names: str) -> jax.Array:
        block = partial(Inception, conv=self.form.conv, kernel5x5=self.form.kernel5x5)
        for name in names:
            x = self.run_block(partial(block, *WIDTHS[name], name=f'inception{name}'), x, train)
        return x

    def _aux(self, x: jax.Array, train: bool, name: str) -> jax.Array | None:
        head = partial(InceptionAux, self.num_classes, self.dropout_aux, self.form, name=name)
        return self.auxiliary(head, x, train, (14, 14))


class InceptionV1(GoogLeNet):
    """The network of the paper, with true 5x5 convolutions, biases and local response normalisation.

    Images of 31 pixels or more, and of 79 or more in training with auxiliary heads, which pool over 5x5 windows.
    """

    dropout: float = 0.4

    form = PAPER


VARIANTS = {'googlenet': partial(GoogLeNet), 'inception_v1': partial(InceptionV1)}
