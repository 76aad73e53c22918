"""Weights are found wherever they lie, whatever lies beside them, in both formats of torch.save."""

import argparse
import collections
import dataclasses
import datetime
import enum
import functools
import logging
import pathlib
import uuid
import warnings

import numpy as np
import pytest
import safetensors.numpy
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flaxzoo
from flaxzoo.weights.files import candidates
from tests.weights.forge import archive_of, refused, tensor, text

WEIGHTS = {'conv.weight': torch.randn(2, 3), 'fc.bias': torch.randn(2)}


class Colour(enum.Enum):
    RED = 1


class Config(dict):
    """A dict with attributes, as many configuration libraries have one."""

    def __init__(self, **items):
        super().__init__(items)
        self.note = 'x'


@dataclasses.dataclass
class State:
    model: dict
    step: int = 3


def quantised():
    with warnings.catch_warnings(action='ignore'):  # torch deprecates them; files of them stay
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


Point = collections.namedtuple('Point', 'x y')
Default = functools.partial(collections.defaultdict, list)

# What programs write beside the weights.
BESIDE = {
    'Namespace': argparse.Namespace(lr=0.1, sizes=[1, 2]),
    'Counter': collections.Counter([30, 60]),
    'defaultdict': Default({'a': [1]}),
    'OrderedDict': collections.OrderedDict(a=1),
    'deque': collections.deque([1, 2], maxlen=5),
    'set': {'cat', 'dog'},
    'frozenset': frozenset({'cat'}),
    'bytearray': bytearray(b'x' * 300),
    'complex': 1j,
    'huge integer': 1 << 4000,
    'slice': slice(1, 2),
    'numpy scalar': np.float64(76.1),
    'numpy array': np.arange(3.0),
    'numpy objects': np.array([{'a': 1}], dtype=object),
    'numpy random state': np.random.RandomState(0).get_state(),
    'numpy generator': np.random.default_rng(0),
    'datetime': datetime.datetime(2024, 1, 1),
    'timedelta': datetime.timedelta(3),
    'path': pathlib.PurePosixPath('a/b'),
    'uuid': uuid.UUID(int=3),
    'enum': Colour.RED,
    'enum as a key': {Colour.RED: 1},
    'tuple as a key': {(1, 2): 'x', 3: 'y', None: 'z', 0.5: 'w', b'x': 'v'},
    'dict with attributes': Config(lr=0.1),
    'dataclass': State({}),
    'named tuple': Point(1, 2),
    'function': np.mean,
    'class': torch.nn.ReLU,
    'partial': functools.partial(int, base=2),
    'exception': ValueError('x'),
    'sparse tensor': torch.eye(2).to_sparse(),
    'quantised tensor': quantised(),
    'dtype': torch.float32,
    'device': torch.device('cuda:0'),
    'size': torch.Size([1, 2]),
    'layout': torch.strided,
    'generator state': torch.get_rng_state(),
    'scheduler': torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([torch.ones(1)], 0.1), [3, 3]).state_dict(),
    'optimizer': torch.optim.SGD([torch.ones(1)], 0.1).state_dict(),
    'whole optimizer': torch.optim.SGD([torch.ones(1)], 0.1),
    'criterion': torch.nn.CrossEntropyLoss(),
}


@pytest.fixture(params=[True, False], ids=['zip', 'legacy'])
def write(request, tmp_path):
    def write(content, **options):
        path = tmp_path / 'x.pth'
        torch.save(content, path, _use_new_zipfile_serialization=request.param, **options)
        return path

    return write


def same(read, weights=WEIGHTS) -> bool:
    return read.keys() == weights.keys() and all(np.array_equal(read[k], weights[k].detach().numpy()) for k in weights)


@pytest.mark.parametrize('protocol', [2, 4, 5])
@pytest.mark.parametrize('what', BESIDE)
def test_what_lies_beside_the_weights(write, what, protocol):
    assert same(flaxzoo.read_weights(write({'a': BESIDE[what], 'model': WEIGHTS}, pickle_protocol=protocol)))


def test_everything_beside_the_weights(write):
    assert same(flaxzoo.read_weights(write({**BESIDE, 'model': WEIGHTS, 'all': [BESIDE, WEIGHTS]})))


@pytest.mark.parametrize('what', ['numpy array', 'sparse tensor', 'quantised tensor', 'Namespace'])
def test_an_object_where_a_weight_should_be(write, what):
    kind = {
        'numpy array': r'numpy\.',
        'sparse tensor': '_rebuild_sparse_tensor',
        'quantised tensor': '_rebuild_qtensor',
    }
    refused(write({**WEIGHTS, 'bn.weight': BESIDE[what]}), rf'no tensors: bn\.weight \(.*{kind.get(what, what)}')


def test_extra_state_is_no_weight(write):
    assert same(flaxzoo.read_weights(write({**WEIGHTS, 'fc._extra_state': BESIDE['Namespace']})))


EMA = torch.optim.swa_utils.AveragedModel(torch.nn.ModuleDict({'conv': torch.nn.Linear(3, 2)})).state_dict()
OTHER = {'conv.weight': torch.zeros(2, 3), 'fc.bias': torch.zeros(2)}


def prefixed(prefix, weights=WEIGHTS):
    return {f'{prefix}{name}': value for name, value in weights.items()}


