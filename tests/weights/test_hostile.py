"""Pickles that would run something, or exhaust memory: one clear error each, nothing executed, nothing allocated."""

import contextlib
import os
import pickle
import struct
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flaxzoo
from flaxzoo.weights.files import candidates
from flaxzoo.weights.pickles import Opaque, loads
from flaxzoo.weights.torch_file import NAMES
from tests.weights.forge import ELSEWHERE, ONES, REBUILD, STORAGE, archive_of, integer, item, refused, tensor, text


class Runs:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_the_helper_writes_what_torch_would(tmp_path):
    read = flaxzoo.read_weights(archive_of(tmp_path / 'x.pth', item(tensor())))
    np.testing.assert_array_equal(read['x'], np.arange(4))


CALLS = {
    'system': (lambda canary: Runs(os.system, f'touch {canary}'), 'system'),
    'eval': (lambda canary: Runs(eval, f'open({str(canary)!r}, "w")'), 'eval'),
    'open': (lambda canary: Runs(open, str(canary), 'w'), 'open'),
    'getattr': (lambda canary: Runs(getattr, os, 'system'), 'getattr'),
    'import': (lambda canary: Runs(__import__, 'os'), '__import__'),
    'torch.load': (lambda canary: Runs(torch.load, str(canary)), 'torch.serialization.load'),
    'module': (lambda canary: torch.nn.Linear(1, 1), 'torch.nn.modules.linear.Linear'),
}


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('call', CALLS)
def test_nothing_is_called(tmp_path, call, protocol):
    """Where weights are wanted an object of another class is refused by name; beside them it is skipped."""
    canary = tmp_path / 'canary'
    make, name = CALLS[call]
    try:
        content = pickle.dumps(make(canary), protocol)
    except (TypeError, pickle.PicklingError):  # os itself cannot be pickled: name it
        content = b'\x80\x02cbuiltins\ngetattr\n(cos\nsystem\nX\x01\x00\x00\x00atR.'
    value = content[11 if content[2:3] == pickle.FRAME else 2 : -1]
    in_place = content[:2] + item(value)[2:]
    message = rf'x \(.*({name}|__builtin__)'
    refused(archive_of(tmp_path / 'zip.pth', in_place), message)
    (tmp_path / 'raw.pth').write_bytes(in_place)
    refused(tmp_path / 'raw.pth', 'not of torch.save')
    torch_like = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + in_place
    (tmp_path / 'legacy.pth').write_bytes(torch_like + pickle.dumps([], 2))
    refused(tmp_path / 'legacy.pth', message)
    beside = b'}(' + text('w') + b'}' + text('x') + tensor() + b's' + text('other') + value + b'u.'
    read = flaxzoo.read_weights(archive_of(tmp_path / 'beside.pth', content[:2] + beside))
    np.testing.assert_array_equal(read['x'], np.arange(4))
    assert not canary.exists()


def test_nothing_is_imported(tmp_path):
    path = archive_of(
        tmp_path / 'x.pth', b'\x80\x02}(' + text('x') + tensor() + text('y_extra_state') + b'cantigravity\na\n)Ru.'
    )
    assert list(flaxzoo.read_weights(path)) == ['x']
    assert 'antigravity' not in sys.modules


@pytest.mark.parametrize('protocol', [0, 1])
def test_text_protocols_are_refused(tmp_path, protocol):
    content = pickle.dumps(Runs(os.system, f'touch {tmp_path / "canary"}'), protocol)
    refused(archive_of(tmp_path / 'x.pth', content), 'refused|not a state dict|an object of')
    assert not (tmp_path / 'canary').exists()


