"""The parity test notices each of the mistakes that ports of these networks make, in networks of one block a group."""

from functools import partial

import flax.linen as nn
import numpy as np
import pytest
import timm
import torch

import flaxzoo
from flaxzoo.analysis.parity import compare, randomise
from flaxzoo.layers import BatchNorm, Conv2d, Norm, SqueezeExcite, avg_pool2d
from flaxzoo.models import inception_parts, inception_resnet, inception_v4, resnet
from reference.inception_resnet_v1 import InceptionResnetV1

IMAGES = np.random.default_rng(0).normal(size=(2, 75, 91, 3))
BLOCKS = (2, 1, 1)


@pytest.fixture(scope='module')
def v1():
    return randomise(InceptionResnetV1(blocks=BLOCKS, num_classes=10))


@pytest.fixture(scope='module')
def v2():
    module = timm.create_model('inception_resnet_v2', num_classes=10)
    for name, count in zip(('repeat', 'repeat_1', 'repeat_2'), BLOCKS, strict=True):
        setattr(module, name, getattr(module, name)[:count])
    return randomise(module)


@pytest.fixture(scope='module')
def v4_start():
    """Inception-v4 up to its first Inception-A block."""
    module = timm.create_model('inception_v4', num_classes=10)
    module.features = module.features[:7]
    module.last_linear = torch.nn.Linear(384, 10)
    return randomise(module)


@pytest.fixture(scope='module')
def se():
    return randomise(
        timm.models.resnet.ResNet(
            timm.models.resnet.Bottleneck, (1, 1, 1, 1), num_classes=10, block_args={'attn_layer': 'se'}
        )
    )


def error_v1(module, **fields):
    model = flaxzoo.create('inception_resnet_v1', **{'blocks': BLOCKS, 'num_classes': 10, **fields})
    return compare(model, module, IMAGES).error


def error_v2(module, **fields):
    model = flaxzoo.create('inception_resnet_v2', **{'blocks': BLOCKS, 'num_classes': 10, **fields})
    return compare(model, module, IMAGES).error


def error_v4(module, monkeypatch):
    monkeypatch.setattr(inception_v4, 'FEATURES', inception_v4.FEATURES[:7])
    return compare(flaxzoo.create('inception_v4', num_classes=10), module, IMAGES).error


def error_se(module, **fields):
    model = flaxzoo.create('seresnet50', layers=(1, 1, 1, 1), num_classes=10, **fields)
    return compare(model, module, IMAGES[:, :48]).error


def test_the_unchanged_networks_pass(v1, v2, v4_start, se, monkeypatch):
    assert error_v1(v1) <= 1e-10
    assert error_v2(v2) <= 1e-10
    assert error_v4(v4_start, monkeypatch) <= 1e-10
    assert error_se(se) <= 1e-10


@pytest.mark.parametrize(
    'fields',
    [{'scales': (1.0, 0.10, 0.20)}, {'scales': (0.17, 0.10, 1.0)}],
    ids=['no residual scale', 'no scale of the last group'],
)
def test_a_wrong_field_fails(v1, fields):
    assert error_v1(v1, **fields) > 1e-6


def test_another_epsilon_fails(v1, monkeypatch):
    monkeypatch.setattr(Norm, '__call__', lambda self, **fields: BatchNorm(**fields))
    assert error_v1(v1) > 1e-6


def test_a_relu_after_the_last_block_fails(v2, monkeypatch):
    class WithRelu(inception_resnet.Residual):
        def __post_init__(self):
            self.relu = True
            super().__post_init__()

    monkeypatch.setattr(inception_resnet, 'Residual', WithRelu)
    assert error_v2(v2) > 1e-6


def test_a_scaled_last_block_fails(v2, monkeypatch):
    class Scaled(inception_resnet.Residual):
        scale: float = 0.20

    monkeypatch.setattr(inception_resnet, 'Residual', Scaled)
    assert error_v2(v2) > 1e-6


def test_a_projection_without_bias_fails(v1, monkeypatch):
    monkeypatch.setattr(inception_resnet, 'Conv2d', partial(Conv2d, bias=False))
    with pytest.raises(flaxzoo.ConversionError, match=r'\+ repeat_1\.0\.conv2d\.bias'):
        error_v1(v1)


def test_blocks_with_shared_weights_fail(v1, monkeypatch):
    layer = inception_resnet.InceptionResnet.layer

    def shared(self, x, train, name, build):
        if name == 'repeat_1.0':
            block = build(name=name)
            return block(block(x, train), train)
        return x if name == 'repeat_1.1' else layer(self, x, train, name, build)

    monkeypatch.setattr(inception_resnet.InceptionResnet, 'layer', shared)
    with pytest.raises(flaxzoo.ConversionError, match=r'\+ repeat_1\.1\.conv2d\.weight'):
        error_v1(v1)


def test_an_average_that_counts_the_padding_fails(v2, v4_start, monkeypatch):
    def counting(*args, count_include_pad, **fields):
        return avg_pool2d(*args, count_include_pad=True, **fields)

    monkeypatch.setattr(inception_parts, 'avg_pool2d', counting)
    assert error_v2(v2) > 1e-6
    assert error_v4(v4_start, monkeypatch) > 1e-6


def test_an_embedding_without_its_norm_fails(monkeypatch):
    """Its parameters exist, so the keys fit."""
    module = randomise(InceptionResnetV1(blocks=BLOCKS, classify=False))
    assert error_v1(module, classify=False) <= 1e-10

    norm = inception_resnet.norm
    monkeypatch.setattr(inception_resnet, 'norm', lambda name: lambda x, train: x + 0 * norm(name=name)(x, train))
    assert error_v1(module, classify=False) > 1e-6


def test_squeezing_from_the_wrong_width_fails(se):
    def from_planes(channels, name=None):
        return SqueezeExcite(channels // 4 // 16, name=name)

    with pytest.raises(flaxzoo.ConversionError, match=r'! layer1\.0\.se\.fc1\.weight'):
        error_se(se, attn_layer=from_planes)


def test_attention_after_the_addition_fails(se):
    class AttentionLast(resnet.Bottleneck):
        def join(self, x, shortcut, norm, train):
            x = self.norm_layer(name=norm)(x, train) + shortcut
            return nn.relu(self.attn_layer(x.shape[-1], name='se')(x))

    assert error_se(se, block=AttentionLast) > 1e-6
