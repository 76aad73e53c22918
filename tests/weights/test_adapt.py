"""`adapt`: the network is found wherever it is in a file; heads, channels and parts change only when asked for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision

import flaxzoo
from flaxzoo.layers import Network
from flaxzoo.registry import MODELS
from flaxzoo.weights.adapt import Architecture, adapt, fitness
from flaxzoo.weights.choose import classes_of
from flaxzoo.weights.diagnose import resembling
from flaxzoo.weights.index import index

RESNET = Architecture('resnet18', {})
FIVE = Architecture('resnet18', {'num_classes': 5})
NONE = Architecture('resnet18', {'num_classes': 0})


def marked(name: str = 'resnet18', **more: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The network's tensors, each with a value of its own, and more."""
    shapes = index()[name] | more
    return {key: np.broadcast_to(np.float32(i), shape) for i, (key, shape) in enumerate(shapes.items(), start=1)}


def headless(name: str = 'resnet18', **more: tuple[int, ...]) -> dict[str, np.ndarray]:
    kept = {key: value for key, value in marked(name).items() if not key.startswith('fc.')}
    return kept | {key: np.broadcast_to(np.float32(-1), shape) for key, shape in more.items()}


def same(one: dict, other: dict) -> bool:
    return {key: value.flat[0] for key, value in one.items()} == {key: value.flat[0] for key, value in other.items()}


def under(prefix: str, weights: dict) -> dict:
    return {prefix + key: value for key, value in weights.items()}


@pytest.mark.parametrize('prefix', ['module.', 'backbone.', 'model._orig_mod.', '0.', 'a.b.c.d.', 'encoder.body.'])
def test_any_prefix(prefix):
    fitted, changes = adapt(RESNET, under(prefix, marked()))
    assert same(fitted, marked())
    assert (changes.new, changes.adapted, changes.dropped) == ({}, {}, {})
    assert fitness(RESNET, under(prefix, marked())) == 1


def test_what_is_outside_the_prefix_is_said_to_be_dropped():
    other = {'n_averaged': np.ones((), np.int64), 'projector.0.weight': np.ones((3, 3), np.float32)}
    fitted, changes = adapt(RESNET, under('backbone.', marked()) | other)
    assert same(fitted, marked())
    assert changes.dropped == dict.fromkeys(sorted(other), "outside the network, whose names begin with 'backbone.'")
    assert "the file has names under 'backbone.'" in str(changes)


@pytest.mark.parametrize('wrapper', ['module', '_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module'])
def test_wrappers_in_the_middle(wrapper):
    given = {key.replace('layer1.0.', f'layer1.{wrapper}.0.{wrapper}.'): value for key, value in marked().items()}
    assert given.keys() != marked().keys()
    assert same(adapt(RESNET, given)[0], marked())


def test_several_networks_that_fit_are_not_chosen_from():
    given = under('encoder_q.', marked()) | under('encoder_k.', {key: value + 1 for key, value in marked().items()})
    with pytest.raises(flaxzoo.ConversionError, match=r"several networks that fit, under 'encoder_q' and 'encoder_k'"):
        adapt(RESNET, given)
    fitted, _ = adapt(RESNET, given, prefix='encoder_q.')
    assert same(fitted, marked())
    with pytest.raises(flaxzoo.ConversionError, match=r"several networks that fit, under '' and 'ema'"):
        adapt(RESNET, marked() | under('ema.', marked()))


def test_a_larger_network_in_the_file_does_not_count():
    """A teacher under another prefix, whose trunk has all of the student's tensors and more."""
    fitted, changes = adapt(RESNET, under('student.', marked()) | under('teacher.', marked('resnet34')))
    assert same(fitted, marked())
    assert len(changes.dropped) == len(marked('resnet34'))


