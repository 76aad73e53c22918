"""Every family over the mesh that `jax.make_mesh` gives by default, on which the sharding of an array is in its type.

There a reshape or a gradient that does not say how its result lies over the devices is refused while it is traced. The
numbers are tested for single ops and for one network of each kind.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import flaxzoo
from tests.models.cases import FAST

SWIN = {'embed_dim': 8, 'depths': (1, 2), 'num_heads': (1, 2)}
FIELDS = {'vit_b_32': {'num_layers': 1}, 'swin_t': SWIN, 'swin_v2_t': SWIN}
FAMILIES = (*FAST, 'inception_v3', 'inception_v4', 'inception_resnet_v1', 'densenet121', *FIELDS)


@pytest.mark.parametrize('name', FAMILIES)
def test_a_training_gradient_is_traced(name):
    model = flaxzoo.create(name, num_classes=5, **FIELDS.get(name, {}))
    size = model.image_size
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    mesh = jax.make_mesh((2,), ('data',), devices=jax.devices()[:2])

    def loss(params, x, key):
        statistics = jax.tree.map(jnp.zeros_like, {kind: tree for kind, tree in variables.items() if kind != 'params'})
        state = {'params': params, **statistics}
        outputs, _ = model.apply(state, x, train=True, mutable=['batch_stats'], rngs={'dropout': key})
        return sum(y.sum() for y in jax.tree.leaves(outputs))

    with jax.set_mesh(mesh):
        x = jax.ShapeDtypeStruct((4, size, size, 3), np.float32, sharding=NamedSharding(mesh, P('data')))
        jax.jit(jax.grad(loss)).trace(variables['params'], x, jax.random.key(0))
