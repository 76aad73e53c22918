"""The converter: strict, two-way, bit-exact, and every key that does not fit in one error."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax.core import freeze

import flaxzoo
from flaxzoo.analysis.parity import randomise
from flaxzoo.weights.convert import template
from tests import reference

NAME = 'resnet18'


@pytest.fixture(scope='module')
def state_dict():
    return randomise(reference.build(NAME)).state_dict()


def test_round_trip_from_torch_is_bit_exact(state_dict):
    back = flaxzoo.to_torch(flaxzoo.from_torch(NAME, state_dict))
    assert set(back) == {key for key in state_dict if 'num_batches_tracked' not in key}
    for key, value in back.items():
        np.testing.assert_array_equal(value, state_dict[key].numpy())
        assert value.dtype == np.float32
        assert value.flags.c_contiguous


def test_round_trip_from_flax_is_bit_exact():
    model = flaxzoo.create('resnext29_32x4d')
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    back = flaxzoo.from_torch(model, flaxzoo.to_torch(variables))
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_torch_loads_it_strictly(state_dict):
    arrays = flaxzoo.to_torch(flaxzoo.from_torch(NAME, state_dict))
    module = reference.build(NAME)
    module.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()}, strict=True)
    assert all(torch.equal(value, state_dict[key]) for key, value in module.state_dict().items())


def test_a_frozen_dict_has_the_same_names(state_dict):
    variables = flaxzoo.from_torch(NAME, state_dict)
    assert set(flaxzoo.to_torch(freeze(variables))) == set(flaxzoo.to_torch(variables))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('as_numpy', [False, True])
def test_dtypes(state_dict, dtype, as_numpy):
    """Half precision is widened exactly; float64 is rounded without x64."""
    given = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state_dict.items()}
    if as_numpy:
        bits = lambda t: t.view(torch.int16).numpy().view(ml_dtypes.bfloat16)  # noqa: E731
        given = {key: bits(t) if t.dtype == torch.bfloat16 else t.numpy() for key, t in given.items()}
    kernel = flaxzoo.from_torch(NAME, given)['params']['conv1']['kernel']
    assert kernel.dtype == jnp.float32
    expected = state_dict['conv1.weight'].to(dtype).float().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)


def test_float64_is_kept_under_x64(state_dict):
    given = {key: value.double() * (1 + 1e-12) for key, value in state_dict.items() if value.is_floating_point()}
    with jax.enable_x64(True):
        variables = flaxzoo.from_torch(NAME, given)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype('float64')}
        back = flaxzoo.to_torch(variables)
    np.testing.assert_array_equal(back['fc.weight'], given['fc.weight'].numpy())


def test_every_key_that_does_not_fit_is_listed_in_one_error(state_dict):
    wrong = dict(state_dict)
    del wrong['layer1.0.conv1.weight'], wrong['bn1.running_var']
    wrong['head.weight'] = torch.zeros(3)
    wrong['fc.weight'] = torch.zeros(10, 512)
    wrong['conv1.weight'] = wrong['conv1.weight'].permute(2, 3, 1, 0)
    with pytest.raises(flaxzoo.ConversionError) as error:
        flaxzoo.from_torch(NAME, wrong)
    message = str(error.value)
    assert '5 in all' in message
    for line in (
        '- layer1.0.conv1.weight',
        '- bn1.running_var',
        '+ head.weight',
        '! fc.weight: shape (10, 512), expected (1000, 512)',
        '! conv1.weight: shape (7, 7, 3, 64), expected (64, 3, 7, 7)',
    ):
        assert line in message


def test_the_number_of_input_channels_follows_input_shape():
    module = reference.build(NAME)
    module.conv1 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    variables = flaxzoo.from_torch(NAME, module.state_dict(), input_shape=(1, 64, 64, 1))
    assert variables['params']['conv1']['kernel'].shape == (7, 7, 1, 64)
    with pytest.raises(flaxzoo.ConversionError, match=r'conv1.weight: shape \(64, 1, 7, 7\), expected \(64, 3, 7, 7\)'):
        flaxzoo.from_torch(NAME, module.state_dict())


def test_only_weights_have_torch_names():
    with pytest.raises(flaxzoo.ConversionError, match=r"the collections \['intermediates'\]"):
        flaxzoo.to_torch({'params': {}, 'intermediates': {}})


def test_two_leaves_with_one_name_are_refused():
    leaf = np.zeros(3)
    with pytest.raises(flaxzoo.ConversionError, match=r'both have the name bn\.weight'):
        flaxzoo.to_torch({'params': {'bn': {'scale': leaf, 'weight': leaf}}})


def test_the_template_computes_nothing():
    leaves = jax.tree.leaves(template(flaxzoo.create('resnet152')))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


@pytest.mark.parametrize('rank', [1, 2, 3])
def test_kernels_of_every_rank(rank):
    """Convolutions in one, two and three dimensions; torch's module takes what we give and gives it back."""
    spatial = (3, 2, 1)[:rank]

    class Network(nn.Module):
        image_size = 8

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.Conv(4, spatial, padding='VALID', name='conv')(x[..., :1].reshape(1, *[8] * rank, -1))
            return nn.Dense(2, name='fc')(x.mean(range(1, rank + 1)))

    torch.manual_seed(0)
    channels = 8 ** (2 - rank) if rank < 3 else 1
    conv = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[rank - 1](channels, 4, spatial)
    module = torch.nn.ModuleDict({'conv': conv, 'fc': torch.nn.Linear(4, 2)})
    shape = (1, 8, 8, 3) if rank < 3 else (1, 8, 64, 1)
    variables = flaxzoo.from_torch(Network(), module.state_dict(), input_shape=shape)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    inner = np.moveaxis(x[..., :1].reshape(1, *[8] * rank, -1), -1, 1).copy()
    with torch.no_grad():
        theirs = module['fc'](module['conv'](torch.from_numpy(inner)).flatten(2).mean(2)).numpy()
    np.testing.assert_allclose(Network().apply(variables, x), theirs, rtol=0, atol=1e-5)
    back = flaxzoo.to_torch(variables)
    assert {key: value.shape for key, value in back.items()} == {k: v.shape for k, v in module.state_dict().items()}
    for key, value in module.state_dict().items():
        np.testing.assert_array_equal(back[key], value.numpy())


