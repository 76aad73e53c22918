"""BN-Inception, also called Inception v2.

Paper: https://arxiv.org/abs/1502.03167. Reference: Cadene's pretrainedmodels.bninception, ported from the Caffe
release; names of parameters are its own. Its weights take BGR images of 0 to 255 less their mean.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxzoo.layers import (
    AveragedConv2d,
    Conv2d,
    Linear,
    Network,
    Norm,
    avg_pool2d,
    global_avg_pool2d,
    max_pool2d,
    tap,
)

# Output channels: 1x1 (none where the block halves the image); 3x3 reduction, 3x3; double 3x3 reduction, double 3x3;
# pool projection (none where the block halves the image).
WIDTHS = {
    '3a': (64, 64, 64, 64, 96, 32),
    '3b': (64, 64, 96, 64, 96, 64),
    '3c': (None, 128, 160, 64, 96, None),
    '4a': (224, 64, 96, 96, 128, 128),
    '4b': (192, 96, 128, 96, 128, 128),
    '4c': (160, 128, 160, 128, 160, 128),
    '4d': (96, 128, 192, 160, 192, 128),
    '4e': (None, 128, 192, 192, 256, None),
    '5a': (352, 192, 320, 160, 224, 128),
    '5b': (352, 192, 320, 192, 224, 128),
}

pool = partial(max_pool2d, kernel_size=3, stride=2, ceil_mode=True)
smooth = partial(avg_pool2d, kernel_size=3, stride=1, padding=1)
norm = Norm()


class BNInception(Network):
    """BN-Inception; its head is called `last_linear`.

    H and W are 32 * n - 1 to 32 * n + 6 pixels, so that every map that is halved has an even size.
    """

    stages = (
        'conv1_7x7_s2_relu',
        'conv2_3x3_relu',
        *(f'inception_{block}_output' for block in ('3b', '4d', '5b')),
    )

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = self._conv(x, train, 64, 7, 'conv1_7x7_s2', stride=2)
        x = pool(x)
        x = self._conv(x, train, 64, 1, 'conv2_3x3_reduce')
        x = self._conv(x, train, 192, 3, 'conv2_3x3')
        x = pool(x)
        for block in WIDTHS:
            x = tap(
                self,
                f'inception_{block}_output',
                self.run_block(partial(BNInception._inception, block=block), x, train),
            )
        return Linear(self.num_classes, name='last_linear')(global_avg_pool2d(x))

    def _conv(
        self,
        x: jax.Array,
        train: bool,
        channels: int,
        kernel_size: int,
        name: str,
        stride: int = 1,
        layer: Callable[..., Conv2d] = Conv2d,
    ) -> jax.Array:
        # The bias does nothing before the norm; the released weights have it.
        x = layer(channels, kernel_size, stride=stride, padding=kernel_size // 2, name=name)(x)
        return tap(self, f'{name}_relu', nn.relu(norm(name=f'{name}_bn')(x, train)))

    def _inception(self, x: jax.Array, train: bool, block: str) -> jax.Array:
        """One of the blocks in WIDTHS. Torch's names are flat, so it is a method and not a module."""
        ch1x1, ch3x3red, ch3x3, double_red, double, pool_proj = WIDTHS[block]
        conv = partial(self._conv, train=train)
        name = f'inception_{block}'
        stride = 1 if ch1x1 else 2

        branch2 = conv(x, channels=ch3x3red, kernel_size=1, name=f'{name}_3x3_reduce')
        branch2 = conv(branch2, channels=ch3x3, kernel_size=3, stride=stride, name=f'{name}_3x3')
        branch3 = conv(x, channels=double_red, kernel_size=1, name=f'{name}_double_3x3_reduce')
        branch3 = conv(branch3, channels=double, kernel_size=3, name=f'{name}_double_3x3_1')
        branch3 = conv(branch3, channels=double, kernel_size=3, stride=stride, name=f'{name}_double_3x3_2')
        if stride == 2:
            # Padding makes a strided convolution round up where the pool, in ceil_mode, rounds down.
            if x.shape[1] % 2 or x.shape[2] % 2:
                raise ValueError(
                    f'{name} gets maps of shape {x.shape} and can only halve even sizes; '
                    'use images of 32 * n - 1 to 32 * n + 6 pixels, such as 31 to 38 or 223 to 230'
                )
            return jnp.concatenate([branch2, branch3, pool(x)], -1)

        branch1 = conv(x, channels=ch1x1, kernel_size=1, name=f'{name}_1x1')
        project = partial(conv, channels=pool_proj, kernel_size=1, name=f'{name}_pool_proj')
        if block == '5b':  # averages everywhere but in the last block
            branch4 = project(max_pool2d(x, 3, stride=1, padding=1))
        else:
            branch4 = project(x, layer=partial(AveragedConv2d, average=smooth))
        return jnp.concatenate([branch1, branch2, branch3, branch4], -1)


VARIANTS = {'bn_inception': partial(BNInception)}
