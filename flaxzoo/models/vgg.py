"""VGG, without and with batch normalisation.

Paper: https://arxiv.org/abs/1409.1556. Reference: torchvision.models.vgg; names of parameters are its own.
"""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import flax.linen as nn
import jax

from flaxzoo.dialect import Dialect
from flaxzoo.layers import (
    Conv2d,
    Dropout,
    Linear,
    Network,
    Norm,
    adaptive_avg_pool2d,
    flatten,
    kaiming_normal_fan_out,
    max_pool2d,
    sequential,
    tap,
)
from flaxzoo.layers.initializers import normal
from flaxzoo.layers.naming import Layer

WIDTHS = (64, 128, 256, 512, 512)

zeros = nn.initializers.zeros
conv = partial(Conv2d, kernel_size=3, padding=1, kernel_init=kaiming_normal_fan_out, bias_init=zeros)
linear = partial(Linear, kernel_init=normal(0.01), bias_init=zeros)
pool = partial(max_pool2d, kernel_size=2)


class VGG(Network):
    """`torchvision.models.VGG`, for images of 32 pixels or more.

    Attributes:
      layers: convolutions in each of the five stages, which end in a max pool.
      batch_norm: normalise after every convolution.
      dropout: probability with which training drops the outputs of the first two linear layers.
    """

    layers: Sequence[int]
    batch_norm: bool = False
    dropout: float = 0.5

    @property
    def stages(self) -> tuple[str, ...]:
        """The last ReLU of each stage, which a max pool follows."""
        ends = accumulate(map(len, self._stages()))
        return tuple(f'features.{end - 2}' for end in ends)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = self.sequential_blocks(x, train, 'features', self._stages())
        x = flatten(tap(self, 'avgpool', adaptive_avg_pool2d(x, 7)))
        dropout = partial(Dropout, self.dropout)
        head = (partial(linear, 4096), nn.relu, dropout, partial(linear, 4096), nn.relu, dropout)
        x = sequential(self, x, train, 'classifier', head)
        return linear(self.num_classes, name='classifier.6')(x)

    def _stages(self) -> list[list[Layer]]:
        """The members of torch's Sequential `features`, by stages."""
        norm = [Norm()] if self.batch_norm else []
        return [
            [partial(conv, width), *norm, nn.relu] * depth + [pool]
            for width, depth in zip(WIDTHS, self.layers, strict=True)
        ]


VARIANTS = {
    'vgg11': partial(VGG, (1, 1, 2, 2, 2)),
    'vgg13': partial(VGG, (2, 2, 2, 2, 2)),
    'vgg16': partial(VGG, (2, 2, 3, 3, 3)),
    'vgg19': partial(VGG, (2, 2, 4, 4, 4)),
    'vgg11_bn': partial(VGG, (1, 1, 2, 2, 2), batch_norm=True),
    'vgg13_bn': partial(VGG, (2, 2, 2, 2, 2), batch_norm=True),
    'vgg16_bn': partial(VGG, (2, 2, 3, 3, 3), batch_norm=True),
    'vgg19_bn': partial(VGG, (2, 2, 4, 4, 4), batch_norm=True),
}

DIALECTS = (
    Dialect(
        'timm',
        marker=r'pre_logits\.fc1\.weight',
        rename=(
            (r'pre_logits\.fc1\.(\w+)', r'classifier.0.\1'),  # a 7x7 convolution
            (r'pre_logits\.fc2\.(\w+)', r'classifier.3.\1'),  # a 1x1 convolution
            (r'head\.fc\.(\w+)', r'classifier.6.\1'),
        ),
        reshaped=(r'classifier\.[03]\.weight',),
    ),
    Dialect(
        'pretrainedmodels',
        marker=r'_features\.0\.weight',
        rename=(
            (r'_(features\..+)', r'\1'),
            (r'linear0\.(\w+)', r'classifier.0.\1'),
            (r'linear1\.(\w+)', r'classifier.3.\1'),
            (r'last_linear\.(\w+)', r'classifier.6.\1'),
        ),
    ),
)
