"""Auxiliary heads: made by init in any mode, run in training alone, absent with aux_logits=False."""

import jax
import jax.numpy as jnp
import pytest
import torch

import flaxzoo
from flaxzoo.weights.convert import COUNTER, template, torch_names
from tests import reference

# Heads, weight of their losses, parameters without them (torchvision's metadata; the paper's network).
MODELS = {
    'googlenet': (('aux_logits2', 'aux_logits1'), 0.3, 6_624_904),
    'inception_v1': (('aux_logits2', 'aux_logits1'), 0.3, 6_998_552),
    'inception_v3': (('aux_logits',), 0.4, 23_834_568),
}


def shapes(name, train, **fields):
    """Shapes of a network of 10 classes' outputs in either mode, after an init in evaluation."""
    model = flaxzoo.create(name, num_classes=10, **fields)
    size = model.image_size
    x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def run(variables, x):
        return model.apply(variables, x, train=train, mutable=['batch_stats'], rngs={'dropout': jax.random.key(1)})[0]

    return jax.eval_shape(run, variables, x)


@pytest.mark.parametrize('name', MODELS)
def test_training_returns_them_after_the_logits(name):
    heads, weight, _ = MODELS[name]
    out = shapes(name, train=True)
    assert out._fields == ('logits', *heads)
    assert {head.shape for head in out} == {(2, 10)}
    assert shapes(name, train=False).shape == (2, 10)
    assert type(flaxzoo.create(name)).aux_weight == weight


@pytest.mark.parametrize('name', MODELS)
def test_the_form_without_them_is_torchs(name):
    assert shapes(name, train=True, aux_logits=False).shape == (2, 10)
    variables = template(flaxzoo.create(name, aux_logits=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == MODELS[name][2]
    with torch.device('meta'):
        keys = reference.build(name, aux_logits=False).state_dict()
    assert set(torch_names(variables)) == {key for key in keys if not key.endswith(COUNTER)}


@pytest.mark.parametrize(('name', 'size'), [('googlenet', 15), ('inception_v1', 31), ('inception_v3', 75)])
def test_init_takes_any_image_that_evaluation_takes(name, size):
    """Also one that is too small for the head in training: parameters depend on the channels alone."""
    model = flaxzoo.create(name)
    assert template(model, (1, size, size, 3)) == template(model)