HOSTILE = {
    'call a string': (item(text('os.system') + b')R'), 'calls something'),
    'call a dtype': (item(b'ctorch\nfloat32\n)R'), 'calls something'),
    'call a storage type': (item(b'ctorch\nFloatStorage\n)R'), 'calls something'),
    'call a tensor': (item(tensor() + b')R'), 'calls something'),
    'call without a tuple': (item(b'ccollections\nOrderedDict\n]R'), 'calls something'),
    'a dotted name': (b'\x80\x04\x8c\x05torch\x8c\x10_utils.os.system\x93.', 'torch._utils.os.system'),
    'rebuild by another function': (
        item(b'ctorch._tensor\n_rebuild_from_type_v2\n(ccollections\nOrderedDict\nctorch\nTensor\n)}tR'),
        'not a tensor',
    ),
    'many arguments': (item(b'ccollections\nOrderedDict\n' + ONES + b'R'), 'calls something'),
    'an object': (item(b'cos\nsystem\n)\x81'), r'x \(os.system\)'),
    'an object by keywords': (item(b'cos\nsystem\n)}\x92'), r'x \(os.system\)'),
    'an instance': (item(b'(ios\nsystem\n'), r'x \(os.system\)'),
    'an instance of a class': (item(b'(cos\nsystem\nK\x01o'), r'x \(os.system\)'),
    'a class': (item(b'cos\nsystem\n'), r'x \(os.system\)'),
    'an object of an object': (item(b'cos\nsystem\n)R)R}b'), r'x \(os.system\)'),
    'a name that is none': (b'\x80\x04}\x8c\x01a\x93.', 'no name'),
    'extension': (item(b'\x82\x01'), 'opcode 0x82'),
    'huge integer': (item(b'\x8b\xff\xff\xff\x7f'), 'declares more bytes'),
    'bytearray of declared size': (item(b'\x96' + struct.pack('<Q', 1 << 40)), 'declares more bytes'),
    'huge string': (item(b'\x8d' + struct.pack('<Q', 1 << 62)), 'declares more bytes'),
    'huge bytes': (item(b'\x8e' + struct.pack('<Q', 1 << 40)), 'declares more bytes'),
    'negative string': (item(b'T' + struct.pack('<i', -5)), 'declares more bytes'),
    'far memo': (b'\x80\x02}r\xff\xff\xff\xff.', 'damaged at byte'),
    'memo that was not set': (b'\x80\x02}q\x03h\x01.', 'damaged at byte'),
    'unknown memo': (item(b'h\x09'), 'damaged at byte'),
    'empty stack': (b'\x80\x02.', 'damaged at byte'),
    'no mark': (b'\x80\x02t.', 'damaged at byte'),
    'mark in a tuple': (b'\x80\x02(\x85.', 'damaged at byte'),
    'odd items': (b'\x80\x02}(K\x01u.', 'sets items'),
    'items of a list': (b'\x80\x02](K\x01K\x02u.', 'sets items'),
    'append to a dict': (b'\x80\x02}K\x01a.', 'appends'),
    'name without an end': (b'\x80\x02c' + b'a' * 1000, 'damaged at byte'),
    'long name': (b'\x80\x02c' + b'a' * 250 + b'\n' + b'b' * 250 + b'\n.', 'an object of a'),
    'not utf-8': (item(b'X\x02\x00\x00\x00\xff\xfe'), 'damaged at byte'),
    'no end': (b'\x80\x02}', 'truncated'),
    'tuple as a key': (b'\x80\x02}K\x01\x85' + tensor() + b's.', r'holds tuple \(tensor\)'),
    'number as a key': (b'\x80\x02}K\x01' + tensor() + b's.', r'holds \[1\] \(tensor\)'),
    'exploding key': (b'\x80\x02})' + b'2\x86' * 60 + b'K\x01s.', 'opcode'),
    'huge storage': (item(tensor(count=integer(1 << 60))), 'storage 0 has 16 bytes'),
    'negative storage': (item(tensor(count=integer(-1))), 'not described'),
    'storage beyond its entry': (item(tensor(count=b'K\x05', shape=b'K\x05\x85')), 'storage 0 has 16 bytes'),
    'tensor beyond its storage': (item(tensor(shape=b'K\x05\x85')), 'needs 5 values of 4'),
    'offset beyond its storage': (item(tensor(offset=b'K\x01')), 'needs 5 values of 4'),
    'strides beyond their storage': (item(tensor(strides=b'K\x02\x85')), 'needs 7 values of 4'),
    'repeated by strides of 0': (item(tensor(shape=integer(1 << 50) + b'\x85', strides=b'K\x00\x85')), 'larger than'),
    'negative stride': (item(tensor(strides=integer(-1) + b'\x85')), 'impossible strides'),
    'negative offset': (item(tensor(offset=integer(-4))), 'impossible strides'),
    'fractional shape': (item(tensor(shape=b'G' + struct.pack('>d', 4.0) + b'\x85')), 'impossible shape'),
    'true as a shape': (item(tensor(shape=b'\x88\x85')), 'impossible shape'),
    'impossible sizes of no elements': (
        item(tensor(shape=b'(K\x00' + integer(1 << 62) + b'K\x08t', strides=b'(K\x01K\x01K\x01t')), 'impossible shape'),
    'size beyond all': (
        item(tensor(shape=b'K\x00' + integer(1 << 70) + b'\x86', strides=b'K\x01K\x01\x86')), 'impossible shape'),
    'stride beyond all': (item(tensor(strides=integer(1 << 70) + b'\x85')), 'needs'),
    'many dimensions': (item(tensor(shape=ONES, strides=ONES)), 'impossible shape'),
    'more strides than sizes': (item(tensor(strides=b'K\x01K\x01\x86')), 'impossible strides'),
    'shape that is no tuple': (item(tensor(shape=b'K\x04')), 'not described'),
    'no storage': (item(tensor(storage=b'K\x01')), 'not described'),
    'no such entry': (item(tensor(storage=ELSEWHERE)), 'no entry'),
    'a view of a storage': (item(tensor(storage=(STORAGE % b'K\x04')[:-2] + b'K\x01tQ')), 'views of storages'),
    'a module by its source': (b'\x80\x02(X\x06\x00\x00\x00moduleK\x01tQ.', 'torch.save does not write'),
    'storage of no type': (item(tensor(storage=b'(X\x07\x00\x00\x00storageK\x01K\x01K\x01K\x01tQ')), 'not described'),
}  # fmt: skip


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_pickles(tmp_path, name):
    content, message = HOSTILE[name]
    refused(archive_of(tmp_path / 'x.pth', content), message)


