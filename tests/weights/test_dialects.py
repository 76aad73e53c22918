"""Files of other packages: their names are understood, the network they give is theirs, and nothing is guessed."""

import jax
import numpy as np
import pytest
import timm
import torch

import flaxzoo
from flaxzoo.analysis.parity import randomise
from flaxzoo.dialect import Dialect
from flaxzoo.registry import ALIASES, MODELS
from flaxzoo.weights import dialects
from flaxzoo.weights.adapt import Architecture, adapt, fitness
from flaxzoo.weights.index import index
from tests.models import cases

TIMM = {name: name for name in flaxzoo.list_models() if timm.is_model(name)} | {b: a for a, b in ALIASES.items()}
# timm has networks of these names with another epsilon.
OTHERS = {name: TIMM.pop(name) for name in ('efficientnet_b5', 'efficientnet_b6', 'efficientnet_b7') if name in TIMM}
FAST = ('resnet18', 'vgg11', 'efficientnet_b0', 'swin_t')  # names as ours; names of timm's own
RENAMED = ('vgg', 'efficientnet', 'vit', 'swin')


def marked(shapes: dict) -> dict[str, np.ndarray]:
    """Arrays that take no memory, each with a value of its own."""
    return {key: np.broadcast_to(np.float32(i), shape) for i, (key, shape) in enumerate(shapes.items(), start=1)}


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items() if not key.endswith('_tracked')}


@pytest.mark.parametrize(
    'name', [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in sorted(TIMM)]
)
def test_timms_state_dict_gives_timms_network(name):
    module = randomise(timm.create_model(TIMM[name], pretrained=False, num_classes=1000)).double().eval()
    fields = {'aux_logits': False} if name == 'inception_v3' else {}
    given = {key: value.numpy() for key, value in module.state_dict().items()}
    assert fitness(Architecture(name, fields), given) == 1
    fitted, changes = adapt(Architecture(name, fields), given)
    assert (changes.new, changes.adapted, changes.dropped) == ({}, {}, {})
    # timm's attention networks take images of one size alone.
    x = cases.images('vit_b_16' if name.startswith('swin') else name)[:1]
    with jax.enable_x64(True), torch.no_grad():
        model = flaxzoo.create(name, **fields)
        ours = np.asarray(jax.jit(model.apply)(flaxzoo.from_torch(model, fitted), x))
        theirs = module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10 * np.abs(theirs).max())


@pytest.mark.parametrize('name', sorted(TIMM))
def test_every_network_that_timm_has_too_reads_its_names(name):
    with torch.device('meta'):
        shapes = shapes_of(timm.create_model(TIMM[name], pretrained=False, num_classes=1000))
    _, changes = adapt(Architecture(name, {'aux_logits': False} if name == 'inception_v3' else {}), marked(shapes))
    assert bool(changes.renamed) == name.startswith(RENAMED)
    assert (changes.new, changes.adapted, changes.dropped) == ({}, {}, {})


@pytest.mark.parametrize('name', OTHERS)
def test_networks_that_are_others_in_timm_are_refused(name):
    with torch.device('meta'):
        module = timm.create_model(OTHERS[name], pretrained=False)
    assert module.bn1.eps != flaxzoo.create(name).norm_layer.eps
    with pytest.raises(flaxzoo.ConversionError):
        adapt(Architecture(name, {}), marked(shapes_of(module)))


def test_timms_inception_with_its_auxiliary_head():
    with torch.device('meta'):
        shapes = shapes_of(timm.create_model('inception_v3', pretrained=False, aux_logits=True))
    fitted, _ = adapt(Architecture('inception_v3', {}), marked(shapes))
    assert fitted.keys() == shapes.keys()


# pretrainedmodels moves torchvision's members: {its name: torchvision's}.
PRETRAINEDMODELS = {
    'alexnet': {
        '_features': 'features',
        'linear0': 'classifier.1',
        'linear1': 'classifier.4',
        'last_linear': 'classifier.6',
    },
    'vgg11_bn': {
        '_features': 'features',
        'linear0': 'classifier.0',
        'linear1': 'classifier.3',
        'last_linear': 'classifier.6',
    },
    'squeezenet1_1': {'last_conv': 'classifier.1'},
    'resnet50': {'last_linear': 'fc'},
    'inception_v3': {'last_linear': 'fc'},
    'xception': {'last_linear': 'fc'},
    'inception_resnet_v2': {'last_linear': 'classif'},
}


@pytest.mark.parametrize('name', PRETRAINEDMODELS)
def test_pretrainedmodels(name):
    def theirs(key: str) -> str:
        for new, old in PRETRAINEDMODELS[name].items():
            if key.startswith(f'{old}.'):
                return new + key.removeprefix(old)
        return key

    expected = marked(index()[name])
    given = {theirs(key): value for key, value in expected.items()}
    fitted, changes = adapt(Architecture(name, {}), given)
    assert {key: value.flat[0] for key, value in fitted.items()} == {k: v.flat[0] for k, v in expected.items()}
    assert 'the names of pretrainedmodels' in str(changes)


