"""VGG, without and with batch normalisation.

Paper: https://arxiv.org/abs/1409.1556. Reference: torchvision.models.vgg; names of parameters are its own.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax

from flaxzoo.dialect import Dialect
from flaxzoo.layers import (
    BatchNorm,
    Conv2d,
    Dropout,
    Linear,
    NormLayer,
    adaptive_avg_pool2d,
    flatten,
    kaiming_normal_fan_out,
    max_pool2d,
    remat,
)
from flaxzoo.layers.initializers import normal

WIDTHS = (64, 128, 256, 512, 512)

zeros = nn.initializers.zeros
conv = partial(Conv2d, kernel_size=3, padding=1, kernel_init=kaiming_normal_fan_out, bias_init=zeros)
linear = partial(Linear, kernel_init=normal(0.01), bias_init=zeros)


class VGG(nn.Module):
    """`torchvision.models.VGG`. Call it on `x: (N, H, W, C)`, 32 pixels or more, for logits (N, num_classes).

    Attributes:
      layers: convolutions in each of the five stages, which end in a max pool.
      batch_norm: normalise after every convolution, by `norm_layer`.
      num_classes: width of the head `classifier.6`.
      dropout: probability with which training drops the outputs of the first two linear layers.
      norm_layer: builds the normalisation, for example `partial(BatchNorm, axis_name='batch')`.
      remat: recompute the stages in the backward pass instead of storing them.
      image_size: the size in pixels that the network was designed for; it takes others.
    """

    layers: Sequence[int]
    batch_norm: bool = False
    num_classes: int = 1000
    dropout: float = 0.5
    norm_layer: NormLayer = BatchNorm
    remat: bool = False
    image_size: int = 224

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        index = 0  # of the next layer in torch's nn.Sequential `features`
        for width, depth in zip(WIDTHS, self.layers, strict=True):
            stage = remat(partial(VGG._stage, width=width, depth=depth, index=index), self.remat)
            x = stage(self, x, train)
            index += depth * self._layers_a_convolution + 1
        x = flatten(adaptive_avg_pool2d(x, 7))
        x = nn.relu(linear(4096, name='classifier.0')(x))
        x = Dropout(self.dropout, name='classifier.2')(x, train)
        x = nn.relu(linear(4096, name='classifier.3')(x))
        x = Dropout(self.dropout, name='classifier.5')(x, train)
        return linear(self.num_classes, name='classifier.6')(x)

    @property
    def _layers_a_convolution(self) -> int:
        """Torch counts the convolution, its norm if any and the ReLU."""
        return 3 if self.batch_norm else 2

    def _stage(self, x: jax.Array, train: bool, width: int, depth: int, index: int) -> jax.Array:
        for i in range(index, index + depth * self._layers_a_convolution, self._layers_a_convolution):
            x = conv(width, name=f'features.{i}')(x)
            if self.batch_norm:
                x = self.norm_layer(name=f'features.{i + 1}')(x, train)
            x = nn.relu(x)
        return max_pool2d(x, 2)


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
