"""SqueezeNet 1.0 and 1.1.

Paper: https://arxiv.org/abs/1602.07360; 1.1 is the authors' faster form, https://github.com/forresti/SqueezeNet.
Reference: torchvision.models.squeezenet; names of parameters are its own.
"""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxzoo.dialect import Dialect
from flaxzoo.layers import Conv2d, Dropout, Network, global_avg_pool2d, max_pool2d, tap
from flaxzoo.layers.initializers import normal, variance_scaling

zeros = nn.initializers.zeros
# torch's kaiming_uniform_ with its defaults
conv = partial(Conv2d, kernel_init=variance_scaling(2.0, 'fan_in', 'uniform'), bias_init=zeros)
# ceil_mode: at 224 pixels the maps of 1.0 are 109, 54, 27 and 13 wide.
pool = partial(max_pool2d, kernel_size=3, stride=2, ceil_mode=True)
# Squeezed and expanded channels of the eight Fire modules.
WIDTHS = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))


class Fire(nn.Module):
    """Squeezes by 1x1, expands by 1x1 and 3x3 side by side: (N, H, W, C) -> (N, H, W, 2 * expand_planes)."""

    squeeze_planes: int
    expand_planes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(conv(self.squeeze_planes, 1, name='squeeze')(x))
        narrow = nn.relu(conv(self.expand_planes, 1, name='expand1x1')(x))
        wide = nn.relu(conv(self.expand_planes, 3, padding=1, name='expand3x3')(x))
        return jnp.concatenate([narrow, wide], -1)


class SqueezeNet(Network):
    """`torchvision.models.SqueezeNet`; logits are >= 0. Images of 21 pixels or more (1.0), of 17 or more (1.1).

    Attributes:
      stem_width, stem_kernel: the first convolution, of stride 2.
      fires: Fire modules after each of the three max pools; eight in all.
      dropout: probability with which training drops the inputs of the last convolution, `classifier.1`.
    """

    stem_width: int
    stem_kernel: int
    fires: Sequence[int]
    dropout: float = 0.5

    @property
    def stages(self) -> tuple[str, ...]:
        """The stem, and the last Fire module after each pool."""
        ends = accumulate((2, *(count + 1 for count in self.fires)))
        return tuple(f'features.{end - 1}' for end in ends)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        fires = [partial(Fire, *widths) for widths in WIDTHS]
        parts = [[partial(conv, self.stem_width, self.stem_kernel, stride=2), nn.relu]]
        for count in self.fires:
            parts.append([pool, *fires[:count]])
            del fires[:count]
        x = self.sequential_blocks(x, train, 'features', parts)
        x = Dropout(self.dropout, name='classifier.0')(x, train)
        if self.num_classes:
            x = conv(self.num_classes, 1, kernel_init=normal(0.01), name='classifier.1')(x)
        return global_avg_pool2d(tap(self, 'classifier.2', nn.relu(x)))


VARIANTS = {
    'squeezenet1_0': partial(SqueezeNet, 96, 7, (3, 4, 1)),
    'squeezenet1_1': partial(SqueezeNet, 64, 3, (2, 2, 4)),
}

DIALECTS = (
    Dialect(
        'pretrainedmodels',
        marker=r'last_conv\.weight',
        rename=((r'last_conv\.(\w+)', r'classifier.1.\1'),),
    ),
)