@pytest.mark.parametrize('opening', [b']', b'}K\x01', b'('])
def test_recursion(tmp_path, opening):
    """Thirty thousand containers inside one another, closed and not."""
    closing = {b']': b'a', b'}K\x01': b's', b'(': b't'}[opening]
    depth = 30_000
    content = b'\x80\x02' + opening * depth + b'N' + closing * depth + b'.'
    refused(archive_of(tmp_path / 'x.pth', content), 'no(t a)? state dict')
    refused(archive_of(tmp_path / 'y.pth', b'\x80\x02' + opening * depth), 'truncated')


def test_a_dict_that_holds_itself(tmp_path):
    content = {'epoch': 1}
    content['state_dict'] = content
    refused(archive_of(tmp_path / 'x.pth', pickle.dumps(content, 2)), 'no state dict')


def test_pickle_bomb_of_references(tmp_path):
    """Sixty lists, each twice in the next: 2^60 elements to whoever walks through them."""
    content: list = []
    for _ in range(60):
        content = [content, content]
    refused(archive_of(tmp_path / 'x.pth', pickle.dumps({'a': content}, 2)), 'no state dict')


BIG = 50_000  # each of these pickles would do its square of work, or more, if anything were walked through again
NUMBERS = b''.join(b'\x8a\x0a' + (i * ((1 << 61) - 1)).to_bytes(10, 'little') + b'N' for i in range(BIG))
PAIRS = b'](' + b'K\x01K\x02\x86' * BIG + b'e'
AGAIN = b'h\x01h\x00'
DOUBLED = b'q\x010h\x00' + b'h\x01h\x01\x86R'
WIDE = b'}(' + b''.join(text(f'a{i}') + tensor() for i in range(200)) + b'uq\x01'
CLASS = b'cargparse\nNamespace\nq\x00'
PROPORTIONAL = {
    'numbers of one hash': (b'}(' + NUMBERS + b'u', 'no state dict'),
    'pairs again and again': (
        PAIRS + b'q\x000ccollections\nOrderedDict\nq\x010](' + (AGAIN + b'\x85R') * BIG + b'e', 'holds a list'),
    'long arguments again and again': (
        b'(' + b'N' * BIG + b'tq\x000ctorch\nSize\nq\x010](' + (AGAIN + b'R') * BIG + b'e', 'calls something'),
    'a long name again and again': (
        text('a' * BIG) + b'q\x000](' + b'h\x00h\x00\x93' * BIG + b'e', 'no name'),
    'one state of many objects': (
        WIDE + b'0' + CLASS + b'0](' + b'h\x00)\x81h\x01b' * BIG + b'e', ''),
    'objects in objects': (CLASS + b'0' + b'h\x00)\x81' * BIG + b'N' + b'b' * BIG, 'an object of argparse.Namespace'),
    'one state dict in many lists': (WIDE + b'0](' + b'h\x01\x85' * BIG + b'e', ''),
    'long keys in dicts': (text('k' * BIG) + b'q\x000' + b'}h\x00' * BIG + b'N' + b's' * BIG, 'no state dict'),
    'sets': (b'\x8f' * BIG + b'(\x91' + b'\x85' * BIG, 'holds a tuple'),
}  # fmt: skip


def seconds(path, message='') -> float:
    """CPU time of reading a file, which is refused if there is a message."""
    start = time.process_time()
    with pytest.raises(flaxzoo.WeightsError, match=message) if message else contextlib.nullcontext():
        flaxzoo.read_weights(path)
    return time.process_time() - start


