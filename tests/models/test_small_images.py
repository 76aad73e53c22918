"""The smallest image of each network is torch's, and a smaller one gives an error that says so."""

import jax
import jax.numpy as jnp
import pytest
import torch

import flaxzoo
import reference

# Smallest height and width in evaluation, and in training where an auxiliary head needs more.
SMALLEST = {
    'alexnet': (63, 63),
    'vgg11': (32, 32),
    'vgg11_bn': (32, 32),
    'squeezenet1_0': (21, 21),
    'squeezenet1_1': (17, 17),
    'googlenet': (15, 15),
    'inception_v1': (31, 79),
    'bn_inception': (31, 31),
    'inception_v3': (75, 299),
    'inception_v4': (75, 75),
    'inception_resnet_v1': (75, 75),
    'inception_resnet_v2': (75, 75),
    'xception': (7, 7),
    'densenet121': (29, 29),
}
CASES = [(name, train, sizes[train]) for name, sizes in SMALLEST.items() for train in (False, True)]


def ours(name, train, size):
    """Runs without computing; parameters are made from the same image, in evaluation."""
    model = flaxzoo.create(name, num_classes=10)

    def run(x):
        variables = model.init(jax.random.key(0), x)
        return model.apply(variables, x, train=train, mutable=['batch_stats'], rngs={'dropout': jax.random.key(1)})[0]

    return jax.eval_shape(run, jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32))


def theirs(name, train, size):
    with torch.device('meta'):
        return reference.build(name, num_classes=10).train(train)(torch.zeros(2, 3, size, size))


@pytest.mark.parametrize(('name', 'train', 'size'), CASES)
def test_the_smallest_image_is_torchs(name, train, size):
    heads, references = ours(name, train, size), theirs(name, train, size)
    if not isinstance(heads, tuple):
        heads, references = (heads,), (references,)
    assert [head.shape for head in heads] == [tuple(head.shape) for head in references]


@pytest.mark.parametrize(('name', 'train', 'size'), CASES)
def test_a_smaller_one_is_an_error(name, train, size):
    with pytest.raises(ValueError, match=r'smaller than the|can only halve even sizes'):
        ours(name, train, size - 1)
    with pytest.raises(RuntimeError):
        theirs(name, train, size - 1)


@pytest.mark.parametrize(
    ('size', 'fits'), [(30, False), (31, True), (38, True), (39, False), (223, True), (231, False)]
)
def test_sizes_of_bn_inception(size, fits):
    if fits:
        assert ours('bn_inception', False, size).shape == theirs('bn_inception', False, size).shape == (2, 10)
    else:
        with pytest.raises(ValueError, match=r'smaller than the|can only halve even sizes'):
            ours('bn_inception', False, size)
        with pytest.raises(RuntimeError):
            theirs('bn_inception', False, size)
