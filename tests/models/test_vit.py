"""ViT against torchvision's, in a small form; the registered sizes are in the tests of every model."""

import copy
import dataclasses
import functools
import hashlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision
from torchvision.models import VisionTransformer as Reference
from torchvision.models.vision_transformer import interpolate_embeddings

import flaxzoo
from flaxzoo.analysis.parity import compare, randomise
from flaxzoo.layers import LayerNorm, Norm, attention
from flaxzoo.models import vit
from flaxzoo.weights import catalog
from flaxzoo.weights.adapt import Architecture, adapt
from tests.models import checks
from tests.weights.server import Server

FIELDS = {
    'image_size': 48,
    'patch_size': 16,
    'num_layers': 2,
    'num_heads': 3,
    'hidden_dim': 48,
    'mlp_dim': 64,
    'num_classes': 10,
}
DROPS = {'dropout': 0.2, 'attention_dropout': 0.2}
BLOCK = 'encoder.layers.encoder_layer_0'


def pair(**fields):
    torch.manual_seed(0)
    return vit.VisionTransformer(**FIELDS, **fields), randomise(Reference(**FIELDS, **fields))


def images(size=48, count=3):
    return np.random.default_rng(0).normal(size=(count, size, size, 3))


@pytest.mark.parametrize(
    'fields', [{}, {'representation_size': 20}, {'dropout': 0.3}, {'attention_dropout': 0.3}], ids=str
)
def test_parity(fields):
    checks.parity(*pair(**fields), images())


@pytest.mark.parametrize('name', flaxzoo.list_models('vit_*'))
def test_the_variants_are_torchvisions(name):
    model = flaxzoo.create(name)
    with torch.device('meta'):
        module = torchvision.models.get_model(name)
    assert model.num_layers == len(module.encoder.layers)
    assert model.num_heads == module.encoder.layers[0].self_attention.num_heads
    assert (model.patch_size, model.image_size) == (module.patch_size, module.image_size)


def test_features():
    # What torchvision calls a block's 'ln_1' is the output of its ln_2: it numbers the calls of 'ln'.
    names = ['conv_proj', BLOCK, f'{BLOCK}.dropout', f'{BLOCK}.mlp', 'encoder.layers', 'encoder', 'heads.head']
    checks.features(*pair(), images(), names)


def test_feature_info():
    """One map a block, as in timm: tokens, a patch apart."""
    info = flaxzoo.feature_info('vit_b_16')
    assert [feature.name for feature in info] == [f'encoder.layers.encoder_layer_{i}' for i in range(12)]
    assert {(feature.channels, feature.stride) for feature in info} == {(768, 16)}
    x = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    extractor = flaxzoo.FeatureExtractor(flaxzoo.create('vit_b_16'), [BLOCK])
    assert jax.eval_shape(extractor.init_with_output, jax.random.key(0), x)[0][BLOCK].shape == (2, 197, 768)


def test_conversion_is_a_bijection():
    checks.round_trip(*pair())


@pytest.mark.parametrize('fields', [{}, DROPS], ids=str)
def test_policies(fields):
    checks.policies(vit.VisionTransformer(**FIELDS, **fields), images())


