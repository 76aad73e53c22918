"""What every family is built of, in torch's semantics on NHWC arrays."""

from flaxzoo.layers.attention import MultiheadAttention, ShiftedWindowAttention, ShiftedWindowAttentionV2
from flaxzoo.layers.blocks import Conv2dNormActivation, ConvNormAct, SqueezeExcite, averaged, mlp
from flaxzoo.layers.branches import Branches
from flaxzoo.layers.conv import AveragedConv2d, Conv2d, Linear, SpaceToDepthConv2d, kaiming_normal_fan_out
from flaxzoo.layers.naming import sequential, tap
from flaxzoo.layers.network import Network, with_policy
from flaxzoo.layers.norm import BatchNorm, LayerNorm, Norm
from flaxzoo.layers.regularize import Dropout, StochasticDepth
from flaxzoo.layers.widths import make_divisible
from flaxzoo.ops.activation import kept_relu
from flaxzoo.ops.kept import kept
from flaxzoo.ops.norm import local_response_norm
from flaxzoo.ops.pool import adaptive_avg_pool2d, avg_pool2d, flatten, global_avg_pool2d, max_pool2d

__all__ = [
    'AveragedConv2d',
    'BatchNorm',
    'Branches',
    'Conv2d',
    'Conv2dNormActivation',
    'ConvNormAct',
    'Dropout',
    'LayerNorm',
    'Linear',
    'MultiheadAttention',
    'Network',
    'Norm',
    'ShiftedWindowAttention',
    'ShiftedWindowAttentionV2',
    'SpaceToDepthConv2d',
    'SqueezeExcite',
    'StochasticDepth',
    'adaptive_avg_pool2d',
    'averaged',
    'avg_pool2d',
    'flatten',
    'global_avg_pool2d',
    'kaiming_normal_fan_out',
    'kept',
    'kept_relu',
    'local_response_norm',
    'make_divisible',
    'max_pool2d',
    'mlp',
    'sequential',
    'tap',
    'with_policy',
]
