"""Swin and Swin V2 against torchvision's, in small forms; the registered sizes are in the tests of every model."""

import functools
import math
import re
from fnmatch import fnmatch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision
from torchvision.models import swin_transformer as reference

import flaxzoo
from flaxzoo.analysis.parity import compare, randomise
from flaxzoo.layers import LayerNorm, Norm, StochasticDepth, attention
from flaxzoo.models import swin
from flaxzoo.ops.attention import log_spaced_positions, relative_positions
from tests.models import checks

FIELDS = {'embed_dim': 12, 'depths': (2, 2), 'num_heads': (2, 3), 'num_classes': 10}
VERSIONS = {
    'v1': {},
    'v2': {'block': 'SwinTransformerBlockV2', 'downsample_layer': 'PatchMergingV2'},
}
# Maps of 12x16 patches, then 6x8 padded to 8x8; windows as high as the map; windows larger than it.
SIZES = [(51, 67), (16, 33), (14, 15)]


def pair(version, window=4, **fields):
    """Both networks, with all that is drawn, factors of cosines on both sides of their bound."""
    torch.manual_seed(0)
    ours, theirs = ({key: getattr(of, name) for key, name in VERSIONS[version].items()} for of in (swin, reference))
    fields = {**FIELDS, **fields}
    module = randomise(reference.SwinTransformer([4, 4], window_size=[window, window], **fields, **theirs))
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if name.endswith('logit_scale'):
                tensor.copy_(torch.linspace(1, 2 * math.log(100) - 1, tensor.numel()).view(tensor.shape))
            if name.endswith('bias_table') or 'cpb_mlp' in name:
                tensor.mul_(10)
    return swin.SwinTransformer(4, window_size=window, **fields, **ours), module


def images(size=(51, 67), count=3):
    return np.random.default_rng(0).normal(size=(count, *size, 3))


@pytest.mark.parametrize('version', VERSIONS)
def test_torch_loads_what_is_converted_and_saved(version, tmp_path):
    model, module = pair(version)
    variables = flaxzoo.from_torch(model, module.state_dict())
    flaxzoo.save(tmp_path / 'x.pth', variables, model=model)
    for arrays in (flaxzoo.to_torch(variables, model), flaxzoo.read_weights(tmp_path / 'x.pth')):
        state_dict = {key: torch.from_numpy(value) for key, value in arrays.items()}
        module.load_state_dict(state_dict, strict=True)
        assert {key: value.dtype for key, value in state_dict.items()} == {
            key: value.dtype for key, value in module.state_dict().items()
        }
        again = flaxzoo.from_torch(model, state_dict)
        jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('version', VERSIONS)
def test_parity(version, size):
    model, module = pair(version)
    if size == SIZES[0]:
        checks.parity(model, module, images(size))
    else:
        assert compare(model, module, images(size)).error <= 1e-10


@pytest.mark.parametrize('version', VERSIONS)
def test_parity_with_dropouts_built_in(version):
    model, module = pair(version, dropout=0.2, attention_dropout=0.2, mlp_ratio=2.0)
    assert compare(model, module, images(), train=True, labels=np.arange(3)).error <= 1e-10


@pytest.mark.parametrize('name', flaxzoo.list_models('swin_*'))
def test_the_variants_are_torchvisions(name):
    """Stochastic depth's rate of each block, its heads, windows and shifts."""
    model = flaxzoo.create(name)
    with torch.device('meta'):
        module = torchvision.models.get_model(name)
    theirs = [m for m in module.modules() if isinstance(m, reference.SwinTransformerBlock)]
    ours = [block(parent=None) for stage in model.blocks() for block in stage]
    assert [block.stochastic_depth_prob for block in ours] == [block.stochastic_depth.p for block in theirs]
    assert {block.stochastic_depth.mode for block in theirs} == {StochasticDepth().mode}
    for mine, block in zip(ours, theirs, strict=True):
        assert (mine.num_heads, list(mine.window_size), list(mine.shift_size)) == (
            block.attn.num_heads,
            block.attn.window_size,
            block.attn.shift_size,
        )
    assert model.image_size == torchvision.models.get_model_weights(name)['IMAGENET1K_V1'].meta['min_size'][0]


def test_stochastic_depth_is_right_in_expectation():
    """Images are dropped one by one, at the rates of their blocks; attention and the MLP are dropped apart."""
    model, module = pair('v1', depths=(2,), num_heads=(2,), stochastic_depth_prob=0.5)
    variables = flaxzoo.from_torch(model, module.state_dict())
    x = jnp.tile(jnp.asarray(images((16, 16), 1), jnp.float32), (2000, 1, 1, 1))
    names = ['features.1.0', 'features.1.1']
    rngs = {'dropout': jax.random.key(0)}
    maps = flaxzoo.features(model, variables, x, names, train=True, rngs=rngs)
    first, last = (np.asarray(maps[name]).reshape(len(x), -1) for name in names)
    np.testing.assert_allclose(first, first[:1].repeat(len(x), 0), atol=1e-5)  # the first block's rate is 0
    outcomes, counts = np.unique(np.abs(last - first).round(3) @ np.arange(last.shape[1]), return_counts=True)
    assert len(outcomes) == 4
    np.testing.assert_allclose(counts / len(x), 0.25, atol=4 * (0.25 * 0.75 / len(x)) ** 0.5)


@pytest.mark.parametrize('version', VERSIONS)
def test_features(version):
    names = ['features.0', 'features.1', 'features.1.0', 'features.2', 'features.3', 'flatten', 'head']
    checks.features(*pair(version), images(), names)


