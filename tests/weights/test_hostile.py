"""Files that are damaged, hostile or something else: one clear error each, nothing executed, nothing allocated."""

import copy
import gzip
import io
import os
import pickle
import random
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import torch
import torchvision

import flaxzoo
from flaxzoo.weights.pickles import loads
from flaxzoo.weights.torch_file import NAMES

STORAGE = b'(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu%stQ'
ELSEWHERE = (STORAGE % b'K\x04').replace(b'\x01\x00\x00\x000', b'\x04\x00\x00\x00../x')
ONES = b'(' + b'K\x01' * 99 + b't'
REBUILD = b'ctorch._utils\n_rebuild_tensor_v2\n('


def tensor(count=b'K\x04', offset=b'K\x00', shape=b'K\x04\x85', strides=b'K\x01\x85', storage=None) -> bytes:
    """The pickle of a tensor of four numbers, or of what the arguments say."""
    return REBUILD + (storage or STORAGE % count) + offset + shape + strides + b'\x89)tR'


def item(value: bytes) -> bytes:
    """The pickle of {'x': value}."""
    return b'\x80\x02}X\x01\x00\x00\x00x' + value + b's.'


def archive_of(path, content: bytes, method=zipfile.ZIP_STORED, **entries: bytes):
    with zipfile.ZipFile(path, 'w', method) as archive:
        archive.writestr('archive/data.pkl', content)
        archive.writestr('archive/data/0', np.arange(4, dtype=np.float32).tobytes())
        for name, data in entries.items():
            archive.writestr(f'archive/{name}', data)
    return path


