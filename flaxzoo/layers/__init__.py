"""What every family is built of, in torch's semantics on NHWC arrays."""

from flaxzoo.layers.blocks import ConvNormAct, NormLayer, SqueezeExcite, remat
from flaxzoo.layers.conv import Conv2d, Linear, kaiming_normal_fan_out
from flaxzoo.layers.norm import BatchNorm
from flaxzoo.layers.regularize import Dropout, StochasticDepth
from flaxzoo.ops.activation import kept_relu
from flaxzoo.ops.kept import kept
from flaxzoo.ops.norm import local_response_norm
from flaxzoo.ops.pool import adaptive_avg_pool2d, avg_pool2d, flatten, global_avg_pool2d, max_pool2d

__all__ = [
    'BatchNorm',
    'Conv2d',
    'ConvNormAct',
    'Dropout',
    'Linear',
    'NormLayer',
    'SqueezeExcite',
    'StochasticDepth',
    'adaptive_avg_pool2d',
    'avg_pool2d',
    'flatten',
    'global_avg_pool2d',
    'kaiming_normal_fan_out',
    'kept',
    'kept_relu',
    'local_response_norm',
    'max_pool2d',
    'remat',
]