@pytest.mark.parametrize(('name', 'width'), [('swin_t', 96), ('swin_v2_b', 128)])
def test_feature_info(name, width):
    """Channels and strides are timm's."""
    info = flaxzoo.feature_info(name)
    assert [tuple(feature) for feature in info] == [
        (f'features.{2 * stage + 1}', width * 2**stage, 4 * 2**stage) for stage in range(4)
    ]


@pytest.mark.parametrize('version', VERSIONS)
def test_conversion_is_a_bijection(version):
    checks.round_trip(*pair(version))


@pytest.mark.parametrize('version', VERSIONS)
def test_policies(version):
    model, _ = pair(version, stochastic_depth_prob=0.3, dropout=0.1, attention_dropout=0.1)
    checks.policies(model, images((32, 36)))


@pytest.mark.parametrize('window', [(3, 5), (4, 4)])
def test_buffers_are_those_of_torch(window):
    """Equal to the last bit; another window's are refused by name."""
    theirs = reference.ShiftedWindowAttentionV2(8, list(window), [0, 0], 2)
    model = pair('v2')[0].clone(window_size=window)
    for name in model.ignored:
        buffer = getattr(theirs, name).numpy()
        assert model.check_buffer(f'features.1.0.attn.{name}', buffer) is None
        words = model.clone(window_size=7).check_buffer(f'features.1.0.attn.{name}', buffer)
        assert words == 'not that of windows of 7x7 patches'
    np.testing.assert_array_equal(theirs.relative_coords_table, log_spaced_positions(window))


def test_heads_that_do_not_divide_the_channels_are_refused():
    model = swin.SwinTransformer(4, 12, (1,), (5,), 4)
    with pytest.raises(ValueError, match=r'features\.1\.0\.attn: num_heads=5 must divide the 12 channels'):
        jax.eval_shape(model.init, jax.random.key(0), images())


@pytest.mark.parametrize('version', VERSIONS)
def test_initial_values_have_torchs_spread(version):
    torch.manual_seed(0)
    ours, theirs = ({key: getattr(of, name) for key, name in VERSIONS[version].items()} for of in (swin, reference))
    fields = {**FIELDS, 'embed_dim': 48}
    expected = reference.SwinTransformer([4, 4], window_size=[7, 7], **fields, **theirs).state_dict()
    model = swin.SwinTransformer(4, window_size=7, **fields, **ours)
    for key, value in flaxzoo.to_torch(flaxzoo.init(model, jax.random.key(0))).items():
        spread = float(expected[key].std())
        if spread == 0:
            np.testing.assert_array_equal(value, expected[key], err_msg=key)
        elif value.size > 500:
            assert value.std() == pytest.approx(spread, rel=0.1), key
            assert np.abs(value).max() == pytest.approx(float(expected[key].abs().max()), rel=0.4), key


@pytest.mark.parametrize(('version', 'kept'), [('v1', 'bias_table'), ('v2', 'cpb_mlp|logit_scale')])
def test_decay_passes_tables_and_factors_by(version, kept):
    model, module = pair(version)
    names = [name for name, _ in module.named_parameters()]
    patterns = model.no_weight_decay
    assert [n for n in names if any(fnmatch(n, p) for p in patterns)] == [n for n in names if re.search(kept, n)]


def across_then_down(arrays, axis):
    """Patches merged in the order of reading."""
    first, below, right, both = arrays
    return jnp.concatenate([first, right, below, both], axis)


class Numpy:
    """jax.numpy with another concatenate."""

    concatenate = staticmethod(across_then_down)

    def __getattr__(self, name):
        return getattr(jnp, name)


def without_mask(size, window, shift):
    return np.zeros((1, 1, 1, 1), np.float32)


def transposed(window):
    return relative_positions(window).reshape(math.prod(window), -1).T.ravel()


def linear_positions(window):
    table = log_spaced_positions(window)
    return np.sign(table) * (2 ** (3 * np.abs(table)) - 1) / 8


class BiasedKeys(attention.KeysWithoutBias):
    def add_bias(self, y, bias):
        return y + bias


# (version, module, name in the module, replacement)
MUTATIONS = {
    'patches merged across, then down': ('v1', swin, 'jnp', Numpy()),
    'shifted windows without a mask': ('v1', attention, 'shift_mask', without_mask),
    'the index transposed': ('v1', attention, 'relative_positions', transposed),
    'logits not scaled': ('v1', attention, 'attention', functools.partial(attention.attention, scale=1.0)),
    'V2 with a norm before': ('v2', swin.SwinTransformerBlockV2, 'norm_first', True),
    'V2 with a bias of the keys': ('v2', attention, 'KeysWithoutBias', BiasedKeys),
    'V2 with positions that are not logarithms': ('v2', attention, 'log_spaced_positions', linear_positions),
    'V2 with products for cosines': ('v2', attention, 'normalize', lambda x: x),
    'V2 without a bound of its factors': ('v2', attention, 'MAX_LOGIT_SCALE', math.inf),
}


@pytest.mark.parametrize('mutation', MUTATIONS)
def test_a_mistake_fails(mutation, monkeypatch):
    version, module, name, replacement = MUTATIONS[mutation]
    model, torchs = pair(version)
    monkeypatch.setattr(module, name, replacement)
    assert compare(model, torchs, images()).error > 1e-6


def test_windows_as_large_as_the_map_that_are_shifted_fail(monkeypatch):
    """The middle size has a first map of 4x8 patches: its windows shift across alone."""
    model, module = pair('v1')
    monkeypatch.setattr(attention, 'effective_shift', lambda shift, window, size: shift)
    assert compare(model, module, images(SIZES[1])).error > 1e-6


def test_another_epsilon_fails():
    model, module = pair('v1')
    assert compare(model.clone(norm_layer=Norm(LayerNorm, eps=1e-6)), module, images()).error > 1e-6