def integer(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def refused(path, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(flaxzoo.WeightsError, match=message) as caught:
            flaxzoo.read_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


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
def test_calls_are_refused_by_name(tmp_path, call, protocol):
    canary = tmp_path / 'canary'
    make, name = CALLS[call]
    try:
        content = pickle.dumps({'x': make(canary)}, protocol)
    except (TypeError, pickle.PicklingError):  # os itself cannot be pickled: name it
        content = b'\x80\x02}X\x01\x00\x00\x00xcbuiltins\ngetattr\n(cos\nsystem\nX\x01\x00\x00\x00atRs.'
    name = name if protocol > 2 else f'({name}|__builtin__)'
    refused(archive_of(tmp_path / 'zip.pth', content), f"asks for '.*{name}.*'")
    (tmp_path / 'raw.pth').write_bytes(content)
    refused(tmp_path / 'raw.pth', f"asks for '.*{name}.*'")
    torch_like = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + content
    (tmp_path / 'legacy.pth').write_bytes(torch_like)
    refused(tmp_path / 'legacy.pth', f"asks for '.*{name}.*'")
    assert not canary.exists()


@pytest.mark.parametrize('protocol', [0, 1])
def test_text_protocols_are_refused(tmp_path, protocol):
    content = pickle.dumps(Runs(os.system, f'touch {tmp_path / "canary"}'), protocol)
    refused(archive_of(tmp_path / 'x.pth', content), 'refused')
    assert not (tmp_path / 'canary').exists()


HOSTILE = {
    'call a string': (item(b'ctorch\nTensor\n)R'), 'calls something'),
    'call a dtype': (item(b'ctorch\nfloat32\n)R'), 'calls something'),
    'call a storage type': (item(b'ctorch\nFloatStorage\n)R'), 'calls something'),
    'call a tensor': (item(tensor() + b')R'), 'calls something'),
    'call without a tuple': (item(b'ccollections\nOrderedDict\n]R'), 'calls something'),
    'a dotted name': (b'\x80\x04\x8c\x05torch\x8c\x10_utils.os.system\x93.', 'torch._utils.os.system'),
    'rebuild by another function': (
        item(b'ctorch._tensor\n_rebuild_from_type_v2\n(ccollections\nOrderedDict\nctorch\nTensor\n)}tR'),
        'not a tensor',
    ),
    'attributes of a tensor': (item(tensor() + b'}b'), 'sets attributes'),
    'attributes of a list': (item(b']}b'), 'sets attributes'),
    'new object': (item(b'ccollections\nOrderedDict\n)\x81'), 'opcode 0x81'),
    'instance': (item(b'(ios\nsystem\n'), 'opcode 0x69'),
    'extension': (item(b'\x82\x01'), 'opcode 0x82'),
    'huge integer': (item(b'\x8b\xff\xff\xff\x7f'), 'opcode 0x8b'),
    'bytearray of declared size': (item(b'\x96' + struct.pack('<Q', 1 << 40)), 'opcode 0x96'),
    'huge string': (item(b'\x8d' + struct.pack('<Q', 1 << 62)), 'declares more bytes'),
    'huge bytes': (item(b'\x8e' + struct.pack('<Q', 1 << 40)), 'declares more bytes'),
    'negative string': (item(b'T' + struct.pack('<i', -5)), 'declares more bytes'),
    'far memo': (b'\x80\x02}r\xff\xff\xff\xff.', 'no state dict'),
    'unknown memo': (item(b'h\x09'), 'damaged at byte'),
    'empty stack': (b'\x80\x02.', 'damaged at byte'),
    'no mark': (b'\x80\x02t.', 'damaged at byte'),
    'mark in a tuple': (b'\x80\x02(\x85.', 'damaged at byte'),
    'odd items': (b'\x80\x02}(K\x01u.', 'sets items'),
    'items of a list': (b'\x80\x02](K\x01K\x02u.', 'sets items'),
    'append to a dict': (b'\x80\x02}K\x01a.', 'appends'),
    'name without an end': (b'\x80\x02c' + b'a' * 1000, 'damaged at byte'),
    'long name': (b'\x80\x02c' + b'a' * 250 + b'\n' + b'b' * 250 + b'\n.', "asks for 'a"),
    'not utf-8': (item(b'X\x02\x00\x00\x00\xff\xfe'), 'damaged at byte'),
    'no end': (b'\x80\x02}', 'truncated'),
    'tuple as a key': (b'\x80\x02}K\x01\x85K\x01s.', 'key is a tuple'),
    'exploding key': (b'\x80\x02})' + b'2\x86' * 60 + b'K\x01s.', 'opcode|key is a tuple'),
    'huge storage': (item(tensor(count=integer(1 << 60))), 'storage 0 has 16 bytes'),
    'negative storage': (item(tensor(count=integer(-1))), 'not described'),
    'storage beyond its entry': (item(tensor(count=b'K\x05', shape=b'K\x05\x85')), 'storage 0 has 16 bytes'),
    'tensor beyond its storage': (item(tensor(shape=b'K\x05\x85')), 'needs 5 values of 4'),
    'offset beyond its storage': (item(tensor(offset=b'K\x01')), 'needs 5 values of 4'),
    'strides beyond their storage': (item(tensor(strides=b'K\x02\x85')), 'needs 7 values of 4'),
    'repeated by strides of 0': (item(tensor(shape=integer(1 << 50) + b'\x85', strides=b'K\x00\x85')), 'larger than'),
    'negative stride': (item(tensor(strides=integer(-1) + b'\x85')), 'impossible shape'),
    'negative offset': (item(tensor(offset=integer(-4))), 'impossible shape'),
    'fractional shape': (item(tensor(shape=b'G' + struct.pack('>d', 4.0) + b'\x85')), 'impossible shape'),
    'true as a shape': (item(tensor(shape=b'\x88\x85')), 'impossible shape'),
    'many dimensions': (item(tensor(shape=ONES, strides=ONES)), 'impossible shape'),
    'more strides than sizes': (item(tensor(strides=b'K\x01K\x01\x86')), 'impossible shape'),
    'shape that is no tuple': (item(tensor(shape=b'K\x04')), 'not described'),
    'no storage': (item(tensor(storage=b'K\x01')), 'not described'),
    'no such entry': (item(tensor(storage=ELSEWHERE)), 'no entry'),
    'a view of a storage': (item(tensor(storage=(STORAGE % b'K\x04')[:-2] + b'K\x01tQ')), 'views of storages'),
    'a module by its source': (b'\x80\x02(X\x06\x00\x00\x00moduleK\x01tQ.', 'whole module'),
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


def test_only_functions_of_the_table_are_called():
    """What the interpreter may call is written down, and none of it does more than describe a tensor or a container."""
    functions = {name for name, value in NAMES.items() if callable(value)}
    assert functions == {
        'collections.OrderedDict',
        'torch.Size',
        'torch.device',
        'torch._tensor._rebuild_from_type_v2',
        *(f'torch._utils._rebuild_{name}' for name in
          ('tensor', 'tensor_v2', 'tensor_v3', 'parameter', 'parameter_with_state')),
    }  # fmt: skip
    with pytest.raises(flaxzoo.WeightsError, match=r'os\.system'):
        loads(memoryview(b'\x80\x02cos\nsystem\n.'), {}, tuple)


def samples(folder) -> dict:
    """A small valid file of each format."""
    weights = {'a.weight': torch.randn(5, 3), 'a.bias': torch.randn(5), 'n': torch.tensor(3)}
    torch.save(weights, folder / 'zip.pth')
    torch.save(weights, folder / 'legacy.pth', _use_new_zipfile_serialization=False)
    arrays = {key: value.numpy() for key, value in weights.items()}
    safetensors.numpy.save_file(arrays, folder / 'x.safetensors')
    np.savez(folder / 'x.npz', **arrays)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def outcome(path):
    """What reading gives: the arrays' bytes, or the message; any other exception fails the test."""
    try:
        return {key: (value.shape, value.tobytes()) for key, value in flaxzoo.read_weights(path).items()}
    except flaxzoo.WeightsError:
        return None


@pytest.mark.parametrize('name', ['zip.pth', 'legacy.pth', 'x.safetensors', 'x.npz'])
def test_truncated_files(tmp_path, name):
    content = samples(tmp_path)[name]
    path = tmp_path / 'cut'
    for length in {*range(0, len(content), 7), *range(len(content) - 100, len(content))}:
        path.write_bytes(content[:length])
        assert outcome(path) is None, f'{length} of {len(content)} bytes were read as a whole file'


@pytest.mark.parametrize('name', ['zip.pth', 'legacy.pth', 'x.safetensors', 'x.npz'])
def test_flipped_bits(tmp_path, name):
    """A flipped bit in an archive is found, or it is in a byte that is not used; elsewhere it must not crash."""
    content = samples(tmp_path)[name]
    path = tmp_path / name
    expected = outcome(path)
    randomness = random.Random(0)
    found = 0
    for _ in range(600):
        flipped = bytearray(content)
        flipped[randomness.randrange(len(content))] ^= 1 << randomness.randrange(8)
        path.write_bytes(flipped)
        read = outcome(path)
        found += read is None
        if name in ('zip.pth', 'x.npz') and read is not None and read != expected:
            # Only the names of entries have no checksum in a zip file.
            assert name == 'x.npz'
            assert list(read.values()) == list(expected.values())
    assert found > 50


def test_flipped_bit_in_a_tensor_of_an_archive(tmp_path):
    content = samples(tmp_path)['zip.pth']
    values = flaxzoo.read_weights(tmp_path / 'zip.pth')['a.weight'].tobytes()
    flipped = bytearray(content)
    flipped[content.index(values)] ^= 1
    (tmp_path / 'zip.pth').write_bytes(flipped)
    refused(tmp_path / 'zip.pth', "checksum of 'zip/data/0' is")


def test_compressed_archives(tmp_path):
    refused(archive_of(tmp_path / 'x.pth', item(tensor()), zipfile.ZIP_DEFLATED, bomb=bytes(10_000_000)), 'compressed')
    np.savez_compressed(tmp_path / 'x.npz', x=np.zeros(1_000_000))
    refused(tmp_path / 'x.npz', 'compressed')


def test_overlapping_entries(tmp_path):
    path = archive_of(tmp_path / 'x.pth', item(tensor()), big=bytes(10_000))
    with zipfile.ZipFile(path, 'a') as archive:
        for i in range(50):
            again = copy.copy(archive.getinfo('archive/big'))
            again.filename = f'archive/data/{i + 1}'
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
        archive._didModify = True
    refused(path, 'larger than the file')


def test_doubled_entries(tmp_path):
    path = archive_of(tmp_path / 'x.pth', item(tensor()))
    with zipfile.ZipFile(path, 'a') as archive:
        again = copy.copy(archive.getinfo('archive/data/0'))
        archive.filelist.append(again)
        archive._didModify = True
    refused(path, 'two entries')


def test_encrypted_entries(tmp_path):
    path = archive_of(tmp_path / 'x.pth', item(tensor()))
    with zipfile.ZipFile(path, 'a') as archive:
        archive.getinfo('archive/data/0').flag_bits |= 1
        archive._didModify = True
    refused(path, 'encrypted')


def test_big_endian(tmp_path):
    refused(archive_of(tmp_path / 'x.pth', item(tensor()), byteorder=b'big'), 'big-endian')
    head = [0x1950A86A20F9469CFC6C, 1001, {'little_endian': False}]
    (tmp_path / 'y.pth').write_bytes(b''.join(pickle.dumps(part, 2) for part in head))
    refused(tmp_path / 'y.pth', 'big-endian')


def gzipped() -> bytes:
    return gzip.compress(b'x' * 100)


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode='w') as archive:
        archive.addfile(tarfile.TarInfo('storages'), io.BytesIO())
    return stream.getvalue()


def archived(**entries: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w') as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return stream.getvalue()


OTHER_FILES = {
    'empty': (b'', r'empty \(0 bytes\)'),
    'one byte': (b'x', "begins with b'x'"),
    'html': (b'<!DOCTYPE html><html><title>404 Not Found</title></html>', 'web page'),
    'html after a blank': (b'\r\n  <html><body>Access denied</body></html>', 'web page'),
    'git-lfs': (b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 102400\n', 'git-LFS pointer'),
    'json': (b'{"error": "not found"}', 'JSON'),
    'gzip': (gzipped(), 'gzip'),
    'tar': (tarred(), 'tar archive'),
    'hdf5': (b'\x89HDF\r\n\x1a\n' + bytes(100), 'HDF5'),
    'noise': (random.Random(0).randbytes(1000), 'begins with'),
    'plain pickle': (pickle.dumps({'a': 1}, 4), 'not of torch.save'),
    'other archive': (archived(**{'a.txt': b'x'}), 'no data.pkl'),
    'TorchScript': (archived(**{'m/data.pkl': b'\x80\x02}.', 'm/constants.pkl': b''}), 'TorchScript'),
    'two models': (archived(**{'m/data.pkl': b'\x80\x02}.', 'n/data.pkl': b'\x80\x02}.'}), 'no data.pkl'),
    'no numpy array': (archived(**{'x.npy': b'x' * 200}), 'not a numpy array'),
    'safetensors without an end': (struct.pack('<Q', 1 << 40) + b'{"x":', 'safetensors'),
    'safetensors beyond the end': (
        struct.pack('<Q', 58) + b'{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}   ' + bytes(8), 'safetensors',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', OTHER_FILES)
def test_other_files(tmp_path, name):
    content, message = OTHER_FILES[name]
    (tmp_path / 'x.pth').write_bytes(content)
    refused(tmp_path / 'x.pth', message)


def huge_npy() -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {'descr': '<f4', 'fortran_order': False, 'shape': (1 << 40,)})
    return stream.getvalue()


def test_hostile_npz(tmp_path):
    np.savez(tmp_path / 'x.npz', x=np.array([{'a': 1}], dtype=object))
    refused(tmp_path / 'x.npz', 'dtype object')
    (tmp_path / 'y.npz').write_bytes(archived(**{'x.npy': huge_npy()}))
    refused(tmp_path / 'y.npz', 'declares')


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        flaxzoo.read_weights(tmp_path / 'none.pth')


model = torch.nn.Linear(3, 2)
OTHER_CONTENT = {
    'optimizer': (torch.optim.Adam(model.parameters()).state_dict(), "optimizer's state"),
    'list': ([torch.ones(1)], 'holds a list'),
    'tensor': (torch.ones(1), 'holds a tensor'),
    'number': (3, 'holds a int'),
    'empty dict': ({}, 'no state dict.*nothing'),
    'numbers': ({'epoch': 1, 'loss': 0.5}, 'no state dict.*epoch, loss'),
    'tensors and others': ({'x': torch.ones(1), 'lr': 0.1}, 'no tensors: lr'),
    'two networks': ({'generator': model.state_dict(), 'critic': model.state_dict()}, 'several.*generator, critic'),
    'names that are numbers': ({0: torch.ones(1)}, 'no'),
    'whole module': (
        torchvision.models.squeezenet1_1(),
        r'models\.squeezenet\.SqueezeNet.*state_dict\(\)',
    ),
    'sparse': ({'x': torch.eye(2).to_sparse()}, '_rebuild_sparse_tensor'),
    'numpy': ({'x': np.ones(2)}, r'numpy\.\w+'),
}


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('name', OTHER_CONTENT)
def test_other_content(tmp_path, name, zipped):
    content, message = OTHER_CONTENT[name]
    torch.save(content, tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
    refused(tmp_path / 'x.pth', message)
