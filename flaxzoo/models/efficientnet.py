"""EfficientNet B0 to B7 and EfficientNetV2 S, M and L.

Papers: https://arxiv.org/abs/1905.11946, https://arxiv.org/abs/2104.00298. Reference: torchvision.models.efficientnet;
names of parameters are its own.
"""

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax

from flaxzoo.dialect import Dialect
from flaxzoo.layers import (
    Conv2dNormActivation,
    Dropout,
    Linear,
    Network,
    Norm,
    SqueezeExcite,
    StochasticDepth,
    global_avg_pool2d,
    kaiming_normal_fan_out,
    kept,
    make_divisible,
    sequential,
    tap,
)
from flaxzoo.layers.initializers import uniform
from flaxzoo.layers.naming import Layer

zeros = nn.initializers.zeros
conv = partial(Conv2dNormActivation, activation=nn.silu, kernel_init=kaiming_normal_fan_out)
squeeze_excite = partial(SqueezeExcite, activation=nn.silu, kernel_init=kaiming_normal_fan_out, bias_init=zeros)


class Block(nn.Module):
    """What both blocks are told, and their shortcut: (N, H, W, C) -> (N, H / stride, W / stride, out_channels)."""

    expand_ratio: float
    kernel: int
    stride: int
    out_channels: int
    stochastic_depth_prob: float
    norm_layer: Norm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        channels = x.shape[-1]
        layers = self.layers(channels, make_divisible(channels * self.expand_ratio))
        y = sequential(self, x, train, 'block', layers)
        if self.stride != 1 or channels != self.out_channels:
            return y
        y = StochasticDepth(self.stochastic_depth_prob, name='stochastic_depth')(y, train)
        return kept(x + y)

    def layers(self, channels: int, expanded: int) -> list[Layer]:
        """The members of torch's Sequential `block`."""
        raise NotImplementedError


