"""The parity test notices the mistakes that ports of the classic families make: a network that has one fails it.

Single blocks and small images, on which the mistake matters; each case is first shown to pass without it.
"""

import itertools
import types
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
from torchvision.models.googlenet import Inception
from torchvision.models.inception import InceptionA

import flaxzoo
from flaxzoo.analysis.parity import compare, randomise
from flaxzoo.layers import AveragedConv2d, BatchNorm, Norm, avg_pool2d, local_response_norm, max_pool2d
from flaxzoo.models import alexnet, bn_inception, inception_v1, inception_v3, squeezenet, vgg
from tests import reference
from tests.reference.inception_v1 import Block

SIZES = {
    'alexnet': (71, 93),
    'vgg11': (37, 67),
    'squeezenet1_0': (49, 67),
    'googlenet': (45, 67),
    'inception_v1': (45, 67),
    'bn_inception': (31, 67),
}
WIDTHS = (8, 4, 12, 4, 6, 8)


def error(model, module, *shape):
    images = np.random.default_rng(0).normal(size=shape)
    return compare(model, randomise(module), images).error


def network_error(name):
    return error(flaxzoo.create(name, num_classes=10), reference.build(name, num_classes=10), 2, *SIZES[name], 3)


def inception_a_error():
    return error(inception_v3.InceptionA(8), InceptionA(16, 8), 2, 5, 7, 16)


def googlenet_block(kernel5x5):
    conv = inception_v1.conv_norm
    return inception_v1.Inception(*WIDTHS, conv=conv, kernel5x5=kernel5x5), Inception(16, *WIDTHS)


def inception_v1_block(kernel5x5):
    conv = inception_v1.ConvAct
    return inception_v1.Inception(*WIDTHS, conv=conv, kernel5x5=kernel5x5), Block(16, *WIDTHS)


def without_relu(lost):
    """flax.linen whose relu does nothing where `lost(x)`."""
    return types.SimpleNamespace(**{**vars(nn), 'relu': lambda x: x if lost(x) else nn.relu(x)})


def resize(x, size):
    """Adaptive pooling as an image is resized."""
    return jax.image.resize(x, (x.shape[0], size, size, x.shape[-1]), 'nearest')


def googlenet(**parts):
    """torchvision's GoogLeNet with other parts."""
    return inception_v1.TORCHVISION._replace(**parts)


rounding_down = partial(max_pool2d, kernel_size=3, stride=2)


def lrn(**fields):
    return partial(local_response_norm, **{'size': 5, 'alpha': 1e-4, 'beta': 0.75, **fields})


def channels_last(x):
    return x.reshape(x.shape[0], -1)


# What is replaced where: (network, module, name in the module, replacement).
MUTATIONS = {
    'AlexNet flattens channels last': ('alexnet', alexnet, 'flatten', channels_last),
    'VGG flattens channels last': ('vgg11', vgg, 'flatten', channels_last),
    'VGG resizes where it should pool': ('vgg11', vgg, 'adaptive_avg_pool2d', resize),
    'SqueezeNet pools round down': ('squeezenet1_0', squeezenet, 'pool', rounding_down),
    'SqueezeNet pools pad as SAME': (
        'squeezenet1_0',
        squeezenet,
        'pool',
        partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding='SAME'),
    ),
    'SqueezeNet lost its last ReLU': (
        'squeezenet1_0',
        squeezenet,
        'nn',
        without_relu(lambda x: x.shape[-1] == 10),
    ),
    'GoogLeNet pools round down': (
        'googlenet',
        inception_v1.GoogLeNet,
        'form',
        googlenet(after_conv1=rounding_down, after_conv3=rounding_down),
    ),
    "GoogLeNet has the paper's last pool": (
        'googlenet',
        inception_v1.GoogLeNet,
        'form',
        googlenet(last_pool=inception_v1.pool),
    ),
    'LRN window': ('inception_v1', inception_v1, 'lrn', lrn(size=3)),
    'LRN alpha not divided by the window': ('inception_v1', inception_v1, 'lrn', lrn(alpha=5e-4)),
    'LRN beta': ('inception_v1', inception_v1, 'lrn', lrn(beta=0.5)),
    "LRN with AlexNet's k": ('inception_v1', inception_v1, 'lrn', lrn(k=2.0)),
    'BN-Inception averages in its last block': ('bn_inception', bn_inception, 'max_pool2d', avg_pool2d),
}


@pytest.mark.parametrize('name', SIZES)
def test_the_unchanged_network_passes(name):
    assert network_error(name) <= 1e-10


@pytest.mark.parametrize('mutation', MUTATIONS)
def test_a_mistake_fails(mutation, monkeypatch):
    name, module, attribute, replacement = MUTATIONS[mutation]
    monkeypatch.setattr(module, attribute, replacement)
    assert network_error(name) > 1e-6


@pytest.mark.parametrize('lost', [(True, False), (False, True)], ids=['first', 'second'])
def test_a_relu_lost_between_the_linear_layers_of_vgg_fails(lost, monkeypatch):
    turns = itertools.cycle(lost)  # two ReLUs after the flatten, in every trace
    monkeypatch.setattr(vgg, 'nn', without_relu(lambda x: x.ndim == 2 and next(turns)))
    assert network_error('vgg11') > 1e-6


@pytest.mark.slow
def test_swapped_auxiliary_heads_fail(monkeypatch):
    def train_error():
        images = np.random.default_rng(0).normal(size=(2, *SIZES['googlenet'], 3))
        module = randomise(reference.build('googlenet', num_classes=10))
        model = flaxzoo.create('googlenet', num_classes=10)
        return compare(model, module, images, train=True, labels=np.array([1, 7])).error

    assert train_error() <= 1e-10
    monkeypatch.setattr(inception_v1, 'GoogLeNetOutputs', lambda logits, aux2, aux1: (logits, aux1, aux2))
    assert train_error() > 1e-6


def test_inception_v3_blocks(monkeypatch):
    assert inception_a_error() <= 1e-10
    monkeypatch.setattr(inception_v3, 'conv', partial(inception_v3.conv, norm_layer=Norm()))
    assert inception_a_error() > 1e-6


def test_inception_v3_averages_count_the_padding(monkeypatch):
    inside = partial(AveragedConv2d, average=partial(inception_v3.smooth, count_include_pad=False))
    monkeypatch.setattr(inception_v3, 'averaged_conv', partial(inception_v3.conv, conv=inside))
    assert inception_a_error() > 1e-6


@pytest.mark.parametrize(('block', 'right'), [(googlenet_block, 3), (inception_v1_block, 5)])
def test_the_5x5_branch_is_3x3_in_torchvision_and_5x5_in_the_paper(block, right):
    assert error(*block(right), 2, 5, 7, 16) <= 1e-10
    with pytest.raises(flaxzoo.ConversionError, match=r'branch3\.1\.conv\.weight'):
        error(*block(8 - right), 2, 5, 7, 16)


@pytest.mark.parametrize(('name', 'eps'), [('googlenet', 1e-3), ('inception_v3', 1e-3), ('bn_inception', 1e-5)])
def test_epsilon_of_every_norm(name, eps):
    found = set()

    def look(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm):
            found.add(context.module.eps)
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        jax.eval_shape(flaxzoo.create(name).init, jax.random.key(0), jax.numpy.zeros((1, 223, 223, 3)))
    assert found == {eps}
