"""What a run says once for any network: shared and frozen statistics, recomputed blocks; and equal networks."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxzoo
from flaxzoo.layers import BatchNorm, LayerNorm, Network, Norm

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(4, 6, 5, 3)).astype(np.float32)


class Block(nn.Module):
    norm: Norm

    @nn.compact
    def __call__(self, x, train=False):
        return x + self.norm(name='bn')(x, train) if self.norm.kind is BatchNorm else x + self.norm(name='ln')(x)


class Small(Network):
    """A norm of its own, and one in a block."""

    norm_layer: Norm = Norm()

    @nn.compact
    def __call__(self, x, train=False):
        x = self.run_block(partial(Block, self.norm_layer, name='block'), x, train)
        return self.run_block(Small._rest, x, train)

    def _rest(self, x, train):
        return BatchNorm(name='last')(x, train)


class Wrapper(nn.Module):
    """A network within a module of somebody else's."""

    network: Network

    @nn.compact
    def __call__(self, x, train=False):
        return self.network(x, train)


FORMS = {'alone': lambda model: model, 'within another module': Wrapper}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('remat', [False, True])
def test_frozen_statistics(form, remat):
    model = flaxzoo.with_policy(Small(), freeze_batch_norm=True, remat=remat)
    module = FORMS[form](model)
    variables = module.init(jax.random.key(0), X)
    y, new = module.apply(variables, X, train=True, mutable=['batch_stats'])
    chex.assert_trees_all_equal(new['batch_stats'], variables['batch_stats'])
    np.testing.assert_array_equal(y, module.apply(variables, X))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('remat', [False, True])
def test_shared_statistics(form, remat):
    module = FORMS[form](flaxzoo.with_policy(Small(), axis_name='batch', remat=remat))
    alone = FORMS[form](Small())
    variables = alone.init(jax.random.key(0), X)

    def run(x):
        return module.apply(variables, x, train=True, mutable=['batch_stats'])

    y, new = jax.pmap(run, axis_name='batch', devices=jax.devices()[:2])(X.reshape(2, 2, *X.shape[1:]))
    expected, statistics = alone.apply(variables, X, train=True, mutable=['batch_stats'])
    np.testing.assert_allclose(y.reshape(X.shape), expected, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[0], new), statistics, rtol=1e-4, atol=1e-6)


def test_a_layer_of_ones_own_outside_of_networks():
    norm = BatchNorm(frozen=True)
    variables = norm.init(jax.random.key(0), X)
    np.testing.assert_array_equal(norm.apply(variables, X, train=True), norm.apply(variables, X))


def test_networks_without_batch_norm_take_every_policy():
    model = flaxzoo.with_policy(
        Small(norm_layer=Norm(LayerNorm, eps=1e-6)), axis_name='batch', freeze_batch_norm=True, remat=True
    )
    assert model.init(jax.random.key(0), X)['params'].keys() == {'block', 'last'}
    plain = flaxzoo.with_policy(flaxzoo.create('vgg11'), axis_name='batch', freeze_batch_norm=True)
    jax.eval_shape(plain.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_initialising_recomputes_nothing():
    program = jax.make_jaxpr(Small(remat=True).init)(jax.random.key(0), X)
    assert 'remat' not in str(program)
    assert 'remat' in str(jax.make_jaxpr(Small(remat=True).apply)(Small().init(jax.random.key(0), X), X))


@pytest.mark.parametrize('name', flaxzoo.list_models())
def test_equal_networks_are_equal(name):
    one, other = flaxzoo.create(name), flaxzoo.create(name)
    assert one == other
    assert hash(one) == hash(other)
    frozen = flaxzoo.with_policy(one, freeze_batch_norm=True)
    assert frozen != one
    assert flaxzoo.with_policy(frozen, freeze_batch_norm=False) == one
    assert one.clone(preset=object(), variant='another') == one
    assert one.variant == name


def test_a_network_as_a_static_argument_compiles_once():
    @partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(n=1)
    def run(model, variables, x):
        return model.apply(variables, x)

    model = flaxzoo.create('resnet18', layers=[1, 1, 1], num_classes=3)
    variables = flaxzoo.init(model, jax.random.key(0))
    for _ in range(2):
        run(flaxzoo.create('resnet18', layers=[1, 1, 1], num_classes=3), variables, X)
    run(flaxzoo.create('resnet18', layers=(1, 1, 1), num_classes=3, norm_layer=Norm()), variables, X)


def test_what_is_not_a_policy_is_refused():
    model = flaxzoo.create('resnet18')
    with pytest.raises(TypeError, match=r"takes axis_name, freeze_batch_norm, remat, not 'frozen'"):
        flaxzoo.with_policy(model, frozen=True)
    with pytest.raises(TypeError, match=r"freeze_batch_norm must be a bool, got 'yes'"):
        flaxzoo.with_policy(model, freeze_batch_norm='yes')
    with pytest.raises(TypeError, match=r'a network of flaxzoo\.create, got Dense'):
        flaxzoo.with_policy(nn.Dense(3), remat=True)


def test_the_old_way_of_telling_batch_norm_names_the_new_one():
    with pytest.raises(TypeError, match=r'flaxzoo\.with_policy\(model, axis_name=\.\.\., freeze_batch_norm'):
        flaxzoo.create('resnet50', norm_layer=partial(BatchNorm, frozen=True))
    with pytest.raises(TypeError, match=r'flaxzoo\.with_policy'):
        flaxzoo.create('inception_v3', norm_layer=partial(BatchNorm, frozen=True))


def test_a_network_says_at_once_what_its_blocks_cannot_take():
    with pytest.raises(ValueError, match='BasicBlock takes groups=1'):
        flaxzoo.create('resnet18', groups=2)
    with pytest.raises(ValueError, match='BasicBlock takes groups=1, width_per_group=64 and no dilation'):
        flaxzoo.create('resnet18', replace_stride_with_dilation=(False, True, False))


@pytest.mark.parametrize('kind', [BatchNorm, LayerNorm])
@pytest.mark.parametrize('name', ['resnet18', 'efficientnet_b0', 'mobilenet_v3_small', 'vit_b_16', 'swin_t'])
def test_norm_layer_takes_every_kind(name, kind):
    fields = {'resnet18': {'zero_init_residual': True, 'layers': (1, 1, 1, 1)}, 'vit_b_16': {'num_layers': 1}}
    model = flaxzoo.create(name, norm_layer=Norm(kind), **fields.get(name, {}))
    x = jax.ShapeDtypeStruct((2, model.image_size, model.image_size, 3), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=True), {'params': KEY, 'dropout': KEY}, x)
    assert ('batch_stats' in variables) == (kind is BatchNorm)
