"""Xception.

Paper: https://arxiv.org/abs/1610.02357, figure 5. Reference: timm's legacy_xception, with its parameter names.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax

from flaxzoo.dialect import Dialect
from flaxzoo.layers import (
    Conv2d,
    Dropout,
    Linear,
    Network,
    Norm,
    global_avg_pool2d,
    kaiming_normal_fan_out,
    max_pool2d,
    sequential,
    tap,
)

conv = partial(Conv2d, bias=False, kernel_init=kaiming_normal_fan_out)
norm = Norm()

# Widths of the separable convolutions of each block, and its stride.
ENTRY = (((128, 128), 2), ((256, 256), 2), ((728, 728), 2))
MIDDLE = (((728, 728, 728), 1),) * 8
EXIT = (((728, 1024), 2),)


class SeparableConv2d(nn.Module):
    """A depthwise 3x3 and a 1x1 with nothing between: (N, H, W, C) -> (N, H, W, out_channels)."""

    out_channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = conv(x.shape[-1], 3, padding=1, groups=x.shape[-1], name='conv1')(x)
        return conv(self.out_channels, 1, name='pointwise')(x)


class Block(nn.Module):
    """Separable convolutions and a shortcut: (N, H, W, C) -> (N, H / stride, W / stride, widths[-1])."""

    widths: Sequence[int]
    stride: int = 1
    start_with_relu: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.widths[-1]:
            shortcut = conv(self.widths[-1], 1, stride=self.stride, name='skip')(x)
            shortcut = norm(name='skipbn')(shortcut, train)
        separable = [layer for width in self.widths for layer in (nn.relu, partial(SeparableConv2d, width), norm)]
        x = sequential(self, x, train, 'rep', separable if self.start_with_relu else separable[1:])
        if self.stride != 1:
            x = max_pool2d(x, 3, stride=self.stride, padding=1)
        return x + shortcut


class Xception(Network):
    """timm's `legacy_xception`, for images of 7 pixels or more.

    Attributes:
      drop_rate: dropout before the head.
    """

    image_size: int = 299
    drop_rate: float = 0.0

    stages = ('act2', 'block2.rep.0', 'block3.rep.0', 'block12.rep.0', 'act4')

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = conv(32, 3, stride=2, name='conv1')(x)
        x = tap(self, 'act1', nn.relu(norm(name='bn1')(x, train)))
        x = conv(64, 3, name='conv2')(x)
        x = tap(self, 'act2', nn.relu(norm(name='bn2')(x, train)))
        for i, (widths, stride) in enumerate((*ENTRY, *MIDDLE, *EXIT), start=1):
            # The first block follows a ReLU.
            x = self.run_block(partial(Block, widths, stride, start_with_relu=i > 1, name=f'block{i}'), x, train)
        for i, width in ((3, 1536), (4, 2048)):
            x = SeparableConv2d(width, name=f'conv{i}')(x)
            x = tap(self, f'act{i}', nn.relu(norm(name=f'bn{i}')(x, train)))
        x = global_avg_pool2d(x)
        if self.drop_rate:
            x = Dropout(self.drop_rate, name='drop')(x, train)
        return Linear(self.num_classes, name='fc')(x)


VARIANTS = {
    'xception': partial(Xception),
}

DIALECTS = (Dialect('pretrainedmodels', marker=r'last_linear\.weight', rename=((r'last_linear\.(\w+)', r'fc.\1'),)),)
