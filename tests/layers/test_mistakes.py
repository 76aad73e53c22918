"""What a forgotten collection or rng is told: the layer's name in torch, and the call as it should be."""

import jax
import jax.numpy as jnp
import pytest

import flaxzoo

X = jnp.ones((2, 64, 64, 3))


@pytest.fixture(scope='module')
def resnet():
    model = flaxzoo.create('resnet18', num_classes=3)
    return model, flaxzoo.init(model, jax.random.key(0), X)


def trace(function, *args):
    return jax.eval_shape(function, *args)


@pytest.mark.parametrize('remat', [False, True])
def test_forgotten_batch_stats(resnet, remat):
    model, variables = flaxzoo.with_policy(resnet[0], remat=remat), resnet[1]
    with pytest.raises(ValueError, match=r"^bn1: there are no running statistics.*'batch_stats': \.\.\."):
        trace(lambda v: model.apply({'params': v}, X), variables['params'])


@pytest.mark.parametrize('remat', [False, True])
def test_forgotten_mutable(resnet, remat):
    model, variables = flaxzoo.with_policy(resnet[0], remat=remat), resnet[1]
    with pytest.raises(ValueError, match=r"^bn1: training changes .*mutable=\['batch_stats'\].*freeze_batch_norm=True"):
        trace(lambda v: model.apply(v, X, train=True), variables)
    trace(lambda v: model.apply(v, X, train=True, mutable=['batch_stats']), variables)
    frozen = flaxzoo.with_policy(model, freeze_batch_norm=True)
    trace(lambda v: frozen.apply(v, X, train=True), variables)


@pytest.mark.parametrize('remat', [False, True])
def test_forgotten_dropout_rng(remat):
    model = flaxzoo.create('squeezenet1_1', num_classes=3, remat=remat)
    variables = jax.eval_shape(model.init, jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"^classifier\.0 draws at random in training.*rngs=\{'dropout'"):
        trace(lambda v: model.apply(v, X, train=True), variables)
    for rngs in ({'dropout': jax.random.key(0)}, {'params': jax.random.key(0)}):
        trace(lambda v, rngs=rngs: model.apply(v, X, train=True, rngs=rngs), variables)
    trace(lambda v: model.apply(v, X), variables)
