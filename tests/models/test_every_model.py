"""What every registered network can do: run, differentiate, jit, pmap, other channels and dtypes, rematerialise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxzoo
from tests.compiling import jit
from tests.models.cases import ALL_MODELS, images, labels, shapes

pytestmark = pytest.mark.usefixtures('forget_compiled')


def build(name, dtype='float32', **fields):
    """A network of 10 classes, its variables (drawn leaf by leaf: initialising eagerly takes longer) and images."""
    model = flaxzoo.create(name, num_classes=10, **fields)
    x = jnp.asarray(images(name), dtype)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        if path[-1].key in ('scale', 'var'):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return (rng.normal(size=leaf.shape) * fan_in**-0.5).astype(leaf.dtype)

    return model, jax.tree_util.tree_map_with_path(draw, shapes), x


def training_step(model, variables, x, y):
    """Loss and gradients with dropout, and the updated statistics."""

    def loss(params):
        out, new = model.apply(
            {**variables, 'params': params},
            x,
            train=True,
            mutable=['batch_stats'],
            rngs={'dropout': jax.random.key(1)},
        )
        heads = out if isinstance(out, tuple) else (out,)
        losses = [optax.softmax_cross_entropy_with_integer_labels(head, y).mean() for head in heads]
        return sum(losses), new

    return jax.value_and_grad(loss, has_aux=True)(variables['params'])


@pytest.mark.parametrize('name', flaxzoo.list_models())
def test_an_odd_size_that_is_not_square(name):
    x = jax.ShapeDtypeStruct(images(name).shape, jnp.float32)
    model = flaxzoo.create(name)
    assert jax.eval_shape(model.apply, shapes(name), x).shape == (x.shape[0], model.num_classes)


@pytest.mark.parametrize('name', flaxzoo.list_models())
def test_images_of_one_channel(name):
    model = flaxzoo.create(name, num_classes=7)
    x = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 1), jnp.float32)
    logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert logits.shape == (1, 7)
    pairs = zip(jax.tree.leaves(variables), jax.tree.leaves(shapes(name, 7)), strict=True)
    changed = [(a.shape, b.shape) for a, b in pairs if a.shape != b.shape]
    assert changed
    assert all(one[2] == 1 and three[2] == 3 for one, three in changed)


@pytest.mark.parametrize('name', flaxzoo.list_models())
def test_bfloat16_images_are_computed_in_bfloat16(name):
    """No convolution or matrix product of the forward pass is in another dtype, and none of the parameters is."""
    x = jax.ShapeDtypeStruct(images(name).shape, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(name))} == {np.dtype('float32')}
    jaxpr = jax.make_jaxpr(flaxzoo.create(name).apply)(shapes(name), x)
    assert jaxpr.out_avals[0].dtype == jnp.bfloat16
    products = [e for e in _equations(jaxpr.jaxpr) if e.primitive.name in ('conv2d', 'dot_general')]
    assert products
    assert {v.aval.dtype for e in products for v in e.invars} == {np.dtype(jnp.bfloat16)}


@pytest.mark.parametrize('name', ALL_MODELS)
def test_forward_and_backward_under_jit_with_remat(name):
    """Every parameter gets a finite gradient, the same one whether blocks are stored or recomputed.

    In float64: batch statistics of few values magnify the rounding of float32 until nothing could be compared.
    """
    y = labels(name)
    runs = []
    with jax.enable_x64(True):
        for remat in (False, True):
            model, variables, x = build(name, 'float64', remat=remat)
            runs.append(jit(lambda v, x, m=model: training_step(m, v, x, y))(variables, x))
    ((loss, new), grads), ((loss_remat, _), grads_remat) = runs
    assert np.isfinite(loss)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 0, path
    for path, leaf in jax.tree_util.tree_leaves_with_path(new):
        assert np.isfinite(leaf).all(), path
    np.testing.assert_allclose(loss, loss_remat, rtol=1e-5)
    # A norm's bias that a linear layer and another norm follow has a gradient of zero in theory, and of rounding.
    noise = 1e-12 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(grads_remat), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=max(1e-4 * np.abs(a).max(), noise))


@pytest.mark.parametrize('name', ALL_MODELS)
def test_forward_under_jit_pmap_and_in_bfloat16(name):
    model, variables, x = build(name)
    logits = np.asarray(jit(model.apply)(variables, x))
    scale = np.abs(logits).max()
    mapped = jax.pmap(model.apply, in_axes=(None, 0), devices=jax.devices()[:2])(variables, jnp.stack([x, x[::-1]]))
    np.testing.assert_allclose(mapped[0], logits, atol=1e-5 * scale)
    np.testing.assert_allclose(mapped[1], logits[::-1], atol=1e-5 * scale)
    rounded = jit(model.apply)(variables, x.astype(jnp.bfloat16))
    assert rounded.dtype == jnp.bfloat16
    assert np.abs(np.asarray(rounded, np.float32) - logits).max() < 0.2 * scale


@pytest.mark.parametrize('name', ALL_MODELS)
def test_initialised_networks_are_finite(name):
    x = jnp.asarray(images(name), jnp.float32)
    logits, variables = jit(flaxzoo.create(name, num_classes=10).init_with_output)(jax.random.key(0), x)
    assert np.isfinite(logits).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(inner, 'jaxpr'):
                    yield from _equations(inner.jaxpr)
                elif hasattr(inner, 'eqns'):
                    yield from _equations(inner)
