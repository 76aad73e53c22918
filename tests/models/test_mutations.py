"""The parity test notices each of the mistakes that ports make: a network that has one fails it."""

import flax.linen as nn
import jax.numpy as jnp
import pytest
import torchvision

import flaxzoo
from flaxzoo.analysis.parity import compare, randomise
from flaxzoo.layers import BatchNorm, Norm
from flaxzoo.models import resnet
from tests import reference
from tests.models.cases import images, labels

SMALL = {'layers': (1, 1, 1, 1), 'num_classes': 10}


def small():
    """ResNet with one bottleneck a stage, in torch."""
    return randomise(torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10))


class StrideFirst(resnet.Bottleneck):
    """The stride on the 1x1, as in the paper and not in torchvision."""

    @nn.compact
    def __call__(self, x, train=False):
        shortcut = self.shortcut(x, train)
        x = resnet.conv(self.planes, 1, stride=self.stride, name='conv1')(x)
        x = nn.relu(self.norm_layer(name='bn1')(x, train))
        x = resnet.conv(self.planes, 3, padding=1, name='conv2')(x)
        x = nn.relu(self.norm_layer(name='bn2')(x, train))
        x = resnet.conv(self.planes * self.expansion, 1, name='conv3')(x)
        return self.join(x, shortcut, 'bn3', train)


class BiasedVariance(BatchNorm):
    """The running variance divided by n, as in flax and not in torch."""

    def _update(self, running, batch):
        count = self.count
        super()._update(running, batch * (count - 1) / count if running.name == 'var' else batch)

    def _batch_statistics(self, x, axis_name):
        mean, var, count = super()._batch_statistics(x, axis_name)
        object.__setattr__(self, 'count', count)
        return mean, var, count


def same_padding_stem(monkeypatch):
    """The stem's padding as 'SAME' has it for even sizes: (2, 3) where torch has (3, 3)."""
    original = resnet.conv

    def conv(features, kernel_size, **fields):
        if kernel_size != 7:
            return original(features, kernel_size, **fields)
        layer = original(features, kernel_size, **{**fields, 'padding': 0})
        return lambda x: layer(jnp.pad(x, ((0, 0), (2, 3), (2, 3), (0, 0))))

    monkeypatch.setattr(resnet, 'conv', conv)


def error(train=False, **fields):
    model = flaxzoo.create('resnet50', **SMALL, **fields)
    x = images('resnet50')[:, :48, :64]
    return compare(model, small(), x, train=train, labels=labels('resnet50') if train else None).error


@pytest.mark.parametrize('train', [False, True])
def test_the_unchanged_network_passes(train):
    assert error(train) <= 1e-10


@pytest.mark.parametrize(
    'fields',
    [
        {'norm_layer': Norm(eps=1e-3)},
        {'block': StrideFirst},
    ],
    ids=['eps', 'stride on the 1x1'],
)
def test_a_mistake_fails_in_evaluation(fields):
    assert error(**fields) > 1e-6


def test_same_padding_fails(monkeypatch):
    same_padding_stem(monkeypatch)
    assert error() > 1e-6


@pytest.mark.parametrize(
    'fields',
    [{'norm_layer': Norm(BiasedVariance)}, {'norm_layer': Norm(momentum=0.9)}, {'freeze_batch_norm': True}],
    ids=['biased variance', 'momentum unflipped', 'frozen'],
)
def test_a_mistake_fails_in_training(fields):
    assert error(train=True, **fields) > 1e-6


def test_a_lost_relu_fails():
    class LostReLU(resnet.Bottleneck):
        def join(self, x, shortcut, norm, train):
            x = self.norm_layer(name=norm)(x, train)
            return x + shortcut

    assert error(block=LostReLU) > 1e-6


def test_the_report_says_where_the_networks_part():
    """With the stride misplaced in stage 2, all before it agrees and its first convolution is named."""
    model = flaxzoo.create('resnet50', **SMALL, block=StrideFirst)
    report = compare(model, small(), images('resnet50'))
    assert report.first_above(1e-10).name.startswith('layer2.0.')


def test_a_missing_module_is_an_error():
    with pytest.raises(flaxzoo.ConversionError, match=r'\+ layer4\.0\.bn1\.bias'):
        compare(flaxzoo.create('resnet50', layers=(1, 1, 1)), small(), images('resnet50'))


def test_randomise_leaves_nothing_at_its_default():
    module = randomise(reference.build('resnet18'))
    for name, tensor in module.state_dict().items():
        if 'num_batches' not in name:
            assert tensor.unique().numel() > 1, name