class MBConv(Block):
    """Expands, convolves each channel, squeezes to a quarter of the block's input, projects."""

    def layers(self, channels: int, expanded: int) -> list[Layer]:
        layer = partial(conv, norm_layer=self.norm_layer)
        return [
            *([partial(layer, expanded, 1)] if expanded != channels else []),
            partial(layer, expanded, self.kernel, stride=self.stride, groups=expanded),
            partial(squeeze_excite, max(1, channels // 4)),
            partial(layer, self.out_channels, 1, activation=None),
        ]


class FusedMBConv(Block):
    """Expands by a dense convolution, and projects; one convolution with an activation if it does not expand."""

    def layers(self, channels: int, expanded: int) -> list[Layer]:
        layer = partial(conv, norm_layer=self.norm_layer)
        if expanded == channels:
            return [partial(layer, self.out_channels, self.kernel, stride=self.stride)]
        return [
            partial(layer, expanded, self.kernel, stride=self.stride),
            partial(layer, self.out_channels, 1, activation=None),
        ]


class Stage(NamedTuple):
    """A row of the papers' tables: `num_layers` blocks, of which the first has the stride."""

    block: type[Block]
    expand_ratio: float
    kernel: int
    stride: int
    out_channels: int
    num_layers: int


class EfficientNet(Network):
    """`torchvision.models.EfficientNet`, for images of any size.

    Attributes:
      inverted_residual_setting: the stages.
      stem_channels: channels of the first convolution.
      last_channel: channels of the last convolution; None for four times those before it.
      width_mult: multiplies all channels but `last_channel`, which are then rounded to multiples of 8.
      depth_mult: multiplies the number of blocks of each stage, rounded up.
      dropout: probability with which training drops the inputs of the last layer.
      stochastic_depth_prob: block i of n is dropped for an image with this probability times i / n in training.
      norm_layer: the normalisation.
    """

    inverted_residual_setting: Sequence[Stage]
    stem_channels: int = 32
    last_channel: int | None = None
    width_mult: float = 1.0
    depth_mult: float = 1.0
    dropout: float = 0.2
    stochastic_depth_prob: float = 0.2
    norm_layer: Norm = Norm()

    @property
    def stages(self) -> tuple[str, ...]:
        """The last map of each stride."""
        ends = [number for number, stage in enumerate(self.inverted_residual_setting) if stage.stride > 1]
        return tuple(f'features.{number}' for number in (*ends, len(self.inverted_residual_setting)))

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        layer = partial(conv, norm_layer=self.norm_layer)
        x = layer(self._width(self.stem_channels), 3, stride=2, name='features.0')(x, train)
        for block in self._blocks():
            x = self.run_block(block, x, train)
        last = f'features.{len(self.inverted_residual_setting) + 1}'
        x = layer(self.last_channel or 4 * x.shape[-1], 1, name=last)(x, train)
        x = tap(self, 'flatten', global_avg_pool2d(x))
        x = Dropout(self.dropout, name='classifier.0')(x, train)
        kernel_init = uniform(max(1, self.num_classes) ** -0.5)
        return Linear(self.num_classes, kernel_init=kernel_init, bias_init=zeros, name='classifier.1')(x)

    def _width(self, channels: int) -> int:
        return make_divisible(channels * self.width_mult)

    def _blocks(self) -> list[partial]:
        """Builders of all blocks."""
        stages = [
            stage._replace(
                out_channels=self._width(stage.out_channels), num_layers=math.ceil(stage.num_layers * self.depth_mult)
            )
            for stage in self.inverted_residual_setting
        ]
        total, blocks = sum(stage.num_layers for stage in stages), []
        for number, stage in enumerate(stages, 1):
            for i in range(stage.num_layers):
                block = partial(
                    stage.block,
                    stage.expand_ratio,
                    stage.kernel,
                    stage.stride if i == 0 else 1,
                    stage.out_channels,
                    # torch's order of operations, so that no rate differs in its last digit
                    self.stochastic_depth_prob * float(len(blocks)) / total,
                    self.norm_layer,
                    name=f'features.{number}.{i}',
                )
                blocks.append(block)
        return blocks


B = (
    Stage(MBConv, 1, 3, 1, 16, 1),
    Stage(MBConv, 6, 3, 2, 24, 2),
    Stage(MBConv, 6, 5, 2, 40, 2),
    Stage(MBConv, 6, 3, 2, 80, 3),
    Stage(MBConv, 6, 5, 1, 112, 3),
    Stage(MBConv, 6, 5, 2, 192, 4),
    Stage(MBConv, 6, 3, 1, 320, 1),
)
V2_S = (
    Stage(FusedMBConv, 1, 3, 1, 24, 2),
    Stage(FusedMBConv, 4, 3, 2, 48, 4),
    Stage(FusedMBConv, 4, 3, 2, 64, 4),
    Stage(MBConv, 4, 3, 2, 128, 6),
    Stage(MBConv, 6, 3, 1, 160, 9),
    Stage(MBConv, 6, 3, 2, 256, 15),
)
V2_M = (
    Stage(FusedMBConv, 1, 3, 1, 24, 3),
    Stage(FusedMBConv, 4, 3, 2, 48, 5),
    Stage(FusedMBConv, 4, 3, 2, 80, 5),
    Stage(MBConv, 4, 3, 2, 160, 7),
    Stage(MBConv, 6, 3, 1, 176, 14),
    Stage(MBConv, 6, 3, 2, 304, 18),
    Stage(MBConv, 6, 3, 1, 512, 5),
)
V2_L = (
    Stage(FusedMBConv, 1, 3, 1, 32, 4),
    Stage(FusedMBConv, 4, 3, 2, 64, 7),
    Stage(FusedMBConv, 4, 3, 2, 96, 7),
    Stage(MBConv, 4, 3, 2, 192, 10),
    Stage(MBConv, 6, 3, 1, 224, 19),
    Stage(MBConv, 6, 3, 2, 384, 25),
    Stage(MBConv, 6, 3, 1, 640, 7),
)

# What the papers' code has for the larger networks, and torchvision with it.
wide = partial(EfficientNet, B, norm_layer=Norm(eps=1e-3, momentum=0.01))
v2 = partial(EfficientNet, last_channel=1280, norm_layer=Norm(eps=1e-3))

VARIANTS = {
    'efficientnet_b0': partial(EfficientNet, B),
    'efficientnet_b1': partial(EfficientNet, B, depth_mult=1.1, image_size=240),
    'efficientnet_b2': partial(EfficientNet, B, width_mult=1.1, depth_mult=1.2, dropout=0.3, image_size=288),
    'efficientnet_b3': partial(EfficientNet, B, width_mult=1.2, depth_mult=1.4, dropout=0.3, image_size=300),
    'efficientnet_b4': partial(EfficientNet, B, width_mult=1.4, depth_mult=1.8, dropout=0.4, image_size=380),
    'efficientnet_b5': partial(wide, width_mult=1.6, depth_mult=2.2, dropout=0.4, image_size=456),
    'efficientnet_b6': partial(wide, width_mult=1.8, depth_mult=2.6, dropout=0.5, image_size=528),
    'efficientnet_b7': partial(wide, width_mult=2.0, depth_mult=3.1, dropout=0.5, image_size=600),
    'efficientnet_v2_s': partial(v2, V2_S, 24, dropout=0.2, image_size=384),
    'efficientnet_v2_m': partial(v2, V2_M, 24, dropout=0.3, image_size=480),
    'efficientnet_v2_l': partial(v2, V2_L, 32, dropout=0.4, image_size=480),
}

# timm's names of a block's tensors and ours: in the first stage, which does not expand, and in the others.
FIRST = ('conv_dw', 'bn1', 'se.conv_reduce', 'se.conv_expand', 'conv_pw', 'bn2')
FIRST_OURS = ('0.0', '0.1', '1.fc1', '1.fc2', '2.0', '2.1')
OTHERS = ('conv_pw', 'bn1', 'conv_dw', 'bn2', 'se.conv_reduce', 'se.conv_expand', 'conv_pwl', 'bn3')
OTHERS_OURS = ('0.0', '0.1', '1.0', '1.1', '2.fc1', '2.fc2', '3.0', '3.1')
# Patterns of whole names in timm's files, and what they are here.
TIMM = (
    (r'conv_stem\.(\w+)', r'features.0.0.\1'),
    (r'bn1\.(\w+)', r'features.0.1.\1'),
    *(
        (rf'blocks\.{stage}\.(\d+)\.{re.escape(theirs)}\.(\w+)', rf'features.{stage + 1}.\1.block.{ours}.\2')
        for stage in range(len(B))
        for theirs, ours in (zip(OTHERS, OTHERS_OURS, strict=True) if stage else zip(FIRST, FIRST_OURS, strict=True))
    ),
    (r'conv_head\.(\w+)', rf'features.{len(B) + 1}.0.\1'),
    (r'bn2\.(\w+)', rf'features.{len(B) + 1}.1.\1'),
    (r'classifier\.(weight|bias)', r'classifier.1.\1'),
)

# timm's B5 to B7 have another epsilon.
DIALECTS = (Dialect('timm', marker=r'conv_stem\.weight', rename=TIMM, networks=('efficientnet_b[0-4]',)),)