def test_resnext_pytorch():
    """Names as its modules are called: a Sequential of named blocks for each stage."""
    members = {
        'conv1': 'conv_reduce',
        'bn1': 'bn_reduce',
        'conv2': 'conv_conv',
        'bn2': 'bn',
        'conv3': 'conv_expand',
        'bn3': 'bn_expand',
        'downsample.0': 'shortcut.shortcut_conv',
        'downsample.1': 'shortcut.shortcut_bn',
    }

    def theirs(key: str) -> str:
        parts = key.split('.')
        if parts[0] in ('conv1', 'bn1', 'fc'):
            return '.'.join([{'conv1': 'conv_1_3x3', 'bn1': 'bn_1', 'fc': 'classifier'}[parts[0]], *parts[1:]])
        stage, block, *member, leaf = parts
        stage = stage.replace('layer', 'stage_')
        return f'{stage}.{stage}_bottleneck_{block}.{members[".".join(member)]}.{leaf}'

    expected = marked(index()['resnext29_8x64d'])
    given = {f'module.{theirs(key)}': value for key, value in expected.items()}
    assert 'module.stage_2.stage_2_bottleneck_0.shortcut.shortcut_bn.running_var' in given
    fitted, _ = adapt(Architecture('resnext29_8x64d', {}), given)
    assert {key: value.flat[0] for key, value in fitted.items()} == {k: v.flat[0] for k, v in expected.items()}
    hundred = given | {'module.classifier.weight': np.ones((100, 1024)), 'module.classifier.bias': np.ones(100)}
    with pytest.raises(flaxzoo.ConversionError, match=r'for 100 classes. Keep its head by num_classes=100'):
        adapt(Architecture('resnext29_8x64d', {}), hundred)


@pytest.mark.parametrize(
    ('name', 'older'),
    [
        ('densenet121', {'norm1': 'norm.1', 'norm2': 'norm.2', 'conv1': 'conv.1', 'conv2': 'conv.2'}),
        ('vit_b_16', {'mlp.0': 'mlp.linear_1', 'mlp.3': 'mlp.linear_2'}),
    ],
)
def test_older_names_of_torchvision(name, older):
    """torchvision renames these when it loads its own files."""
    expected = marked(index()[name])

    def theirs(key: str) -> str:
        for new, old in older.items():
            key = key.replace(new, old) if 'layer' in key else key
        return key

    given = {theirs(key): value for key, value in expected.items()}
    assert given.keys() != expected.keys()
    fitted, changes = adapt(Architecture(name, {}), given)
    assert {key: value.flat[0] for key, value in fitted.items()} == {k: v.flat[0] for k, v in expected.items()}
    assert 'the names of torchvision before 0.' in str(changes)


@pytest.mark.parametrize('name', flaxzoo.list_models())
def test_the_networks_own_names_are_in_no_dialect(name):
    assert not [dialect.name for dialect in dialects.dialects(name) if dialect.applies(index()[name])]


def test_two_dialects_at_once_are_refused():
    given = marked(index()['vgg11']) | marked({'pre_logits.fc1.weight': (1,), '_features.0.weight': (1,)})
    with pytest.raises(flaxzoo.ConversionError, match='names of timm and of pretrainedmodels'):
        adapt(Architecture('vgg11', {}), given)


def test_two_tensors_with_one_name_are_refused():
    given = marked(index()['resnet18']) | marked({'last_linear.weight': (1000, 512)})
    with pytest.raises(flaxzoo.ConversionError, match=r"(?s)'fc.weight' and 'last_linear.weight'.*both 'fc.weight'"):
        adapt(Architecture('resnet18', {}), given)


def test_only_what_the_dialect_names_is_reshaped():
    """A transposed or flattened kernel is still an error."""
    given = marked(index()['vgg11'])
    given['classifier.3.weight'] = given['classifier.3.weight'].reshape(4096, 4096, 1, 1)
    with pytest.raises(flaxzoo.ConversionError, match=r'! classifier.3.weight: shape \(4096, 4096, 1, 1\)'):
        adapt(Architecture('vgg11', {}), given)
    timms = Dialect('timm', 'x', reshaped=(r'classifier\.3\.weight',))
    reading = dialects.Reading('', timms)
    assert reading.fits('classifier.3.weight', (4, 4, 1, 1), (4, 4))
    assert not reading.fits('classifier.3.weight', (4, 5), (4, 4))
    assert not reading.fits('classifier.6.weight', (4, 4, 1, 1), (4, 4))


def test_a_dialect_of_a_layout_that_only_functions_can_say():
    dialect = Dialect(
        'x', 'x', rename=((r'layers\.(\d+)\.w', lambda match: f'features.{2 * int(match[1]) + 1}.weight'),)
    )
    assert dialect.translate('layers.3.w') == 'features.7.weight'
    assert dialect.translate('fc.w') == 'fc.w'


def test_every_alias_is_of_a_registered_network():
    assert set(ALIASES.values()) <= MODELS.keys()
