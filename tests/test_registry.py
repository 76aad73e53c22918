"""`create` and `list_models`: names, wildcards, order, and what a mistake is told."""

from functools import partial
from types import ModuleType

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torchvision

import flaxzoo
from flaxzoo import registry
from flaxzoo.layers import BatchNorm, Network, Norm


def test_wildcards_and_natural_order():
    assert flaxzoo.list_models('resnet*') == ['resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152']
    assert 'resnext50_32x4d' in flaxzoo.list_models('resne?t50*')
    assert flaxzoo.list_models('nothing*') == []
    assert set(flaxzoo.list_models('resne[tx]*')) < set(flaxzoo.list_models())


def test_a_word_is_found_anywhere_and_in_any_case():
    found = flaxzoo.list_models('inception')
    assert {'bn_inception', 'inception_v3', 'inception_resnet_v1'} < set(found)
    assert all('inception' in name for name in found)
    assert flaxzoo.list_models('ResNet*') == flaxzoo.list_models('resnet*')
    assert flaxzoo.list_models('Inception') == found
    assert flaxzoo.list_models('') == flaxzoo.list_models()


def test_a_name_is_registered_once():
    first, second = ModuleType('models.first'), ModuleType('models.second')
    first.VARIANTS, second.VARIANTS = {'a': partial(int), 'b': partial(int)}, {'b': partial(int)}
    with pytest.raises(ValueError, match=r"'b' is registered twice, by models\.first and by models\.second"):
        registry.register(first, second)
    assert list(registry.register(first)) == ['a', 'b']


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


@pytest.mark.parametrize(
    ('name', 'meant'),
    [
        ('ResNet50', 'resnet50'),
        ('resnet-50', 'resnet50'),
        ('timm/resnet50', 'resnet50'),
        ('resnet50.tv_in1k', 'resnet50'),
        ('hf-hub:timm/seresnext50_32x4d.racm_in1k', 'seresnext50_32x4d'),
        ('SqueezeNet1-1', 'squeezenet1_1'),
        ('InceptionV3', 'inception_v3'),
        ('legacy_xception', 'xception'),
        ('torchvision/VGG16_BN', 'vgg16_bn'),
    ],
)
def test_another_spelling_names_what_was_meant(name, meant):
    with pytest.raises(ValueError, match=rf'there is no model .*, did you mean {meant}\?') as error:
        flaxzoo.create(name)
    assert ("flaxzoo.load('" in str(error.value)) == ('.' in name)


def test_a_network_that_is_still_to_come(monkeypatch):
    monkeypatch.delitem(registry.MODELS, 'resnet50')
    with pytest.raises(ValueError, match='flaxzoo does not have resnet50 yet'):
        flaxzoo.create('ResNet50')


def test_every_network_of_torchvision_is_known():
    """Those that are not here yet are named in the catalogue of weights."""
    theirs = set(torchvision.models.list_models(module=torchvision.models))
    assert theirs <= registry._released() | registry.MODELS.keys()


def test_unknown_field_is_named_with_those_that_exist():
    with pytest.raises(TypeError, match=r"no field 'num_clases', did you mean num_classes.*its fields are .*groups"):
        flaxzoo.create('resnet18', num_clases=3)


@pytest.mark.parametrize(
    ('field', 'message'),
    [
        ('pretrained', r'flaxzoo\.load\(name\) gives a network and its released weights'),
        ('weights', r'flaxzoo\.load\(name, weights\)'),
        ('in_chans', r'load has in_channels'),
        ('in_channels', r'load has in_channels'),
        ('features_only', r'flaxzoo\.features'),
    ],
)
def test_arguments_of_other_packages_point_to_ours(field, message):
    with pytest.raises(TypeError, match=rf"no field '{field}'; .*{message}"):
        flaxzoo.create('resnet18', **{field: True})


class WithNorm(Network):
    norm_layer: Norm = Norm(eps=1e-3)
    layers: tuple = ()


class WithoutNorm(Network):
    pass


@pytest.mark.parametrize('network', [WithNorm, WithoutNorm])
def test_how_a_run_normalises_is_no_matter_of_the_network(network, monkeypatch):
    """The old idiom lost the family's epsilon in silence."""
    monkeypatch.setitem(registry.MODELS, 'it', partial(network))
    with pytest.raises(TypeError, match=r'norm_layer.*Norm\(.*flaxzoo\.with_policy\(model, axis_name='):
        flaxzoo.create('it', norm_layer=partial(BatchNorm, axis_name='batch'))


def test_fields_of_the_registered_network(monkeypatch):
    monkeypatch.setitem(registry.MODELS, 'it', partial(WithNorm))
    assert flaxzoo.create('it', norm_layer=Norm(eps=1e-6)).norm_layer == Norm(eps=1e-6)
    assert flaxzoo.create('it').variant == 'it'
    model = flaxzoo.create('it', layers=[1, 2])
    assert model == flaxzoo.create('it', layers=(1, 2))
    assert hash(model) == hash(flaxzoo.create('it', layers=(1, 2)))


def test_numpys_integers_are_integers():
    model = flaxzoo.create('resnet18', num_classes=np.int64(7))
    assert model == flaxzoo.create('resnet18', num_classes=7)
    assert type(model.num_classes) is int


@pytest.mark.parametrize('num_classes', [-1, 2.0, '10', True, None, np.True_, np.float32(3), np.int64(-1)])
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


@pytest.mark.parametrize('size', ['224', 0, 224.0, True])
def test_image_size_is_a_number_of_pixels(size):
    for name in ('resnet18', 'vit_b_16'):
        with pytest.raises(ValueError, match='image_size must be an integer, in pixels, got'):
            flaxzoo.create(name, image_size=size)
    assert type(flaxzoo.create('vit_b_16', image_size=np.int64(32)).image_size) is int


def test_a_choice_is_suggested_once():
    assert registry.suggest('feature', ['features', 'features', 'head', 'features']) == ', did you mean features?'