@pytest.mark.parametrize('cut', [None, -1, -2])
@pytest.mark.parametrize('prefix', ['', 'features.'])
def test_children_numbered_by_a_sequential(cut, prefix):
    with torch.device('meta'):
        module = torchvision.models.resnet18()
    names = {id(value): key for key, value in module.named_parameters()}
    values = marked()
    sequence = torch.nn.Sequential(*list(module.children())[:cut])
    given = {prefix + key: values[names[id(value)]] for key, value in sequence.named_parameters()}
    buffers = {key: value for key, value in sequence.named_buffers() if 'running' in key}
    paths = dict(zip((str(i) for i in range(10)), dict(module.named_children()), strict=True))
    for key in buffers:
        child, _, rest = key.partition('.')
        given[prefix + key] = values[f'{paths[child]}.{rest}']
    fitted, changes = adapt(NONE if cut else RESNET, given)
    assert same(fitted, headless() if cut else marked())
    assert 'numbers of an nn.Sequential' in changes.reading
    fitted, changes = adapt(FIVE, given, replace_head=True)
    assert changes.new.keys() == {'fc.weight', 'fc.bias'}
    grey = Architecture('resnet18', {'num_classes': 5}, in_channels=1)
    assert adapt(grey, given, replace_head=True)[1].adapted.keys() == {'conv1.weight'}


def test_alike_children_of_a_sequential_need_numbers_of_their_own():
    """Xception's middle blocks are told apart by theirs; Inception's Mixed_6c and Mixed_6d are not."""
    children = list(dict.fromkeys(key.partition('.')[0] for key in marked('xception')))
    children.sort(key=lambda child: ([int(d) for d in child if d.isdigit()], child))
    numbers = {child: str(2 * i) for i, child in enumerate(children)}
    blocks = sorted((child for child in children if child.startswith('block')), key=lambda block: int(block[5:]))
    numbers |= {block: str(95 + i) for i, block in enumerate(blocks)}
    given = {numbers[key.partition('.')[0]] + '.' + key.partition('.')[2]: v for key, v in marked('xception').items()}
    assert same(adapt(Architecture('xception', {}), given)[0], marked('xception'))
    children = list(dict.fromkeys(key.partition('.')[0] for key in marked('inception_v3')))
    given = {
        f'{children.index(key.partition(".")[0])}.{key.partition(".")[2]}': value
        for key, value in marked('inception_v3').items()
    }
    with pytest.raises(flaxzoo.ConversionError, match='do not fit inception_v3'):
        adapt(Architecture('inception_v3', {}), given)


HEADS = {
    'none': {},
    'a dropout before it': {'fc.1.weight': (7, 512), 'fc.1.bias': (7,)},
    'an MLP (MoCo)': {'fc.0.weight': (512, 512), 'fc.0.bias': (512,), 'fc.2.weight': (128, 512), 'fc.2.bias': (128,)},
    'another name': {'head.weight': (7, 512), 'head.bias': (7,)},
    'without a bias': {'fc.weight': (5, 512)},
    'another width': {'fc.weight': (5, 2048), 'fc.bias': (5,)},
}


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('prefix', ['', 'module.net.'])
def test_another_head(head, prefix):
    """A new one where the number of classes is given, features without; else the error says so."""
    given = under(prefix, headless(**HEADS[head]))
    fitted, changes = adapt(FIVE, given, replace_head=True)
    assert changes.new.keys() == {'fc.weight', 'fc.bias'}
    assert 'initialised for 5 classes' in changes.new['fc.weight']
    assert same(fitted, headless())
    own = HEADS[head].keys() - {'fc.weight', 'fc.bias'}
    assert changes.dropped == dict.fromkeys(sorted(own), "a head of the file's own")
    fitted, changes = adapt(NONE, given, replace_head=True)
    assert same(fitted, headless())
    assert changes.dropped.keys() == HEADS[head].keys()
    with pytest.raises(flaxzoo.ConversionError) as caught:
        adapt(RESNET, given)
    hint = 'num_classes=5' if head == 'another width' else 'It has no head'
    assert hint in str(caught.value)
    assert fitness(RESNET, given) == 1


def test_a_head_of_this_name_is_kept_with_its_numbers():
    assert not adapt(RESNET, marked(), replace_head=True)[1].new


def test_the_error_of_a_file_without_a_head_names_both_ways_on():
    with pytest.raises(
        flaxzoo.ConversionError,
        match=r'no head \(fc\.bias, fc\.weight, but head\.weight\): take its '
        r'features by num_classes=0, or a new head by num_classes=N',
    ):
        adapt(RESNET, headless(**{'head.weight': (7, 512)}))


