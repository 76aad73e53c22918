"""Folding the batch norms of every registered network: which are folded, and that the network stays the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import flaxzoo
from flaxzoo.models import densenet
from flaxzoo.weights.convert import template
from flaxzoo.weights.index import index
from tests.compiling import jit
from tests.models.cases import FAST, images, shapes

pytestmark = pytest.mark.usefixtures('forget_compiled')


def dense_norms(name):
    """A DenseNet's norms of maps that others read too; each stands before its convolution."""
    norms = {key.rpartition('.')[0] for key in index()[name] if key.endswith('running_var')}
    return {norm for norm in norms if norm.split('.')[-1] in ('norm', 'norm1', 'norm5')}


# By the stored index: tracing every network would make collecting the tests take longer than running them.
NORMALISED = [name for name in flaxzoo.list_models() if any('running_var' in key for key in index()[name])]
# What stays: the norms of auxiliary heads, which evaluation does not run, and those that follow no convolution.
LEFT = {
    **{name: dense_norms(name) for name in densenet.VARIANTS},
    'googlenet': {'aux1.conv.bn', 'aux2.conv.bn'},
    'inception_v3': {'AuxLogits.conv0.bn', 'AuxLogits.conv1.bn'},
    'inception_resnet_v1': {'last_bn'},
}


def draw(leaves, seed=0, dtype=np.float32):
    """Random values for shapes: positive scales and variances, none of the others zero."""
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        if path[-1].key in ('scale', 'var'):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(dtype)
        return (rng.normal(size=leaf.shape) * max(1, np.prod(leaf.shape[:-1])) ** -0.5).astype(dtype)

    return jax.tree_util.tree_map_with_path(value, leaves)


def norms(variables):
    return {'.'.join(path[:-1]) for path in flatten_dict(variables.get('batch_stats', {}))}


@pytest.mark.parametrize(
    ('name', 'remat'), [(n, False) for n in NORMALISED] + [(n, True) for n in NORMALISED if n in FAST]
)
def test_every_norm_after_a_convolution_is_folded(name, remat):
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes(name))
    folded = flaxzoo.fold_batch_norm(flaxzoo.create(name, remat=remat), variables)
    assert norms(folded) == LEFT.get(name, set())
    biases = {'.'.join(path[:-1]) for path in flatten_dict(folded['params']) if path[-1] == 'folded_bias'}
    assert biases == norms(variables) - norms(folded)


@pytest.mark.parametrize(
    'name', [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NORMALISED]
)
def test_the_network_stays_the_same(name):
    model = flaxzoo.create(name, num_classes=10)
    with jax.enable_x64(True):
        variables = draw(template(model), dtype=np.float64)
        x = jnp.asarray(images(name))
        folded = flaxzoo.fold_batch_norm(model, variables)
        expected, logits = (np.asarray(jit(model.apply)(v, x)) for v in (variables, folded))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize('name', [name for name in flaxzoo.list_models() if name not in NORMALISED])
def test_a_network_without_norms_keeps_its_variables(name):
    variables = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(1), leaf.shape), shapes(name))
    folded = flaxzoo.fold_batch_norm(flaxzoo.create(name), variables)
    assert all(a is b for a, b in zip(jax.tree.leaves(folded), jax.tree.leaves(variables), strict=True))
