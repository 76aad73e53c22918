"""DenseNet.

Paper: https://arxiv.org/abs/1608.06993. Reference: torchvision.models.densenet; names of parameters are its own, and
timm's are the same. What torchvision calls `memory_efficient` is `remat`.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxzoo.dialect import Dialect
from flaxzoo.layers import (
    Conv2d,
    Dropout,
    Linear,
    Network,
    Norm,
    avg_pool2d,
    global_avg_pool2d,
    max_pool2d,
    tap,
)
from flaxzoo.layers.initializers import variance_scaling

# torch's kaiming_normal_ with its defaults
conv = partial(Conv2d, bias=False, kernel_init=variance_scaling(2.0, 'fan_in', 'normal'))
norm = Norm()


class DenseLayer(nn.Module):
    """What a dense block adds to its maps: [(N, H, W, C1), (N, H, W, C2), ...] -> (N, H, W, growth_rate).

    It takes the maps one by one, as torch does: recomputed, it keeps no copy of them side by side.
    """

    growth_rate: int
    bn_size: int
    drop_rate: float

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], train: bool = False) -> jax.Array:
        x = tap(self, 'cat', jnp.concatenate(maps, -1))
        x = tap(self, 'relu1', nn.relu(norm(name='norm1')(x, train)))
        x = conv(self.bn_size * self.growth_rate, 1, name='conv1')(x)
        x = tap(self, 'relu2', nn.relu(norm(name='norm2')(x, train)))
        x = conv(self.growth_rate, 3, padding=1, name='conv2')(x)
        return Dropout(self.drop_rate, name='dropout')(x, train) if self.drop_rate else x


class Transition(nn.Module):
    """Halves channels, height and width between two dense blocks: (N, H, W, C) -> (N, H / 2, W / 2, C / 2)."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        channels = x.shape[-1]
        x = tap(self, 'relu', nn.relu(norm(name='norm')(x, train)))
        x = conv(channels // 2, 1, name='conv')(x)
        return tap(self, 'pool', avg_pool2d(x, 2))


class DenseNet(Network):
    """`torchvision.models.DenseNet`, for images of 29 pixels or more.

    Attributes:
      growth_rate: maps that each layer adds.
      block_config: layers in each dense block.
      num_init_features: channels of the stem.
      bn_size: the channels inside a layer, as a multiple of `growth_rate`.
      drop_rate: probability with which training drops what a layer adds, element by element.
    """

    growth_rate: int = 32
    block_config: Sequence[int] = (6, 12, 24, 16)
    num_init_features: int = 64
    bn_size: int = 4
    drop_rate: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        """The stem, each dense block before its transition, and the last one after its norm and ReLU."""
        inner = range(1, len(self.block_config))
        return 'features.relu0', *(f'features.denseblock{number}' for number in inner), 'relu'

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = conv(self.num_init_features, 7, stride=2, padding=3, name='features.conv0')(x)
        x = tap(self, 'features.relu0', nn.relu(norm(name='features.norm0')(x, train)))
        x = tap(self, 'features.pool0', max_pool2d(x, 3, stride=2, padding=1))
        for number, layers in enumerate(self.block_config, 1):
            if number > 1:
                x = self.run_block(partial(Transition, name=f'features.transition{number - 1}'), x, train)
            x = self._dense_block(x, train, f'features.denseblock{number}', layers)
        x = tap(self, 'relu', nn.relu(norm(name='features.norm5')(x, train)))
        x = tap(self, 'flatten', global_avg_pool2d(x))
        return Linear(self.num_classes, bias_init=nn.initializers.zeros, name='classifier')(x)

    def _dense_block(self, x: jax.Array, train: bool, name: str, layers: int) -> jax.Array:
        """`x` and what each layer adds to all before it: (N, H, W, C) -> (N, H, W, C + layers * growth_rate)."""
        maps = (x,)
        for number in range(1, layers + 1):
            layer = partial(
                DenseLayer, self.growth_rate, self.bn_size, self.drop_rate, name=f'{name}.denselayer{number}'
            )
            maps += (self.run_block(layer, maps, train),)
        return tap(self, f'{name}.cat', jnp.concatenate(maps, -1))


VARIANTS = {
    'densenet121': partial(DenseNet, 32, (6, 12, 24, 16), 64),
    'densenet161': partial(DenseNet, 48, (6, 12, 36, 24), 96),
    'densenet169': partial(DenseNet, 32, (6, 12, 32, 32), 64),
    'densenet201': partial(DenseNet, 32, (6, 12, 48, 32), 64),
}

DIALECTS = (
    Dialect(
        'torchvision before 0.4',
        marker=r'.*denselayer\d+\.norm\.1\.weight',
        rename=((r'(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)', r'\1\2'),),
    ),
)