def test_a_head_is_not_an_excuse_for_another_network():
    """Squeeze-and-excitation stands in the trunk: the file is no ResNet-50's."""
    given = {key: value for key, value in marked('seresnet50').items() if not key.startswith('fc.')}
    with pytest.raises(flaxzoo.ConversionError, match=r'resemble seresnet50 most'):
        adapt(Architecture('resnet50', {'num_classes': 5}), given, replace_head=True)
    with pytest.raises(flaxzoo.ConversionError, match=r'resemble seresnet50 most'):
        adapt(Architecture('resnet50', {}), given)
    lacking = {key: value for key, value in headless().items() if key != 'layer4.1.bn2.weight'}
    with pytest.raises(flaxzoo.ConversionError, match=r'- layer4\.1\.bn2\.weight'):
        adapt(FIVE, lacking, replace_head=True)


def test_the_error_is_in_the_networks_names():
    with pytest.raises(flaxzoo.ConversionError, match=r'(?s)resemble resnet34 most: 100%.*\+ layer1\.2\.bn1\.bias'):
        adapt(RESNET, under('net.', marked('resnet34')))


def test_what_is_spare_beside_a_whole_network_is_an_error():
    with pytest.raises(flaxzoo.ConversionError, match=r'\+ spare'):
        adapt(RESNET, marked(spare=(1,)), replace_head=True)


@pytest.mark.parametrize('prefix', ['', 'net.'])
def test_channels(prefix):
    def of(channels: int) -> dict[str, np.ndarray]:
        return under(prefix, marked(**{'conv1.weight': (64, channels, 7, 7)}))

    with pytest.raises(flaxzoo.ConversionError, match=r'for images of 13 channels: in_channels=13\.\n'):
        adapt(RESNET, of(13))
    with pytest.raises(flaxzoo.ConversionError, match=r'of 13 channels: in_channels=13, as only 3 are converted'):
        adapt(Architecture('resnet18', {}, in_channels=5), of(13))
    thirteen = Architecture('resnet18', {}, in_channels=13)
    assert not adapt(thirteen, of(13))[1].adapted
    assert adapt(thirteen, of(3))[1].adapted == {'conv1.weight': 'from 3 to 13 input channels'}
    both = of(13) | under(prefix, {'fc.weight': np.ones((7, 512)), 'fc.bias': np.ones(7)})
    with pytest.raises(flaxzoo.ConversionError, match=r'in_channels=13\. The file is for 7 classes.*num_classes=7'):
        adapt(RESNET, both)
    four = Architecture('resnet18', {'num_classes': 5}, in_channels=4)
    changes = adapt(four, of(3), replace_head=True)[1]
    assert (changes.adapted.keys(), changes.new.keys()) == ({'conv1.weight'}, {'fc.weight', 'fc.bias'})


def test_a_head_is_new_whole_also_after_its_background_row_was_cut():
    given = headless(**{'fc.weight': (6, 512), 'fc.bias': (7,)})
    _, changes = adapt(FIVE, given, replace_head=True, label_offset=1)
    assert (changes.new.keys(), changes.adapted) == ({'fc.weight', 'fc.bias'}, {})
    _, changes = adapt(FIVE, given | headless(**{'fc.bias': (6,)}), replace_head=True, label_offset=1)
    assert (changes.new, changes.adapted.keys()) == ({}, {'fc.weight', 'fc.bias'})


def test_a_missing_auxiliary_head():
    given = {key: value for key, value in marked('inception_v3').items() if not key.startswith('AuxLogits')}
    with pytest.raises(flaxzoo.ConversionError, match=r'It has no AuxLogits: load it with aux_logits=False'):
        adapt(Architecture('inception_v3', {}), given)
    with pytest.raises(flaxzoo.ConversionError, match=r'aux_logits=False'):
        adapt(Architecture('inception_v3', {'num_classes': 5}), given, replace_head=True)
    fitted, _ = adapt(Architecture('inception_v3', {'aux_logits': False}), given)
    assert same(fitted, given)


def test_a_part_is_switched_off_only_if_the_rest_is_there():
    """Without batch norms the names of VGG's convolutions are others."""
    given = marked('vgg11_bn')
    del given['features.1.running_mean']
    with pytest.raises(flaxzoo.ConversionError, match='nearest to vgg11_bn even so'):
        adapt(Architecture('vgg11_bn', {}), given)


