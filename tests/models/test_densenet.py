"""DenseNet's own: what recomputed layers store, and what a layer adds dropped in training."""

import jax
import jax.numpy as jnp
import numpy as np

import flaxzoo

SMALL = {'growth_rate': 8, 'block_config': (6, 2), 'num_init_features': 16, 'num_classes': 3}


def stored(model):
    """Channels of the arrays of the first dense block that a gradient stores."""
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def residuals(variables, x):
        return jax.vjp(lambda v, x: model.apply(v, x, True, mutable=['batch_stats'])[0], variables, x)[1]

    leaves = jax.tree.leaves(jax.eval_shape(residuals, variables, x))
    return sorted(leaf.shape[-1] for leaf in leaves if leaf.shape[:-1] == (2, 16, 16))


def test_recomputed_layers_store_their_maps_once():
    """The stem's 16 channels, what each layer but the last adds, and all 64 side by side for the transition."""
    assert stored(flaxzoo.create('densenet121', **SMALL, remat=True)) == [8] * 5 + [16, 64]
    plain = stored(flaxzoo.create('densenet121', **SMALL))
    assert {24, 32, 40, 48, 56} < set(plain)  # each layer's inputs side by side


def test_drop_rate_drops_elements_of_what_a_layer_adds():
    model = flaxzoo.create('densenet121', **SMALL, drop_rate=0.25)
    x = jax.random.normal(jax.random.key(0), (8, 64, 64, 3))
    variables = flaxzoo.init(model, jax.random.key(1))
    names = ('features.denseblock1.denselayer1.conv2', 'features.denseblock1.denselayer1')

    def maps(**kwargs):
        return flaxzoo.features(model, variables, x, names, **kwargs)

    whole, same = (np.asarray(value) for value in maps().values())
    np.testing.assert_array_equal(whole, same)
    found, _ = maps(train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(2)})
    whole, dropped = (np.asarray(value) for value in found.values())
    gone = dropped == 0
    np.testing.assert_allclose(dropped[~gone], whole[~gone] / 0.75, rtol=1e-6)
    assert abs(gone.mean() - 0.25) < 4 * (0.25 * 0.75 / gone.size) ** 0.5