def test_a_kernel_without_channels_is_refused():
    with pytest.raises(flaxzoo.ConversionError, match=r'params/a/kernel: a kernel has from 2 to 5 axes .*, this one 1'):
        flaxzoo.to_torch({'params': {'a': {'kernel': np.zeros(3)}}})


LEAVES = {
    'class_token': (1, 1, 6),
    'pos_embedding': (1, 5, 6),
    'in_proj_weight': (18, 6),
    'in_proj_bias': (18,),
    'relative_position_bias_table': (9, 2),
    'layer_scale': (6, 1, 1),
    'gamma': (6,),
    'logit_scale': (2, 1, 1),
    'cls.token.1': (),
}


def test_any_other_leaf_keeps_its_name_and_layout():
    class Network(nn.Module):
        image_size = 8

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for name, shape in LEAVES.items():
                self.param(name, nn.initializers.ones, shape)
            return x

    weights = {key: np.random.default_rng(0).normal(size=shape).astype(np.float32) for key, shape in LEAVES.items()}
    variables = flaxzoo.from_torch(Network(), weights)
    for key, value in weights.items():
        np.testing.assert_array_equal(variables['params'][key], value)
        np.testing.assert_array_equal(flaxzoo.to_torch(variables)[key], value)
    with pytest.raises(flaxzoo.ConversionError, match=r'! in_proj_weight: shape \(6, 18\)'):
        flaxzoo.from_torch(Network(), weights | {'in_proj_weight': weights['in_proj_weight'].T})


def test_only_the_counter_of_batches_is_ignored_everywhere(state_dict):
    for key in ('relative_position_index', 'layer1.relative_coords_table'):
        with pytest.raises(flaxzoo.ConversionError, match=rf'1 in all.*\n.*\+ {key}'):
            flaxzoo.from_torch(NAME, {**state_dict, key: torch.zeros(3)})


def test_a_module_is_no_state_dict():
    with pytest.raises(TypeError, match=r'the module itself: pass module\.state_dict\(\)'):
        flaxzoo.from_torch(NAME, reference.build(NAME))
    with pytest.raises(TypeError, match=r'takes a state dict .*, got list'):
        flaxzoo.from_torch(NAME, [])