def test_fitness():
    assert fitness(RESNET, marked()) == 1
    assert fitness(RESNET, headless()) == 1
    assert fitness(RESNET, {}) == 0
    assert 0.4 < fitness(RESNET, marked('resnet34')) < 0.6  # its trunk has that of ResNet-18, and more
    assert fitness(Architecture('resnet34', {}), marked()) < 0.6
    assert fitness(RESNET, {'step': np.ones(())}) == 0
    channels = marked(**{'conv1.weight': (64, 1, 7, 7)})
    assert 0.95 < fitness(RESNET, channels) < 1


def test_classes_of_a_file():
    def classes(architecture, weights):
        return classes_of({key: value.shape for key, value in weights.items()}, architecture)

    assert classes(RESNET, marked()) == 1000
    seven = headless(**{'fc.weight': (7, 512), 'fc.bias': (7,)})
    wrapped = {key.replace('fc.', 'fc._checkpoint_wrapped_module.'): value for key, value in seven.items()}
    for given in (seven, wrapped, under('net.', seven)):
        assert classes(RESNET, given) == 7
        assert classes(NONE, given) == 7
    assert classes(RESNET, headless()) is None
    assert classes(RESNET, headless(**{'fc.weight': (7, 512), 'fc.bias': (8,)})) is None
    assert classes(RESNET, headless(**{'fc.weight': ()})) is None


def test_a_wrong_file_is_diagnosed_without_tracing(monkeypatch):
    index()
    monkeypatch.setattr(jax, 'eval_shape', lambda *_: pytest.fail('traced a network'))
    for name in ('resnet152', 'vgg16'):
        assert resembling(index()[name])[0] == (name, 1.0)


@pytest.mark.parametrize('name', ['resnet34', 'vgg13', 'bn_inception'])
@pytest.mark.parametrize('prefix', ['', 'net.'])
def test_resemblance_under_a_prefix(name, prefix):
    shapes = {prefix + key: shape for key, shape in index()[name].items()}
    assert resembling(shapes)[0] == (name, 1.0)


def test_resemblance_in_a_dialect():
    import timm

    with torch.device('meta'):
        shapes = {key: tuple(v.shape) for key, v in timm.create_model('vgg16', pretrained=False).state_dict().items()}
    (best, share), *_ = resembling(shapes)
    assert best == 'vgg16'
    assert share > 0.9  # all but the two kernels of another shape


class WithTable(Network):
    """A network with a buffer that it computes itself."""

    num_classes: int = 3
    image_size: int = 8
    ignored = frozenset({'index_table'})

    def check_buffer(self, key: str, value: np.ndarray) -> str | None:
        return None if np.array_equal(value, np.arange(4)) else f'{key.upper()} is no range'

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(4, (3, 3), name='conv')(x)
        return nn.Dense(self.num_classes, name='fc')(x.mean((1, 2)))


def test_buffers_are_the_networks_own_declaration(monkeypatch):
    from functools import partial

    monkeypatch.setitem(MODELS, 'with_table', partial(WithTable))
    weights = flaxzoo.to_torch(WithTable().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))
    good, bad = np.arange(4), np.arange(4)[::-1]
    architecture = Architecture('with_table', {})
    for prefix in ('', 'net.'):
        fitted, _ = adapt(architecture, under(prefix, {**weights, 'block.index_table': good}))
        assert fitted.keys() == weights.keys()
        with pytest.raises(flaxzoo.ConversionError, match=r'! block\.index_table: BLOCK\.INDEX_TABLE is no range'):
            adapt(architecture, under(prefix, {**weights, 'block.index_table': bad}))
    flaxzoo.from_torch('with_table', {**weights, 'block.index_table': good})
    with pytest.raises(flaxzoo.ConversionError, match=r'! block\.index_table: BLOCK\.INDEX_TABLE is no range'):
        flaxzoo.from_torch('with_table', {**weights, 'block.index_table': torch.from_numpy(bad.copy())})
    with pytest.raises(flaxzoo.ConversionError, match=r'\+ layer1\.index_table'):
        adapt(RESNET, marked(**{'layer1.index_table': (4,)}))
