"""MobileNetV3, small and large.

Paper: https://arxiv.org/abs/1905.02244. Reference: torchvision.models.mobilenetv3; names of parameters are its own.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax

from flaxzoo.layers import (
    Conv2dNormActivation,
    Dropout,
    Linear,
    Network,
    Norm,
    SqueezeExcite,
    global_avg_pool2d,
    kaiming_normal_fan_out,
    kept,
    make_divisible,
    sequential,
    tap,
)
from flaxzoo.layers.initializers import normal

zeros = nn.initializers.zeros
conv = partial(Conv2dNormActivation, kernel_init=kaiming_normal_fan_out)
squeeze_excite = partial(SqueezeExcite, gate=nn.hard_sigmoid, kernel_init=kaiming_normal_fan_out, bias_init=zeros)
linear = partial(Linear, kernel_init=normal(0.01), bias_init=zeros)


class Bottleneck(NamedTuple):
    """A row of the paper's tables 1 and 2. A dilated block has no stride, and no shortcut if it had one."""

    kernel: int
    expanded_channels: int
    out_channels: int
    use_se: bool
    activation: Callable[[jax.Array], jax.Array]
    stride: int = 1
    dilation: int = 1

    @property
    def step(self) -> int:
        """The stride of the block's convolution."""
        return 1 if self.dilation > 1 else self.stride


class InvertedResidual(nn.Module):
    """Expands, convolves each channel, squeezes, projects: (N, H, W, C) -> (N, H / step, W / step, out_channels)."""

    row: Bottleneck
    norm_layer: Norm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        row, channels = self.row, x.shape[-1]
        wide = row.expanded_channels
        layer = partial(conv, norm_layer=self.norm_layer, activation=row.activation)
        spatial = {'stride': row.step, 'dilation': row.dilation, 'groups': wide}
        layers = [
            *([partial(layer, wide, 1)] if wide != channels else []),
            partial(layer, wide, row.kernel, **spatial),
            *([partial(squeeze_excite, make_divisible(wide // 4))] if row.use_se else []),
            partial(layer, row.out_channels, 1, activation=None),
        ]
        y = sequential(self, x, train, 'block', layers)
        return kept(x + y) if row.stride == 1 and channels == row.out_channels else y


class MobileNetV3(Network):
    """`torchvision.models.MobileNetV3`, for images of any size; its builders' arguments are fields here.

    Attributes:
      inverted_residual_setting: the blocks.
      last_channel: width of the hidden layer of the head.
      width_mult: multiplies all channels, which are then rounded to multiples of 8.
      reduced_tail: half the channels in the last three blocks and the head.
      dilated: dilate the last three blocks, so that the maps have a stride of 16, for segmentation.
      dropout: probability with which training drops the inputs of the last linear layer.
      norm_layer: the normalisation.
    """

    inverted_residual_setting: Sequence[Bottleneck]
    last_channel: int
    width_mult: float = 1.0
    reduced_tail: bool = False
    dilated: bool = False
    dropout: float = 0.2
    norm_layer: Norm = Norm(eps=1e-3, momentum=0.01)

    @property
    def stages(self) -> tuple[str, ...]:
        """The last map of each stride."""
        rows = self._rows()
        ends = [number for number, row in enumerate(rows) if row.step > 1]
        return tuple(f'features.{number}' for number in (*ends, len(rows) + 1))

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        rows = self._rows()
        layer = partial(conv, norm_layer=self.norm_layer, activation=nn.hard_swish)
        x = layer(self._width(16), 3, stride=2, name='features.0')(x, train)
        for number, row in enumerate(rows, 1):
            x = self.run_block(partial(InvertedResidual, row, self.norm_layer, name=f'features.{number}'), x, train)
        x = layer(6 * x.shape[-1], 1, name=f'features.{len(rows) + 1}')(x, train)
        x = tap(self, 'flatten', global_avg_pool2d(x))
        hidden = self._width(self.last_channel // (2 if self.reduced_tail else 1))
        head = (partial(linear, hidden), nn.hard_swish, partial(Dropout, self.dropout))
        x = sequential(self, x, train, 'classifier', head)
        return linear(self.num_classes, name='classifier.3')(x)

    def _width(self, channels: int) -> int:
        return make_divisible(channels * self.width_mult)

    def _rows(self) -> list[Bottleneck]:
        """The blocks with what the fields change in them."""
        rows = list(self.inverted_residual_setting)
        rows, tail = rows[:-3], rows[-3:]
        if self.reduced_tail:  # the first block still expands what it is given
            tail = [row._replace(out_channels=row.out_channels // 2) for row in tail]
            tail[1:] = [row._replace(expanded_channels=row.expanded_channels // 2) for row in tail[1:]]
        if self.dilated:
            tail = [row._replace(dilation=2) for row in tail]
        return [
            row._replace(
                expanded_channels=self._width(row.expanded_channels), out_channels=self._width(row.out_channels)
            )
            for row in (*rows, *tail)
        ]


RE, HS = nn.relu, nn.hard_swish
SMALL = (
    Bottleneck(3, 16, 16, True, RE, 2),
    Bottleneck(3, 72, 24, False, RE, 2),
    Bottleneck(3, 88, 24, False, RE),
    Bottleneck(5, 96, 40, True, HS, 2),
    Bottleneck(5, 240, 40, True, HS),
    Bottleneck(5, 240, 40, True, HS),
    Bottleneck(5, 120, 48, True, HS),
    Bottleneck(5, 144, 48, True, HS),
    Bottleneck(5, 288, 96, True, HS, 2),
    Bottleneck(5, 576, 96, True, HS),
    Bottleneck(5, 576, 96, True, HS),
)
LARGE = (
    Bottleneck(3, 16, 16, False, RE),
    Bottleneck(3, 64, 24, False, RE, 2),
    Bottleneck(3, 72, 24, False, RE),
    Bottleneck(5, 72, 40, True, RE, 2),
    Bottleneck(5, 120, 40, True, RE),
    Bottleneck(5, 120, 40, True, RE),
    Bottleneck(3, 240, 80, False, HS, 2),
    Bottleneck(3, 200, 80, False, HS),
    Bottleneck(3, 184, 80, False, HS),
    Bottleneck(3, 184, 80, False, HS),
    Bottleneck(3, 480, 112, True, HS),
    Bottleneck(3, 672, 112, True, HS),
    Bottleneck(5, 672, 160, True, HS, 2),
    Bottleneck(5, 960, 160, True, HS),
    Bottleneck(5, 960, 160, True, HS),
)

VARIANTS = {
    'mobilenet_v3_small': partial(MobileNetV3, SMALL, 1024),
    'mobilenet_v3_large': partial(MobileNetV3, LARGE, 1280),
}
