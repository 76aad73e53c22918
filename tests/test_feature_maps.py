"""Feature maps by torch's names: equal to torch's, nothing computed after the last, in any kind of run."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
from torchvision.models.feature_extraction import create_feature_extractor

import flaxzoo
import reference
from flaxzoo.analysis.parity import randomise
from tests.compiling import jit
from tests.models.cases import images

pytestmark = pytest.mark.usefixtures('forget_compiled')

# Of torchvision's networks: names inside of blocks and Sequentials beside the stages.
TORCHVISION = {
    'alexnet': ('features.0', 'features.5', 'avgpool', 'classifier.1', 'classifier'),
    'vgg11_bn': ('features.0', 'features.1', 'features.3', 'features', 'classifier.4'),
    'squeezenet1_1': ('features.2', 'features.4.expand3x3', 'classifier.2'),
    # Not 'conv2.bn': torch's functional ReLU works on it in place.
    'googlenet': ('conv2.conv', 'maxpool2', 'inception3a.branch2.0', 'inception4a.branch4.0', 'inception4a.branch4'),
    'resnet18': ('conv1', 'bn1', 'maxpool', 'layer2.0.downsample.1', 'layer3.1.conv2', 'layer1.0', 'fc'),
    'resnext50_32x4d': ('layer1.2.bn3', 'layer4.0.downsample'),
    'inception_v3': ('maxpool1', 'Mixed_5b.branch_pool', 'Mixed_6b.branch7x7_2.conv'),
}
SLOW = {'inception_v3'}
# Of timm's: its features_only gives what our stages are.
TIMM = {
    'xception': 'legacy_xception',
    'seresnet50': 'seresnet50',
    'inception_v4': 'inception_v4',
    'inception_resnet_v2': 'inception_resnet_v2',
}


def in_place_nothing(module):
    """What a ReLU works on in place is no longer what its layer gave."""
    for child in module.modules():
        if hasattr(child, 'inplace'):
            child.inplace = False
    return module


def of_torch(module, names, x, train):
    """The maps of torch's extractor, channels last, and the module's state afterwards."""
    module = module.double().train(train)
    for child in module.modules():
        if isinstance(child, torch.nn.Dropout):
            child.eval()
    nodes = {name: name for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that auxiliary heads are there in training alone
        extractor = create_feature_extractor(module, train_return_nodes=nodes, eval_return_nodes=nodes).train(train)
    for child in extractor.modules():
        if isinstance(child, torch.nn.Dropout):
            child.eval()
    maps = extractor(torch.from_numpy(np.moveaxis(x, -1, 1).copy()))
    maps = {name: np.moveaxis(value.detach().numpy(), 1, -1) for name, value in maps.items()}
    return maps, {key: value.numpy() for key, value in extractor.state_dict().items()}


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape, name
        assert np.abs(np.asarray(ours[name]) - expected).max() <= 1e-10 * np.abs(expected).max(), name


def variables_of(name, module, **fields):
    model = flaxzoo.create(name, **fields)
    variables = flaxzoo.from_torch(model, module.state_dict())
    return model, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in TORCHVISION]
)
def test_they_are_torchvisions(name):
    module = in_place_nothing(randomise(reference.build(name)))
    names = [*flaxzoo.create(name).stages, *TORCHVISION[name]]
    theirs, _ = of_torch(module, names, images(name), train=False)
    with jax.enable_x64(True):
        model, variables = variables_of(name, module)
        ours = jit(lambda v, x: flaxzoo.features(model, v, x, names))(variables, images(name))
    assert_close(ours, theirs)


@pytest.mark.parametrize('name', ['resnet18', 'vgg11_bn', pytest.param('googlenet', marks=pytest.mark.slow)])
@pytest.mark.parametrize('remat', [False, True])
def test_training_mode_gives_torchs_maps_and_statistics(name, remat):
    module = in_place_nothing(randomise(reference.build(name)))
    names = flaxzoo.create(name).stages[1:3]
    before = {key: value.clone().numpy() for key, value in module.double().state_dict().items()}
    theirs, after = of_torch(module, names, images(name), train=True)
    with jax.enable_x64(True):
        model, variables = variables_of(name, module, remat=remat)
        variables = flaxzoo.from_torch(model, before)
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        ours, new = jit(lambda v, x: flaxzoo.features(model, v, x, names, train=True, mutable=['batch_stats']))(
            variables, images(name)
        )
        statistics = flaxzoo.to_torch(new)
    assert_close(ours, theirs)
    for key, value in statistics.items():
        expected = after.get(key, before[key])  # what comes after the last map has not moved
        np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-12, err_msg=key)


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=pytest.mark.slow) if 'res' in n or '4' in n else n for n in TIMM]
)
def test_the_stages_are_timms(name):
    module = in_place_nothing(randomise(timm.create_model(TIMM[name], pretrained=False))).double().eval()
    theirs = {}
    for info in module.feature_info:
        child = module.get_submodule(info['module'])
        child.register_forward_hook(lambda _, __, out, key=info['module']: theirs.update({key: out.detach().numpy()}))
    x = images(name)
    module(torch.from_numpy(np.moveaxis(x, -1, 1).copy()))
    with jax.enable_x64(True):
        model, variables = variables_of(name, module)
        ours = jit(lambda v, x: flaxzoo.features(model, v, x))(variables, x)
    expected = [np.moveaxis(theirs[info['module']], 1, -1) for info in module.feature_info]
    assert_close(ours, dict(zip(model.stages, expected, strict=True)))
    found = [(stage.channels, stage.stride) for stage in flaxzoo.feature_info(name)]
    assert found == [(info['num_chs'], info['reduction']) for info in module.feature_info]


@pytest.mark.parametrize('name', flaxzoo.list_models())
def test_every_network_states_its_stages(name):
    model = flaxzoo.create(name)
    info = flaxzoo.feature_info(model)
    assert tuple(feature.name for feature in info) == tuple(model.stages)
    strides = [feature.stride for feature in info]
    assert strides == sorted(strides)
    assert len(info) >= 3
    names = flaxzoo.feature_names(model)
    assert len(names) == len(set(names))


X = np.random.default_rng(0).normal(size=(2, 33, 47, 3)).astype(np.float32)
SMALL = {'layers': (1, 1, 1, 1), 'num_classes': 10}


@pytest.fixture(scope='module')
def small():
    model = flaxzoo.create('resnet18', **SMALL)
    return model, flaxzoo.init(model, jax.random.key(0), X)


def test_nothing_after_the_last_map_is_computed(small):
    """Eager too: it works without the variables of what comes after."""
    model, variables = small
    kept = ('conv1', 'bn1', 'layer1', 'layer2')
    part = {kind: {k: v for k, v in tree.items() if k.startswith(kept)} for kind, tree in variables.items()}
    maps = flaxzoo.features(model, part, X, ['layer2', 'relu'])
    assert list(maps) == ['layer2', 'relu']
    with pytest.raises(Exception, match='layer3'):
        flaxzoo.features(model, part, X, ['layer2', 'layer3'])


def test_the_last_map_may_be_inside_of_a_block(small):
    model, variables = small
    whole = flaxzoo.features(model, variables, X, ['layer2.0.conv1', 'layer2.0'])
    part = {
        kind: {k: v for k, v in tree.items() if not k.startswith(('layer3', 'fc'))} for kind, tree in variables.items()
    }
    part['params']['layer2.0'] = {k: v for k, v in part['params']['layer2.0'].items() if k != 'conv2'}
    inside = flaxzoo.features(model, part, X, ['layer2.0.conv1'])
    np.testing.assert_array_equal(inside['layer2.0.conv1'], whole['layer2.0.conv1'])


@pytest.mark.parametrize('name', ['layer2', 'layer2.0.bn1'])
def test_gradients_are_the_same_with_blocks_recomputed(small, name):
    model, variables = small

    def loss(params, model):
        maps, _ = flaxzoo.features(
            model, {**variables, 'params': params}, X, [name, 'layer1'], train=True, mutable=['batch_stats']
        )
        return sum(jnp.square(m).mean() for m in maps.values())

    plain = jax.jit(jax.grad(loss), static_argnums=1)(variables['params'], model)
    again = jax.jit(jax.grad(loss), static_argnums=1)(variables['params'], flaxzoo.with_policy(model, remat=True))
    for path, gradient in jax.tree.leaves_with_path(plain):
        np.testing.assert_allclose(gradient, _at(again, path), rtol=2e-4, atol=1e-5, err_msg=str(path))


def test_only_what_is_inside_of_a_wanted_block_is_stored(small):
    """A map at the end of a block leaves its recomputation on; one inside turns it off for that block alone."""
    model = flaxzoo.with_policy(small[0], remat=True)
    program = {
        name: str(jax.make_jaxpr(lambda v, name=name: flaxzoo.features(model, v, X, [name]))(small[1]))
        for name in ('layer2', 'layer2.0.bn1')
    }
    assert program['layer2'].count('remat') == 2
    assert program['layer2.0.bn1'].count('remat') == 1


class Detector(nn.Module):
    """A backbone and a head on two of its maps."""

    remat: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        network = flaxzoo.create('resnet18', **SMALL, remat=self.remat)
        maps = flaxzoo.FeatureExtractor(network, ('layer1', 'layer3'), name='backbone')(x, train)
        return nn.Conv(4, (1, 1), name='box')(maps['layer3']), maps['layer1']


@pytest.mark.parametrize('remat', [False, True])
def test_a_backbone_within_another_module(small, remat):
    model, variables = small
    detector = Detector(remat)
    own = detector.init(jax.random.key(1), X)
    assert own['params'].keys() == {'backbone', 'box'}
    assert not any(key.startswith(('layer4', 'fc')) for key in own['params']['backbone'])
    loaded = {
        'params': {**own['params'], 'backbone': variables['params']},
        'batch_stats': {'backbone': variables['batch_stats']},
    }
    maps = flaxzoo.features(model, variables, X, ['layer1', 'layer3'])
    boxes, finest = jax.jit(detector.apply)(loaded, X)
    np.testing.assert_allclose(finest, maps['layer1'], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        boxes, nn.Conv(4, (1, 1)).apply({'params': own['params']['box']}, maps['layer3']), rtol=1e-3, atol=1e-4
    )
    _, new = detector.apply(loaded, X, train=True, mutable=['batch_stats'])
    moved = new['batch_stats']['backbone']
    assert np.abs(moved['layer3.0']['bn1']['mean'] - variables['batch_stats']['layer3.0']['bn1']['mean']).max() > 0


def test_the_policy_reaches_a_backbone(small):
    model, variables = small
    frozen = flaxzoo.with_policy(model, freeze_batch_norm=True)
    maps = flaxzoo.features(frozen, variables, X, ['layer2'], train=True)
    np.testing.assert_array_equal(maps['layer2'], flaxzoo.features(model, variables, X, ['layer2'])['layer2'])
    shared = flaxzoo.with_policy(model, axis_name='batch')

    def run(x):
        return flaxzoo.features(shared, variables, x, ['layer1'], train=True, mutable=['batch_stats'])[0]['layer1']

    both = jax.pmap(run, axis_name='batch', devices=jax.devices()[:2])(X[:, None])
    whole, _ = flaxzoo.features(model, variables, X, ['layer1'], train=True, mutable=['batch_stats'])
    np.testing.assert_allclose(both[:, 0], whole['layer1'], rtol=1e-4, atol=1e-5)


def test_auxiliary_heads_are_computed_in_training_alone():
    model = flaxzoo.create('googlenet', num_classes=10)
    x = jnp.zeros((2, 64, 64, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def run(train):
        options = {'mutable': ['batch_stats'], 'rngs': {'dropout': jax.random.key(0)}} if train else {}
        return jax.eval_shape(lambda v: flaxzoo.features(model, v, x, ['aux1'], train=train, **options), variables)

    assert run(True)[0]['aux1'].shape == (2, 10)
    with pytest.raises(ValueError, match='aux1: computed in training alone'):
        run(False)


def test_wrong_names(small):
    model, variables = small
    with pytest.raises(ValueError, match=r"resnet18 has no feature map 'layer_2', did you mean layer2"):
        flaxzoo.features(model, variables, X, ['layer_2'])
    with pytest.raises(TypeError, match=r"not one: \('layer2',\)"):
        flaxzoo.features(model, variables, X, 'layer2')
    with pytest.raises(TypeError, match=r'a network of flaxzoo\.create, got Dense'):
        flaxzoo.features(nn.Dense(2), variables, X, ['layer2'])


def _at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


def test_no_network():
    for call in (flaxzoo.feature_info, flaxzoo.feature_names, flaxzoo.FeatureExtractor):
        with pytest.raises(TypeError, match=r'expected a network of flaxzoo\.create, got int'):
            call(3)
