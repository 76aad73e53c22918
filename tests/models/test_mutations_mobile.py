"""The parity test notices the mistakes that ports of DenseNet, MobileNetV3 and EfficientNet make.

Networks of few blocks; each is first shown to pass without a mistake.
"""

import types
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from torch.nn import BatchNorm2d
from torchvision.models import DenseNet, EfficientNet, MobileNetV3
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig

import flaxzoo
from flaxzoo.analysis.parity import compare, randomise
from flaxzoo.layers import Conv2d, Norm, SqueezeExcite, max_pool2d
from flaxzoo.models import densenet, efficientnet, mobilenet_v3
from reference import exact

RE, HS = nn.relu, nn.hard_swish
ROWS = ((5, 16, 16, True, RE, 2), (3, 40, 24, True, HS, 2), (5, 48, 24, True, HS, 1))
MBCONV = ((1, 3, 1, 32, 16, 1), (6, 5, 2, 16, 24, 2), (6, 3, 2, 24, 40, 2))
FUSED = ((1, 3, 1, 24, 24, 2), (4, 3, 2, 24, 40, 2))


def dense_pair():
    fields = {'growth_rate': 4, 'block_config': (2, 2), 'num_init_features': 8, 'num_classes': 10}
    return flaxzoo.create('densenet121', **fields), DenseNet(**fields)


def mobile_pair(**fields):
    inputs = (16, *(row[2] for row in ROWS))
    setting = [
        InvertedResidualConfig(channels, *row[:4], 'HS' if row[4] is HS else 'RE', row[5], 1, 1.0)
        for channels, row in zip(inputs, ROWS, strict=False)
    ]
    rows = tuple(mobilenet_v3.Bottleneck(*row) for row in ROWS)
    model = flaxzoo.create(
        'mobilenet_v3_small', inverted_residual_setting=rows, last_channel=32, num_classes=10, **fields
    )
    return model, exact(MobileNetV3(setting, 32, num_classes=10))


def efficient_pair(name, block, config, rows, last_channel, eps, **fields):
    stages = tuple(efficientnet.Stage(getattr(efficientnet, block), *row[:3], *row[4:]) for row in rows)
    model = flaxzoo.create(name, inverted_residual_setting=stages, last_channel=last_channel, num_classes=10, **fields)
    module = EfficientNet(
        [config(*row) for row in rows],
        dropout=0.2,
        num_classes=10,
        last_channel=last_channel,
        norm_layer=partial(BatchNorm2d, eps=eps),
    )
    return model, module


PAIRS = {
    'densenet': dense_pair,
    'mobilenet_v3': mobile_pair,
    'mbconv': partial(efficient_pair, 'efficientnet_b0', 'MBConv', MBConvConfig, MBCONV, None, 1e-5),
    'fused': partial(efficient_pair, 'efficientnet_v2_s', 'FusedMBConv', FusedMBConvConfig, FUSED, 64, 1e-3),
}


def error(pair, train=False, **fields):
    model, module = PAIRS[pair](**fields)
    x = np.random.default_rng(0).normal(size=(2, 50, 67, 3))
    return compare(model, randomise(module), x, train=train, labels=np.array([3, 8]) if train else None).error


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('pair', PAIRS)
def test_the_unchanged_networks_pass(pair, train):
    assert error(pair, train) <= 1e-10


@pytest.mark.parametrize('pair', ['mobilenet_v3', 'fused', 'mbconv'])
def test_another_epsilon_fails(pair):
    assert error(pair, norm_layer=Norm(eps=1e-3 if pair == 'mbconv' else 1e-5)) > 1e-6


def test_another_momentum_fails():
    assert error('mobilenet_v3', train=True, norm_layer=Norm(eps=1e-3)) > 1e-6


class TensorFlowConv2d(Conv2d):
    """Strided convolutions padded as 'SAME' has it for even sizes: (0, 1) where torch has (1, 1)."""

    def convolve(self, x, kernel, geometry):
        if geometry.stride == (1, 1):
            return super().convolve(x, kernel, geometry)
        pads = [(0, 0)]
        for size, taps, stride in zip(x.shape[1:3], kernel.shape, geometry.stride, strict=False):
            total = max((-(-size // stride) - 1) * stride + taps - size, 0)
            pads.append((total // 2, total - total // 2))
        return super().convolve(jnp.pad(x, [*pads, (0, 0)]), kernel, geometry._replace(padding=(0, 0)))


def replaced(module, **functions):
    """A module of functions with some of them replaced."""
    return types.SimpleNamespace(**{**vars(module), **functions})


def without_last_relu(x):
    return x if x.shape[1:] == (6, 8, 16) else nn.relu(x)


def newest_first(maps, axis):
    return jnp.concatenate(maps[::-1], axis)


MUTATIONS = {
    'DenseNet has its newest maps first': ('densenet', densenet, 'jnp', replaced(jnp, concatenate=newest_first)),
    'DenseNet halves by the maximum': ('densenet', densenet, 'avg_pool2d', max_pool2d),
    'DenseNet lost its last ReLU': ('densenet', densenet, 'nn', replaced(nn, relu=without_last_relu)),
    'MobileNetV3 has a smooth gate': ('mobilenet_v3', mobilenet_v3, 'squeeze_excite', SqueezeExcite),
    'MobileNetV3 has SiLU': ('mobilenet_v3', mobilenet_v3, 'nn', replaced(nn, hard_swish=nn.silu)),
    'EfficientNet squeezes with ReLU': ('mbconv', efficientnet, 'squeeze_excite', SqueezeExcite),
    'MobileNetV3 is padded as TensorFlow pads': (
        'mobilenet_v3',
        mobilenet_v3,
        'conv',
        partial(mobilenet_v3.conv, conv=TensorFlowConv2d),
    ),
    'EfficientNet is padded as TensorFlow pads': (
        'fused',
        efficientnet,
        'conv',
        partial(efficientnet.conv, conv=TensorFlowConv2d),
    ),
}


@pytest.mark.parametrize('mutation', MUTATIONS)
def test_a_mistake_fails(mutation, monkeypatch):
    pair, module, attribute, replacement = MUTATIONS[mutation]
    monkeypatch.setattr(module, attribute, replacement)
    assert error(pair) > 1e-6


class FromExpanded(efficientnet.MBConv):
    """Squeezes to a quarter of the expanded channels."""

    def layers(self, channels, expanded):
        *before, _, last = super().layers(channels, expanded)
        return [*before, partial(efficientnet.squeeze_excite, expanded // 4), last]


@pytest.mark.parametrize(
    ('pair', 'module', 'attribute', 'replacement'),
    [
        ('mobilenet_v3', mobilenet_v3, 'make_divisible', int),
        ('mbconv', efficientnet, 'MBConv', FromExpanded),
    ],
    ids=['not rounded', 'from the expanded width'],
)
def test_squeezing_to_another_width_fails(pair, module, attribute, replacement, monkeypatch):
    monkeypatch.setattr(module, attribute, replacement)
    with pytest.raises(flaxzoo.ConversionError, match=r'! features.*fc1\.weight: shape'):
        error(pair)
