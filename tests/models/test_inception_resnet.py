"""The three heads of Inception-ResNet-v1, against the torch reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flaxzoo
from flaxzoo.analysis.parity import compare, randomise
from flaxzoo.weights.convert import template
from reference.inception_resnet_v1 import InceptionResnetV1

BLOCKS = (1, 1, 1)
IMAGES = np.random.default_rng(0).normal(size=(4, 91, 107, 3))
LABELS = np.array([3, 1, 4, 1])


@pytest.mark.parametrize(
    ('fields', 'count'),
    [
        ({'classify': False}, 23_482_624),
        ({'embedding': None}, 24_357_096),
        ({'embedding': None, 'classify': False}, 22_564_096),
    ],
    ids=['embedding', 'classifier of the paper', 'trunk'],
)
def test_parameter_count(fields, count):
    params = template(flaxzoo.create('inception_resnet_v1', **fields))['params']
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize('train', [False, True])
def test_embedding(train):
    module = randomise(InceptionResnetV1(classify=False, blocks=BLOCKS))
    model = flaxzoo.create('inception_resnet_v1', classify=False, blocks=BLOCKS)
    report = compare(model, module, IMAGES, train=train, labels=LABELS if train else None)
    assert report.error <= 1e-10, report.first_above(1e-10)


def test_classifier_of_the_paper():
    module = InceptionResnetV1(num_classes=10, blocks=BLOCKS)
    module.last_linear = module.last_bn = torch.nn.Identity()
    module.logits = torch.nn.Linear(1792, 10)
    model = flaxzoo.create('inception_resnet_v1', embedding=None, num_classes=10, blocks=BLOCKS)
    report = compare(model, randomise(module), IMAGES)
    assert report.error <= 1e-10, report.first_above(1e-10)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_embeddings_have_length_one(dtype):
    model = flaxzoo.create('inception_resnet_v1', classify=False, blocks=BLOCKS)
    x = jnp.asarray(IMAGES[:2, :75, :80], dtype)
    out, _ = jax.jit(model.init_with_output)(jax.random.key(0), x)
    assert out.shape == (2, 512)
    assert out.dtype == dtype
    np.testing.assert_allclose(np.linalg.norm(np.asarray(out, 'float32'), axis=1), 1, atol=1e-2)


@pytest.mark.parametrize('fields', [{'blocks': (1, 1)}, {'scales': (0.1,)}])
def test_three_groups(fields):
    with pytest.raises(ValueError, match='three values each'):
        flaxzoo.create('inception_resnet_v1', **fields)