def test_dropout_of_attention_weights():
    """Drops whole weights, keeps their mean, and only in training."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 8)), jnp.float32)
    layer = attention.MultiheadAttention(2, 0.5)
    variables = layer.init(jax.random.key(0), x)
    plain = attention.MultiheadAttention(2).apply(variables, x)
    np.testing.assert_array_equal(layer.apply(variables, x), plain)
    runs = jax.vmap(lambda key: layer.apply(variables, x, True, rngs={'dropout': key}))(
        jax.random.split(jax.random.key(1), 20_000)
    )
    assert runs.std(0).min() > 0.01
    np.testing.assert_allclose(runs.mean(0), plain, atol=0.02)


@pytest.mark.parametrize('shape', [(1, 64, 48, 3), (1, 48, 64, 3), (1, 64, 64, 3)])
def test_images_of_another_size_are_refused(shape):
    model = flaxzoo.create('vit_b_16', image_size=48)
    with pytest.raises(ValueError, match=r'vit_b_16 takes images of 48x48 pixels, got x of shape .* multiple of 16'):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))


def test_a_size_that_patches_do_not_tile_is_refused():
    with pytest.raises(ValueError, match='image_size=50 must be a multiple of patch_size=16'):
        flaxzoo.create('vit_b_16', image_size=50)


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match='num_heads=5 must divide the 48 channels'):
        jax.eval_shape(vit.VisionTransformer(**{**FIELDS, 'num_heads': 5}).init, jax.random.key(0), images())


@pytest.mark.parametrize('size', [16, 32, 80, 224])
def test_the_position_table_is_resized_as_torchvision_does(size):
    table = torch.randn(1, 10, 48, dtype=torch.float64)
    expected = interpolate_embeddings(size, 16, {'encoder.pos_embedding': table})['encoder.pos_embedding']
    rows = (size // 16) ** 2 + 1
    resized = vit.VisionTransformer(**FIELDS).resized('encoder.pos_embedding', table.numpy(), (1, rows, 48))
    np.testing.assert_allclose(resized, expected.numpy(), atol=1e-6)


def test_weights_for_another_image_size():
    """The table alone is adapted, and the change is named; one of another network or grid is refused."""
    fields = {key: value for key, value in FIELDS.items() if key != 'patch_size'}
    _, module = pair()
    weights = {key: value.numpy() for key, value in module.state_dict().items()}
    fields['num_layers'] = 1
    weights = {key: value for key, value in weights.items() if 'encoder_layer_1' not in key}
    larger = Architecture('vit_b_16', {**fields, 'image_size': 64})
    fitted, changes = adapt(larger, weights)
    assert changes.adapted == {'encoder.pos_embedding': 'resized from (1, 10, 48) to (1, 17, 48)'}
    expected = interpolate_embeddings(64, 16, copy.deepcopy(module.state_dict()))['encoder.pos_embedding']
    np.testing.assert_allclose(fitted['encoder.pos_embedding'], expected, atol=1e-6)
    broken = {**weights, 'encoder.pos_embedding': np.zeros((1, 12, 48), np.float32)}
    with pytest.raises(flaxzoo.ConversionError, match=r'! encoder.pos_embedding: shape \(1, 12, 48\)'):
        adapt(larger, broken)


def test_a_release_is_loaded_for_its_own_image_size(monkeypatch, tmp_path):
    """As torchvision builds the network for its weights; another size is resized to, and said."""
    for name in ('FLAXZOO_OFFLINE', 'FLAXZOO_WEIGHTS_MIRROR', 'TORCH_HOME', 'http_proxy', 'HTTP_PROXY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('FLAXZOO_CACHE', str(tmp_path))
    buffer = io.BytesIO()
    torch.save(Reference(**{**FIELDS, 'image_size': 64}).state_dict(), buffer)
    content = buffer.getvalue()
    fields = {key: FIELDS[key] for key in ('num_layers', 'num_heads', 'hidden_dim', 'mlp_dim')}
    with Server({'/r.pth': content}) as server:
        digest = hashlib.sha256(content).hexdigest()[:8]
        row = dataclasses.replace(
            catalog.find('vit_b_16'), url=server.url('/r.pth'), sha256=digest, crop=64, classes=10
        )
        monkeypatch.setattr(catalog, 'releases', lambda: (row,))
        model, variables, report = flaxzoo.load_with_report('vit_b_16', **fields)
        assert model.image_size == 64
        assert not report.changes.adapted
        assert model.apply(variables, jnp.zeros((1, 64, 64, 3))).shape == (1, 10)
        model, _, report = flaxzoo.load_with_report('vit_b_16', image_size=32, **fields)
        assert model.image_size == 32
        assert report.changes.adapted == {'encoder.pos_embedding': 'resized from (1, 17, 48) to (1, 5, 48)'}


def test_initial_values_have_torchs_spread():
    """A head of zeros too; attention's projections are Glorot's over all three, as torch draws them."""
    torch.manual_seed(0)
    fields = {**FIELDS, 'hidden_dim': 192, 'mlp_dim': 256, 'representation_size': 100}
    theirs = Reference(**fields).state_dict()
    ours = flaxzoo.to_torch(flaxzoo.init(vit.VisionTransformer(**fields), jax.random.key(0)))
    for key, expected in theirs.items():
        spread = float(expected.std())
        if spread == 0:
            np.testing.assert_array_equal(ours[key], expected, err_msg=key)
        elif expected.numel() > 500:
            assert ours[key].std() == pytest.approx(spread, rel=0.1), key
            assert np.abs(ours[key]).max() == pytest.approx(float(expected.abs().max()), rel=0.4), key
        else:
            assert ours[key].std() == pytest.approx(spread, rel=0.4), key


def tanh_gelu(x, approximate):
    return jax.nn.gelu(x, approximate=True)


def swapped(module, qkv, num_heads):
    """Heads outside of the queries, keys and values."""
    width = qkv.shape[-1] // 3
    qkv = qkv.reshape(*qkv.shape[:-1], num_heads, 3, width // num_heads)
    return tuple(jnp.moveaxis(qkv, -2, 0).swapaxes(-2, -3))


MUTATIONS = {
    'heads outside of queries, keys and values': (attention, 'split_heads', swapped),
    'logits not scaled': (attention, 'attention', functools.partial(attention.attention, scale=1.0)),
    'GELU by tanh': (flaxzoo.layers.blocks.nn, 'gelu', tanh_gelu),
}


@pytest.mark.parametrize('mutation', MUTATIONS)
def test_a_mistake_fails(mutation, monkeypatch):
    model, module = pair()
    assert compare(model, module, images()).error <= 1e-10
    monkeypatch.setattr(*MUTATIONS[mutation])
    assert compare(model, module, images()).error > 1e-6


def test_another_epsilon_fails():
    model, module = pair()
    assert compare(model.clone(norm_layer=Norm(LayerNorm, eps=1e-5)), module, images()).error > 1e-6


def test_images_that_are_explicitly_sharded():
    """The class token then lies over the devices as the patches do."""
    fields = {'num_layers': 1, 'image_size': 32, 'hidden_dim': 8, 'mlp_dim': 8, 'num_heads': 2, 'num_classes': 0}
    model = flaxzoo.create('vit_b_16', **fields)
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    variables = flaxzoo.init(model, jax.random.key(0))
    expected = model.apply(variables, x)
    mesh = jax.make_mesh((2,), ('batch',), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P('batch')))
        logits = jax.jit(model.apply)(variables, sharded)
        jax.jit(jax.grad(lambda v, x: model.apply(v, x).sum()))(variables, sharded)
    np.testing.assert_allclose(np.asarray(logits), expected, rtol=1e-4, atol=1e-5)