@pytest.mark.parametrize('name', PROPORTIONAL)
def test_time_is_proportional_to_the_file(tmp_path, name):
    """Within 20 times that of as many bytes of small numbers; the square would be hundreds of times that."""
    content, message = PROPORTIONAL[name]
    harmless = archive_of(tmp_path / 'harmless.pth', b'\x80\x04](' + b'K\x01' * (len(content) // 2) + b'e.')
    allowed = 20 * seconds(harmless, 'a list') + 0.2
    assert seconds(archive_of(tmp_path / 'x.pth', b'\x80\x04' + content + b'.'), message) < allowed


@pytest.mark.parametrize('opcode', [b']', b'}', b'N'])
def test_memory_is_in_proportion_to_the_file(tmp_path, opcode):
    """A byte can make an object of a hundred; honest files have few of them for their length."""
    content = b'\x80\x04K\x01' + opcode * 1_100_000 + b'.'
    refused(archive_of(tmp_path / 'x.pth', content), 'far more parts')
    refused(archive_of(tmp_path / 'y.pth', content[:900_000] + b'.'), 'no state dict|holds a')
    archive_of(tmp_path / 'z.pth', content, more=bytes(10_000_000))
    with pytest.raises(flaxzoo.WeightsError, match=r'no state dict|holds a'):
        flaxzoo.read_weights(tmp_path / 'z.pth')


def test_strings_are_not_doubled(tmp_path):
    """`device(x, x)` of what it gave, sixty times."""
    content = b'ctorch\ndevice\nq\x000' + text('cuda') + DOUBLED * 60
    refused(archive_of(tmp_path / 'x.pth', b'\x80\x04' + content + b'.'), 'torch.device')


def module(parameters: bytes, modules: bytes) -> bytes:
    """The pickle of a module that was saved as a whole."""
    entries = text('_parameters') + parameters + text('_buffers') + b'}' + text('_modules') + modules
    return b'cm\nM\n)\x81}(' + entries + b'ub'


ONE = b'}' + text('w') + tensor() + b's'


def test_a_module_twice_in_the_next(tmp_path):
    """Forty times, which would make 2^40 names."""
    content = module(ONE, b'}') + b'r' + struct.pack('<I', 0)
    for i in range(40):
        child = b'j' + struct.pack('<I', i)
        content += (
            b'0' + module(b'}', b'}(' + text('a') + child + text('b') + child + b'u') + b'r' + struct.pack('<I', i + 1)
        )
    read = flaxzoo.read_weights(archive_of(tmp_path / 'x.pth', b'\x80\x02' + content + b'.'))
    assert list(read) == ['a.' * 40 + 'w']


def test_a_deep_module(tmp_path):
    content = b'N'
    for _ in range(3000):
        content = module(ONE, b'}' + text('a') + content + b's')
    refused(archive_of(tmp_path / 'x.pth', b'\x80\x02' + content + b'.'), '301 characters')


FRAGMENTS = [
    *(bytes([code]) for code in b'()]}.0123abdeloqrstuNQR\x81\x85\x86\x87\x88\x8f\x90\x91\x92\x93\x94'),
    b'h\x00', b'h\x01', b'q\x00', b'q\x01', b'K\x01', text('weight'), text('state'), text('param_groups'), tensor(),
    ONE, CLASS, b'ccollections\nOrderedDict\n', b'ctorch\nSize\n', b'ctorch\nfloat32\n', REBUILD, STORAGE % b'K\x04',
    b'ctorch._tensor\n_rebuild_from_type_v2\n', b'ctorch._utils\n_rebuild_parameter\n', b'c__builtin__\nset\n',
    b'iargparse\nNamespace\n', module(ONE, b'}'), integer(1 << 70),
    b'\x8b\x01\0\0\0\x01', b'\x96\x01\0\0\0\0\0\0\0\x01',
]  # fmt: skip


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=25))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_pickles(tmp_path, fragments):
    """Read, or one WeightsError."""
    path = archive_of(tmp_path / 'x.pth', b'\x80\x04' + b''.join(fragments) + b'.')
    with contextlib.suppress(flaxzoo.WeightsError):
        flaxzoo.read_weights(path)
    with contextlib.suppress(flaxzoo.WeightsError):
        assert all(dict(weights) for weights in candidates(path).values())


def test_only_functions_of_the_table_are_called():
    """What the interpreter may call is written down, and none of it does more than describe a tensor or a container."""
    functions = {name for name, value in NAMES.items() if callable(value)}
    assert functions == {
        'collections.OrderedDict',
        'collections.defaultdict',
        'builtins.set',
        '__builtin__.set',
        'torch.Size',
        'torch._tensor._rebuild_from_type_v2',
        *(f'torch._utils._rebuild_{name}' for name in
          ('tensor', 'tensor_v2', 'tensor_v3', 'parameter', 'parameter_with_state')),
    }  # fmt: skip
    value, _ = loads(memoryview(b'\x80\x02cos\nsystem\n.'), {}, tuple)
    assert isinstance(value, Opaque)
    assert not callable(value)
