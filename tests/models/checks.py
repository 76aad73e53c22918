"""What every network must stand, for small forms that no registered name has: a test calls these with its own.

`model` is a network, `module` the torch module that it reimplements, `x` images (N, H, W, C) in float64.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torchvision.models.feature_extraction import create_feature_extractor

import flaxzoo
from flaxzoo.analysis.parity import compare
from tests.compiling import jit


def parity(model, module, x, tolerance=1e-10):
    """Outputs, loss, every gradient and statistic, in evaluation and in training with drops off."""
    evaluated = compare(model, module, x)
    assert evaluated.error <= tolerance, evaluated.first_above(tolerance)
    trained = compare(model, module, x, train=True, labels=np.arange(len(x)))
    assert trained.error <= tolerance, trained.first_above(tolerance)
    gradients = {row.name for row in trained.rows if row.kind == 'gradient'}
    assert gradients == {name for name, _ in module.named_parameters()}


def features(model, module, x, names):
    """The maps `names` are those of torchvision's `create_feature_extractor`; those of four axes as they are in torch
    or with the channels last."""
    module = module.double().eval()
    with torch.no_grad():
        theirs = create_feature_extractor(module, list(names))(torch.from_numpy(np.moveaxis(x, -1, 1).copy()))
    with jax.enable_x64(True):
        ours = flaxzoo.features(model, doubled(flaxzoo.from_torch(model, module.state_dict())), x, names)
    for name in names:
        expected = theirs[name].numpy()
        if expected.shape != ours[name].shape:
            expected = np.moveaxis(expected, 1, -1)
        chex.assert_equal_shape([ours[name], expected])
        np.testing.assert_allclose(ours[name], expected, atol=1e-10 * np.abs(expected).max(), err_msg=name)


def round_trip(model, module):
    """Conversion is a bijection: torch takes strictly what it gave, but for buffers that it computes itself."""
    state_dict = module.float().state_dict()
    variables = flaxzoo.from_torch(model, state_dict)
    arrays = flaxzoo.to_torch(variables)
    back = flaxzoo.from_torch(model, arrays)
    chex.assert_trees_all_equal(back, variables)
    assert arrays.keys() == {name for name, _ in module.named_parameters()}
    computed = {key: value for key, value in state_dict.items() if key not in arrays}
    module.load_state_dict({**computed, **{key: torch.from_numpy(value) for key, value in arrays.items()}}, strict=True)


def policies(model, x):
    """Recomputed or not, jitted, mapped and in bfloat16 it is the same network; none of these leaks or is refused."""
    variables = drawn(model, x)
    single = jnp.asarray(x, jnp.float32)
    with jax.enable_x64(True):
        wide, y = doubled(variables), jnp.arange(len(x))
        stored, recomputed = (
            jit(jax.value_and_grad(lambda v, m=m: loss(m, v, jnp.asarray(x), y)))(wide)
            for m in (model, flaxzoo.with_policy(model, remat=True))
        )
    chex.assert_trees_all_close(stored, recomputed, rtol=1e-9, atol=1e-12)
    chex.assert_tree_all_finite(stored)
    frozen = flaxzoo.with_policy(model, freeze_batch_norm=True)
    logits = np.asarray(jit(frozen.apply)(variables, single))
    scale = np.abs(logits).max()
    each = jit(jax.vmap(lambda image: model.apply(variables, image[None])[0]))(single)
    np.testing.assert_allclose(each, logits, atol=1e-5 * scale)
    rounded = jit(model.apply)(variables, single.astype(jnp.bfloat16))
    assert rounded.dtype == jnp.bfloat16
    assert np.abs(np.asarray(rounded, np.float32) - logits).max() < 0.1 * scale
    headless = dataclasses.replace(model, num_classes=0)
    trunk = jax.eval_shape(headless.init_with_output, jax.random.key(0), single)
    assert trunk[0].ndim == 2
    grey = jax.eval_shape(model.init_with_output, jax.random.key(0), single[..., :1])
    assert grey[0].shape == logits.shape


def loss(model, variables, x, y):
    """Of a training step with drops."""
    rngs = {'dropout': jax.random.key(1)}
    return optax.softmax_cross_entropy_with_integer_labels(model.apply(variables, x, train=True, rngs=rngs), y).mean()


def drawn(model, x):
    """Variables with every leaf drawn, those too that start at zero."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(x, jnp.float32))
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        if path[-1].key == 'scale':
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return (rng.normal(size=leaf.shape) * fan_in**-0.5).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def doubled(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)
