"""`num_classes=0`: every network without its head gives the features before it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flaxzoo
import reference
from flaxzoo.analysis.parity import compare, randomise
from tests.models.cases import images, shapes

HEADS = ('fc', 'classifier', 'head', 'heads', 'last_linear', 'logits', 'classif', 'AuxLogits', 'aux1', 'aux2')


@pytest.mark.parametrize('name', flaxzoo.list_models())
def test_the_heads_are_gone_and_the_rest_is_the_same(name):
    model = flaxzoo.create(name, num_classes=0)
    x = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
    features, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert features.ndim == 2
    ours, whole = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (variables, shapes(name))
    )
    assert ours.items() < whole.items()
    gone = {key.split("'")[3].split('.')[0] for key in whole.keys() - ours.keys()}
    assert gone <= set(HEADS)


@pytest.mark.parametrize(('name', 'head'), [('resnet18', 'fc'), ('squeezenet1_1', 'classifier.1'), ('googlenet', 'fc')])
@pytest.mark.parametrize('train', [False, True])
def test_features_are_torchs_before_the_head(name, head, train):
    fields = {'aux_logits': False} if name == 'googlenet' else {}
    module = randomise(reference.build(name, **fields))
    module.set_submodule(head, torch.nn.Identity())
    x, y = images(name), np.array([5, 7])  # the features stand in for logits
    report = compare(flaxzoo.create(name, num_classes=0), module, x, train=train, labels=y if train else None)
    assert report.error <= 1e-10, report.first_above(1e-10)


def test_training_mode_returns_plain_features():
    model = flaxzoo.create('googlenet', num_classes=0)
    x = jnp.zeros((2, 47, 67, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    out, _ = jax.eval_shape(
        lambda v: model.apply(v, x, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)}), variables
    )
    assert out.shape == (2, 1024)


def test_loading_drops_the_head_and_says_so(tmp_path):
    model = flaxzoo.create('resnet18', num_classes=10)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    path = tmp_path / 'weights.safetensors'
    flaxzoo.save(path, variables)
    headless, loaded, report = flaxzoo.load_with_report('resnet18', path, num_classes=0)
    assert sorted(report.changes.dropped) == ['fc.bias', 'fc.weight']
    assert headless.num_classes == 0
    assert flaxzoo.to_torch(loaded).keys() == flaxzoo.to_torch(variables).keys() - {'fc.bias', 'fc.weight'}
