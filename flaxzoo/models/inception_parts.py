"""What the two families of the Inception v4 paper share, Inception-v4 and Inception-ResNet.

Paper: https://arxiv.org/abs/1602.07261.
"""

from functools import partial

import jax

from flaxzoo.layers import ConvNormAct, Norm, avg_pool2d, max_pool2d
from flaxzoo.layers.naming import Layer
from flaxzoo.ops.pairs import IntOrPair

norm = Norm(eps=1e-3)
max_pool = partial(max_pool2d, kernel_size=3, stride=2)


def avg_pool(x: jax.Array) -> jax.Array:
    """3x3 mean of what lies inside the image; Inception-v3 counts the padding, this paper's networks do not."""
    return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def same(out_channels: int, kernel_size: IntOrPair = 1) -> partial:
    """A ConvNormAct that keeps the image's size; the kernel is odd."""
    return partial(ConvNormAct, out_channels, kernel_size, padding=None, norm_layer=norm)


def valid(out_channels: int, kernel_size: IntOrPair, stride: IntOrPair = 1) -> partial:
    """A ConvNormAct without padding."""
    return partial(ConvNormAct, out_channels, kernel_size, stride=stride, norm_layer=norm)


def reduction_a(k: int, l: int, m: int, n: int) -> dict[str, tuple[Layer, ...]]:  # noqa: E741
    """35x35 -> 17x17; the widths have the letters of the paper's figure 7 and table 1."""
    return {
        'branch0': (valid(n, 3, stride=2),),
        'branch1': (same(k), same(l, 3), valid(m, 3, stride=2)),
        'branch2': (max_pool,),
    }
