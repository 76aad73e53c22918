"""Files that are damaged, or something else than weights: one clear error each, nothing executed, nothing allocated."""

import copy
import gzip
import io
import pickle
import random
import struct
import tarfile
import zipfile

import flax.serialization
import numpy as np
import pytest
import safetensors.numpy
import torch

import flaxzoo
from tests.weights.forge import archive_of, item, refused, tensor


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
        if name in ('zip.pth', 'x.npz'):
            assert read in (None, expected)
    assert found > 50


def test_flipped_bit_in_a_tensor_of_an_archive(tmp_path):
    content = samples(tmp_path)['zip.pth']
    values = flaxzoo.read_weights(tmp_path / 'zip.pth')['a.weight'].tobytes()
    flipped = bytearray(content)
    flipped[content.index(values)] ^= 1
    (tmp_path / 'zip.pth').write_bytes(flipped)
    refused(tmp_path / 'zip.pth', "checksum of 'zip/data/0' is")


@pytest.mark.parametrize('place', [0, -1], ids=['entry', 'directory'])
def test_flipped_bit_in_a_name_of_an_archive(tmp_path, place):
    """Names have no checksum, but each is written twice."""
    content = bytearray(samples(tmp_path)['x.npz'])
    starts = [i for i in range(len(content)) if content[i:].startswith(b'a.bias.npy')]
    content[starts[place]] ^= 1
    (tmp_path / 'x.npz').write_bytes(content)
    refused(tmp_path / 'x.npz', 'there is no entry where')


def test_names_of_entries_in_any_alphabet(tmp_path):
    arrays = {'größe': np.ones(2), '幅': np.zeros(3), 'é/ü': np.ones(1)}
    np.savez(tmp_path / 'x.npz', **arrays)
    assert flaxzoo.read_weights(tmp_path / 'x.npz').keys() == arrays.keys()


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
    'compressed tar': (b'BZh91AY&SY' + bytes(100), 'compressed; unpack'),
    'npy': (b'\x93NUMPY\1\0v\0' + bytes(100), 'single array'),
    'onnx': (b'\x08\x07\x12\x07pytorch' + bytes(100), 'ONNX'),
    'tflite': (b'\x1c\0\0\0TFL3' + bytes(100), 'TFLite'),
    'flax': (flax.serialization.to_bytes({'params': {'x': np.ones(3)}}), r'msgpack.*flaxzoo\.save'),
    'image': (b'\x89PNG\r\n\x1a\n' + bytes(100), 'an image'),
    'keras': (archived(**{'config.json': b'{}', 'model.weights.h5': b'x'}), 'Keras'),
    'zipped weights': (archived(**{'x.pth': b'x'}), 'the file to read is in it; unpack'),
    'exported program': (archived(**{'a/archive_format': b'pt2', 'a/models/model.json': b'{}'}), r'torch\.export'),
    'no entries': (archived(), 'it holds nothing'),
    'no tensors': (struct.pack('<Q', 2) + b'{}', 'no state dict.*nothing'),
    'impossible shape': (
        struct.pack('<Q', 80)
        + b'{"x":{"dtype":"F32","shape":[0,4611686018427387904,8],"data_offsets":[0,0]}}'.ljust(80),
        'impossible shape|safetensors',
    ),
    'hdf5': (b'\x89HDF\r\n\x1a\n' + bytes(100), 'HDF5'),
    'noise': (random.Random(0).randbytes(1000), 'begins with'),
    'plain pickle': (pickle.dumps({'a': 1}, 4), 'not of torch.save'),
    'other archive': (archived(**{'a.txt': b'x'}), 'without the data.pkl of torch.save; it holds a.txt'),
    'TorchScript': (archived(**{'m/data.pkl': b'\x80\x02}.', 'm/constants.pkl': b''}), 'TorchScript'),
    'two models': (archived(**{'m/data.pkl': b'\x80\x02}.', 'n/data.pkl': b'\x80\x02}.'}), 'without the data.pkl'),
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


def npy(header: str) -> bytes:
    return b'\x93NUMPY\1\0' + struct.pack('<H', len(header)) + header.encode() + bytes(16)


@pytest.mark.parametrize('header', [
    '[' * 5000, '-' * 9000, '(' * 150 + ')' * 150, "{'descr': [[[]]], 'fortran_order': False, 'shape': (4,)}", '{', '"',
    *(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}" for shape in (
        '(-2, -3)', '(True, 4)', '(4.0,)', '4', '(0, 1 << 62)', f'(0, {1 << 62}, 8)', f'(0, {1 << 70})', '(1,) * 9',
        (1,) * 99)),
], ids=range(15))  # fmt: skip
def test_headers_of_npz(tmp_path, header):
    (tmp_path / 'x.npz').write_bytes(archived(**{'x.npy': npy(header)}))
    refused(tmp_path / 'x.npz', 'not a numpy array|impossible shape|declares')


def test_folders(tmp_path):
    for name, message in {
        'empty': 'it holds nothing', 'a.txt': r'it holds a\.txt', 'x.pth': r'give one in it: x\.pth',
        'model.safetensors': r'give one in it: model\.safetensors', '_CHECKPOINT_METADATA': 'orbax',
        'data.pkl': 'unpacked', 'saved_model.pb': 'TensorFlow',
    }.items():  # fmt: skip
        folder = tmp_path / f'folder of {name}'
        folder.mkdir()
        if name != 'empty':
            (folder / name).write_text('x')
        refused(folder, f'a folder, not a file.*{message}')


@pytest.mark.filterwarnings('ignore:.torch.jit')
def test_torchscript(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), tmp_path / 'x.pt')
    refused(tmp_path / 'x.pt', r'TorchScript.*torch\.save\(torch\.jit\.load\(')


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
    'numbers': ({'epoch': 1, 'loss': 0.5}, r'no state dict.*epoch \(int\), loss \(float\)'),
    'tensors and others': ({'x': torch.ones(1), 'lr': 0.1}, 'no tensors: lr'),
    'two networks': (
        {'generator': model.state_dict(), 'critic': model.state_dict()},
        "several.*'generator', 'critic'; name one: key='generator'",
    ),
    'names that are numbers': ({0: torch.ones(1)}, 'no'),
    'sparse': ({'x': torch.eye(2).to_sparse()}, '_rebuild_sparse_tensor'),
    'numpy': ({'x': np.ones(2)}, r'numpy\.\w+'),
}


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('name', OTHER_CONTENT)
def test_other_content(tmp_path, name, zipped):
    content, message = OTHER_CONTENT[name]
    torch.save(content, tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
    refused(tmp_path / 'x.pth', message)
