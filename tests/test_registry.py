"""`create` and `list_models`: names, wildcards, order, and what a mistake is told."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import flaxzoo


def test_wildcards_and_natural_order():
    assert flaxzoo.list_models('resnet*') == ['resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152']
    assert 'resnext50_32x4d' in flaxzoo.list_models('resne?t50*')
    assert flaxzoo.list_models('nothing*') == []
    assert set(flaxzoo.list_models('resne[tx]*')) < set(flaxzoo.list_models())


def test_fields_reach_the_network():
    model = flaxzoo.create('resnext50_32x4d', num_classes=7, groups=16)
    assert (model.num_classes, model.groups, model.width_per_group) == (7, 16, 4)


def test_fields_that_a_variant_states_by_position_can_be_overridden():
    assert flaxzoo.create('resnet50', layers=(1, 1, 1, 1)).layers == (1, 1, 1, 1)


def test_as_a_named_submodule():
    assert flaxzoo.create('resnet18', name='backbone').name == 'backbone'


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"no model 'resnet51'.*did you mean .*resnet50"):
        flaxzoo.create('resnet51')


def test_unknown_field_is_named_with_those_that_exist():
    with pytest.raises(TypeError, match=r"no field 'num_clases', did you mean num_classes.*its fields are .*groups"):
        flaxzoo.create('resnet18', num_clases=3)


@pytest.mark.parametrize('num_classes', [-1, 2.0, '10', True, None])
def test_num_classes_must_be_an_integer(num_classes):
    with pytest.raises(ValueError, match='num_classes must be an integer, 0 for no head'):
        flaxzoo.create('resnet18', num_classes=num_classes)


@pytest.mark.parametrize(
    ('x', 'error', 'message'),
    [
        (jnp.zeros((1, 32, 32, 3), jnp.uint8), TypeError, r'uint8.*normalised floating-point.*/ 255'),
        (jnp.zeros((32, 32, 3)), ValueError, r'\(N, H, W, C\), got \(32, 32, 3\)'),
        (jnp.zeros((1, 3, 32, 32)), ValueError, r'takes 3 channels .* has 32; .*channels last'),
    ],
)
def test_a_wrong_image_is_told_what_is_right(x, error, message):
    model = flaxzoo.create('resnet18')
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(error, match=message):
        jax.eval_shape(model.apply, variables, x)


def test_fields_that_do_not_fit_together():
    with pytest.raises(ValueError, match='stem must be'):
        flaxzoo.create('resnet18', stem='cifar10')
    with pytest.raises(ValueError, match='BasicBlock takes groups=1'):
        jax.eval_shape(flaxzoo.create('resnet18', groups=2).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(ValueError, match='replace_stride_with_dilation needs one value'):
        flaxzoo.create('resnet18', replace_stride_with_dilation=(True,))


def test_list_models_builds_no_network(monkeypatch):
    monkeypatch.setattr(nn.Module, '__post_init__', lambda module: pytest.fail(f'built a {type(module).__name__}'))
    assert flaxzoo.list_models()