@pytest.mark.parametrize('content', [
    {'model': {'state_dict': WEIGHTS, 'epoch': 3}},
    {'checkpoint': [{'nets': ({'net': WEIGHTS},)}], 'best': torch.tensor(3.0)},
    {'state_dict': WEIGHTS, 'rng': {'cpu': torch.get_rng_state(), 'cuda': [torch.get_rng_state()]}},
    {'meta': {'a': 1}, 'state_dict': prefixed('module._orig_mod.'), 'hyper_parameters': Config(lr=1)},
    {'state_dict': prefixed('model._orig_mod.module.')},
    prefixed('backbone.'),
    {'n_averaged': torch.tensor(4), **prefixed('module.')},
    {'model_ema': {'n_averaged': torch.tensor(4), **prefixed('module.')}, 'optimizer': BESIDE['optimizer']},
    argparse.Namespace(state_dict=WEIGHTS, lr=0.1),
    State(WEIGHTS),
    Config(model=WEIGHTS),
    Config(**WEIGHTS),
    collections.defaultdict(dict, {'model': WEIGHTS}),
    {'a': WEIGHTS, 'b': WEIGHTS},
], ids=str)  # fmt: skip
def test_weights_are_found(write, content):
    assert same(flaxzoo.read_weights(write(content)))


def test_the_averaged_ones_are_preferred_at_any_depth(write, caplog):
    path = write({'nets': {'model': OTHER, 'model_ema': {'n_averaged': torch.tensor(4), **prefixed('module.')}}})
    with caplog.at_level(logging.WARNING, 'flaxzoo'):
        assert same(flaxzoo.read_weights(path))
    assert "'nets.model_ema'" in caplog.text
    assert same(flaxzoo.read_weights(path, key='nets.model'), OTHER)


def test_several_that_cannot_be_told_apart(write):
    path = write({'student': OTHER, 'teacher': {'model': prefixed('module.')}})
    refused(path, r"several state dicts: 'student', 'teacher\.model'; name one: key='student'")
    assert same(flaxzoo.read_weights(path, key='teacher.model'))
    with pytest.raises(
        flaxzoo.WeightsError, match=r"key='teacher', did you mean .*; it has 'student', 'teacher.model'"
    ):
        flaxzoo.read_weights(path, key='teacher')


def test_prefixes_that_some_names_share(write):
    path = write({'net': {**prefixed('encoder.trunk.'), **prefixed('ema.'), 'fc.weight': torch.ones(3)}})
    found = candidates(path)
    assert list(found) == ['net', 'net.encoder', 'net.ema', 'net.encoder.trunk']
    assert same(found['net.encoder.trunk'])
    assert same(flaxzoo.read_weights(path, key='net.ema'))
    assert found['net'].shapes == {k: v.shape for k, v in found['net'].items()}
    assert len(flaxzoo.read_weights(path)) == len(found['net']) == 5


def test_candidates_of_other_formats(tmp_path):
    arrays = {name: value.numpy() for name, value in prefixed('a.b.').items()}
    np.savez(tmp_path / 'x.npz', **arrays)
    safetensors.numpy.save_file(arrays, tmp_path / 'x.safetensors')
    for path in tmp_path.iterdir():
        found = candidates(path)
        assert list(found) == ['', 'a', 'a.b']
        assert same(found['a.b'])
        assert found[''].keys() == arrays.keys() == flaxzoo.read_weights(path).keys()


def test_a_candidate_is_checked_when_it_is_read(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save({'model': WEIGHTS, 'other': OTHER}, path)
    content = path.read_bytes()
    path.write_bytes(content.replace(WEIGHTS['fc.bias'].numpy().tobytes(), bytes(range(8))))
    found = candidates(path)
    assert same(found['other'], OTHER)
    assert found['model'].shapes['fc.bias'] == (2,)
    with pytest.raises(flaxzoo.WeightsError, match=r'x\.pth: .*checksum'):
        found['model']['fc.bias']


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, bias=False)
        self.inside = torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.ReLU())
        self.register_buffer('hidden', torch.ones(2), persistent=False)
        self.register_buffer('none', None)


@pytest.mark.parametrize('wrap', [
    lambda net: net,
    lambda net: {'model': net, 'epoch': 3},
    torch.nn.DataParallel,
])  # fmt: skip
@pytest.mark.parametrize('protocol', [2, 5])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_modules_that_were_saved_as_a_whole(write, wrap, protocol):
    net = Net()
    path = write(wrap(net), pickle_protocol=protocol)
    assert same(flaxzoo.read_weights(path), net.state_dict())


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_whole_torchvision_network(write):
    net = torchvision.models.squeezenet1_1()
    assert same(flaxzoo.read_weights(write(net)), net.state_dict())


plain = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(list(BESIDE.values())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab.', max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(plain, st.sampled_from([2, 4]), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_beside_the_weights(tmp_path, beside, protocol, zipped):
    content = {'weights': {'net.0.weight': torch.ones(3)}, 'beside': beside}
    torch.save(content, tmp_path / 'x.pth', pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    np.testing.assert_array_equal(candidates(tmp_path / 'x.pth')['weights']['net.0.weight'], np.ones(3))


def test_long_names_are_refused(tmp_path):
    refused(archive_of(tmp_path / 'x.pth', b'\x80\x02}' + text('a.' * 1000) + tensor() + b's.'), '2000 characters')


def test_a_key_names_a_part_of_any_size(tmp_path):
    """Of eight networks each has an eighth of the names."""
    many = {f'nets.{i}.{name}': value for i in range(8) for name, value in WEIGHTS.items()}
    torch.save({'model': many}, tmp_path / 'x.pth')
    assert list(candidates(tmp_path / 'x.pth')) == ['model', 'model.nets']
    assert same(candidates(tmp_path / 'x.pth', 'model.nets.7')['model.nets.7'])
    assert same(flaxzoo.read_weights(tmp_path / 'x.pth', key='model.nets.7'))
    with pytest.raises(flaxzoo.WeightsError, match=r"key='model\.nets\.8'"):
        flaxzoo.read_weights(tmp_path / 'x.pth', key='model.nets.8')
