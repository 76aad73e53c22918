"""Every file that torch, safetensors and numpy write is read to the same numbers, without torch."""

import io
import json
import logging
import pickle
import subprocess
import sys
import time
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import torchvision

import flaxzoo
from flaxzoo.weights import hub
from flaxzoo.weights.torch_file import DTYPES
from tests.weights.forge import archive_of, integer, item, refused, tensor

FORMATS = {'zip': True, 'legacy': False}
# The legacy format has no storages of these types.
ZIP_ONLY = ('uint16', 'uint32', 'uint64')


@pytest.fixture(params=FORMATS)
def write(request, tmp_path):
    """Writes an object with torch.save and returns the path."""

    def write(content, **options):
        path = tmp_path / 'weights.pth'
        torch.save(content, path, _use_new_zipfile_serialization=FORMATS[request.param], **options)
        return path

    return write


def same_bits(array: np.ndarray, tensor: torch.Tensor) -> bool:
    assert array.shape == tuple(tensor.shape)
    return array.tobytes() == tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def pickled(path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return next(archive.read(name) for name in archive.namelist() if name.endswith('/data.pkl'))


@pytest.mark.parametrize('name', DTYPES)
def test_every_dtype(write, name):
    values = torch.tensor([[0, 1, 2], [3, 5, 100]]).to(getattr(torch, name))
    read = flaxzoo.read_weights(write({'x': values, 'one': values[1, 2]}))
    assert read['x'].dtype == DTYPES[name]
    assert same_bits(read['x'], values)
    assert read['one'].shape == ()
    assert same_bits(read['one'], values[1, 2])


def test_views_share_their_storage(write):
    base = torch.arange(24.0).reshape(4, 6)
    views = {
        'base': base,
        'transposed': base.T,
        'strided': base[1:3, ::2],
        'offset': base[2:],
        'scalar': base[2, 3],
        'empty': base[:0],
        'expanded': base[0].expand(3, 6),
        'permuted': torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
    }
    read = flaxzoo.read_weights(write(views))
    assert list(read) == list(views)
    for name, view in views.items():
        np.testing.assert_array_equal(read[name], view.numpy(), err_msg=name)
    for name in ('transposed', 'strided', 'offset'):
        assert np.shares_memory(read['base'], read[name]), name
    assert not np.shares_memory(read['base'], read['permuted'])


def test_writing_to_an_array_leaves_the_file(write):
    path = write({'x': torch.zeros(1000)})
    before = path.read_bytes()
    flaxzoo.read_weights(path)['x'][:] = 1
    assert path.read_bytes() == before


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_state_dict_with_metadata_parameters_and_buffers(write, protocol):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    content = module.state_dict(keep_vars=True)
    assert content._metadata
    content['buffer'] = torch.nn.Buffer(torch.ones(3))
    content['attributes'] = torch.nn.Parameter(torch.ones(2))
    content['attributes'].note = 'kept by torch'
    read = flaxzoo.read_weights(write(content, pickle_protocol=protocol))
    assert list(read) == list(content)
    assert all(same_bits(read[key], content[key]) for key in content)


@pytest.mark.parametrize('wrap', [
    lambda weights: {'state_dict': weights, 'epoch': 3},
    lambda weights: {'model': weights, 'optimizer': {'state': {0: {'exp_avg': torch.ones(2)}}, 'param_groups': []}},
    lambda weights: {'net': weights, 'acc': 93.1, 'shape': torch.Size([1, 2]), 'device': torch.device('cpu')},
    lambda weights: {'state_dict': {'x': torch.zeros(1)}, 'state_dict_ema': weights},
    lambda weights: {f'module.{key}': value for key, value in weights.items()},
    lambda weights: {'model': {f'_orig_mod.module.{key}': value for key, value in weights.items()}},
    lambda weights: {'model': {f'module._orig_mod.{key}': value for key, value in weights.items()}},
], ids=['state_dict', 'model', 'any-name', 'averaged', 'DataParallel', 'compiled', 'parallel-compiled'])  # fmt: skip
def test_checkpoints_are_unwrapped(write, wrap):
    weights = {'fc.weight': torch.randn(2, 3), 'fc.bias': torch.randn(2)}
    read = flaxzoo.read_weights(write(wrap(weights)))
    assert list(read) == list(weights)
    assert all(same_bits(read[key], weights[key]) for key in weights)


def test_the_choice_of_averaged_weights_is_logged(tmp_path, caplog):
    torch.save({'model': {'x': torch.zeros(1)}, 'model_ema': {'x': torch.ones(1)}}, tmp_path / 'x.pth')
    with caplog.at_level(logging.WARNING, 'flaxzoo'):
        assert flaxzoo.read_weights(tmp_path / 'x.pth')['x'] == 1
    assert 'model_ema' in caplog.text


def test_a_prefix_of_some_names_stays(write):
    assert list(flaxzoo.read_weights(write({'module.a': torch.ones(1), 'b': torch.ones(1)}))) == ['module.a', 'b']


def test_python_2(tmp_path):
    """str of Python 2, also of bytes, an OrderedDict as a list of pairs, and the first _rebuild_tensor."""
    storage = b'(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQ'
    tensor = b'ctorch._utils\n_rebuild_tensor\n(' + storage + b'K\x00K\x02K\x02\x86K\x02K\x01\x86tR'
    content = b'\x80\x02ccollections\nOrderedDict\n(](](U\x01w' + tensor + b'e](U\x0e_x_extra_stateU\x02\xff\xfeeetR.'
    path = tmp_path / 'old.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', content)
        archive.writestr('archive/data/0', np.arange(4, dtype=np.float32).tobytes())
    read = flaxzoo.read_weights(path)
    np.testing.assert_array_equal(read['w'], [[0, 1], [2, 3]])


def test_a_stride_that_is_not_used(tmp_path):
    """Of a dimension of one element, or of a tensor of none."""
    odd = tensor(shape=b'K\x01K\x04\x86', strides=integer(1 << 70) + b'K\x01\x86')
    np.testing.assert_array_equal(flaxzoo.read_weights(archive_of(tmp_path / 'x.pth', item(odd)))['x'], [[0, 1, 2, 3]])
    none = tensor(shape=b'K\x00\x85', strides=integer(1 << 70) + b'\x85')
    assert flaxzoo.read_weights(archive_of(tmp_path / 'y.pth', item(none)))['x'].shape == (0,)


def test_archive_without_checksums(tmp_path, caplog):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'x': torch.arange(5.0)}, tmp_path / 'x.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(flaxzoo.read_weights(tmp_path / 'x.pth')['x'], np.arange(5))
    assert 'x.pth: the archive has no checksums' in caplog.text


def shard(folder, kind='safetensors'):
    """Two files and their index; what is in them."""
    parts = {f'model-0000{i}-of-00002.{kind}': {f'{i}.weight': torch.randn(2, i)} for i in (1, 2)}
    for part, weights in parts.items():
        safetensors.torch.save_file(weights, folder / part) if kind == 'safetensors' else torch.save(
            weights, folder / part
        )
    weight_map = {name: part for part, weights in parts.items() for name in weights}
    write_index(folder, weight_map, kind)
    return parts, weight_map


def write_index(folder, weight_map, kind='safetensors'):
    (folder / f'model.{kind}.index.json').write_text(json.dumps({'metadata': {}, 'weight_map': weight_map}, indent=2))


@pytest.mark.parametrize('kind', ['safetensors', 'bin'])
def test_files_in_several_parts(tmp_path, kind):
    parts, _ = shard(tmp_path, kind)
    expected = {name: value for weights in parts.values() for name, value in weights.items()}
    for path in (tmp_path, tmp_path / f'model.{kind}.index.json'):
        read = flaxzoo.read_weights(path)
        assert read.keys() == expected.keys()
        assert all(same_bits(read[name], value) for name, value in expected.items())


def test_parts_that_are_not_what_the_index_says(tmp_path):
    parts, weight_map = shard(tmp_path)
    first, second = parts
    outside = tmp_path.parent / 'x.safetensors'
    safetensors.torch.save_file({'1.weight': torch.ones(1)}, outside)
    for bad in (
        f'../{outside.name}',
        str(outside),
        f'a\\..\\..\\{outside.name}',
        '..',
        '',
        3,
        ['b'],
        'model.safetensors.index.json',
    ):
        write_index(tmp_path, {**weight_map, '1.weight': bad})
        refused(tmp_path, 'not a file beside it')
    for bad in ({**weight_map, 'other': first}, {'1.weight': first, '2.weight': first}):
        write_index(tmp_path, bad)
        refused(tmp_path, f"'{first}' does not hold the tensors")
    for bad in ('{"weight_map": 3}', '{}', '{', '{"weight_map": [3]}', '{"a":' * 5000):
        (tmp_path / 'model.safetensors.index.json').write_text(bad)
        refused(tmp_path, 'not an index')
    write_index(tmp_path, weight_map)
    (tmp_path / second).write_bytes((tmp_path / second).read_bytes()[:-1])
    refused(tmp_path, f'{second}: .*truncated')
    (tmp_path / second).unlink()
    refused(tmp_path, f"the part '{second}' is missing")


@pytest.mark.parametrize('name', sorted(set(DTYPES) - {'complex128', 'float8_e4m3fnuz', 'float8_e5m2fnuz'}))
def test_safetensors(tmp_path, name):
    values = torch.tensor([[0, 1, 2], [3, 5, 100]]).to(getattr(torch, name))
    tensors = {'b': values, 'a': torch.ones(3), 'scalar': torch.tensor(7.0), 'empty': torch.empty(0, 3)}
    safetensors.torch.save_file(tensors, tmp_path / 'x.safetensors', {'format': 'pt', 'note': 'x'})
    read = flaxzoo.read_weights(tmp_path / 'x.safetensors')
    assert read.keys() == tensors.keys()
    assert read['b'].dtype == DTYPES[name]
    assert all(same_bits(read[key], tensors[key]) for key in tensors)


def test_npz(tmp_path):
    arrays = {
        'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
        'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        'scalar': np.int64(3),
        'empty': np.empty((0, 2), np.float16),
        'bool': np.array([True, False]),
        'big': np.arange(3, dtype='>i4'),
    }
    np.savez(tmp_path / 'x.npz', **arrays)
    read = flaxzoo.read_weights(str(tmp_path / 'x.npz'))
    assert read.keys() == arrays.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(read[key], value)
        assert read[key].dtype == value.dtype


def test_the_format_is_told_by_the_content(tmp_path):
    safetensors.numpy.save_file({'x': np.ones(3)}, tmp_path / 'x.pth')
    assert list(flaxzoo.read_weights(tmp_path / 'x.pth')) == ['x']
    torch.save({'y': torch.ones(3)}, tmp_path / 'y.safetensors')
    assert list(flaxzoo.read_weights(tmp_path / 'y.safetensors')) == ['y']


@pytest.mark.parametrize('name', ['squeezenet1_1', 'mobilenet_v3_small', 'shufflenet_v2_x0_5', 'mnasnet0_5'])
def test_torchvision_models(write, name):
    check_torchvision(write, name)


@pytest.mark.slow
@pytest.mark.parametrize('name', torchvision.models.list_models(module=torchvision.models))
def test_every_torchvision_model(write, name):
    check_torchvision(write, name)


def check_torchvision(write, name):
    options = {'init_weights': False} if name in ('googlenet', 'inception_v3') else {}
    # RegNet computes its widths by tensors, so it cannot be built without memory.
    with torch.device('cpu' if name.startswith('regnet') else 'meta'):
        module = torchvision.models.get_model(name, weights=None, **options)
    shapes = {key: torch.empty_like(value, device='meta') for key, value in module.state_dict().items()}
    del module
    generator = torch.Generator().manual_seed(0)
    for key, value in shapes.items():
        random = value.is_floating_point()
        shapes[key] = (
            torch.rand(value.shape, generator=generator) if random else torch.full(value.shape, 3, dtype=value.dtype)
        )
    path = write(shapes)
    read = flaxzoo.read_weights(path)
    assert list(read) == list(shapes)
    for key, value in shapes.items():
        assert read[key].dtype == value.numpy().dtype
        assert np.array_equal(read[key], value.numpy()), key
    path.unlink()


MEASURE = """
import json, sys
import flaxzoo
def memory(kind):
    return 1024 * int(next(line for line in open('/proc/self/status') if line.startswith(kind)).split()[1])
flaxzoo.read_weights(sys.argv[1])  # everything is imported
peaks = []
for path in sys.argv[2:]:
    open('/proc/self/clear_refs', 'w').write('5')  # forget the peak so far
    before = memory('VmRSS')
    weights = flaxzoo.read_weights(path)
    read = memory('VmHWM')
    total = sum(float(value.sum()) for value in weights.values())  # touches every page
    del weights
    peaks.append((read, memory('VmHWM') - before))
print(json.dumps(peaks))
"""


def write_all(folder, weights):
    """The same weights in the three formats that can hold a VGG-16."""
    torch.save(weights, folder / 'zip.pth')
    torch.save(weights, folder / 'legacy.pth', _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(weights, folder / 'x.safetensors')
    torch.save({'x': torch.ones(1)}, folder / 'small.pth')
    return [str(folder / name) for name in ('zip.pth', 'x.safetensors', 'legacy.pth')]


def peak_memory(folder, weights):
    """Peak memory over file size for each file: of the whole process when it is read, and used on top of it with it."""
    paths = write_all(folder, weights)
    command = [sys.executable, '-c', MEASURE, str(folder / 'small.pth'), *paths]
    peaks = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    size = sum(value.nbytes for value in weights.values())
    return [(read / size, used / size) for read, used in peaks]


linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='the peak is read from /proc')


@linux
def test_peak_memory(tmp_path):
    ratios = peak_memory(tmp_path, {f'{i}': torch.ones(4_000_000) for i in range(5)})
    assert all(0.9 < used < 1.3 for _, used in ratios), ratios


@linux
@pytest.mark.slow
def test_peak_memory_of_vgg16(tmp_path):
    with torch.device('meta'):
        shapes = torchvision.models.vgg16().state_dict()
    ratios = peak_memory(tmp_path, {key: torch.ones(value.shape) for key, value in shapes.items()})
    print('peak memory over file size, process and added (zip, safetensors, legacy):', ratios)
    assert all(read < 1.3 and 0.9 < used < 1.3 for read, used in ratios), ratios


def test_unaligned_arrays(tmp_path):
    """The legacy format aligns nothing; numpy, jax and torch take such arrays all the same."""
    weights = {'a': torch.arange(7, dtype=torch.float64), 'b': torch.arange(7).to(torch.bfloat16), 'c': torch.eye(3)}
    torch.save(weights, tmp_path / 'x.pth', _use_new_zipfile_serialization=False)
    read = flaxzoo.read_weights(tmp_path / 'x.pth')
    assert not all(value.flags.aligned for value in read.values())
    for key, value in weights.items():
        expected = value.double().numpy()
        np.testing.assert_array_equal(read[key].astype(np.float64) * 2, expected * 2)
        np.testing.assert_array_equal(np.asarray(jnp.asarray(read[key])).astype(np.float64), expected)
    np.testing.assert_array_equal(torch.from_numpy(read['c']).T.contiguous().numpy(), np.eye(3))


def test_reading_needs_no_pickle_module_to_resolve_names(tmp_path, monkeypatch):
    """Nothing but our own interpreter sees the pickle."""
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / 'x.pth')
    monkeypatch.setattr(pickle, 'Unpickler', None)
    monkeypatch.setattr(pickle, 'loads', None)
    monkeypatch.setattr(pickle, '_Unpickler', None)
    assert list(flaxzoo.read_weights(tmp_path / 'x.pth')) == ['weight', 'bias']
    assert pickled(tmp_path / 'x.pth').startswith(b'\x80\x02')
    assert io.BytesIO(pickled(tmp_path / 'x.pth')).read(1)


def test_an_index_of_numbers_that_collide(tmp_path):
    """The numbers have one hash: as keys of a dict a hundred thousand of them would take a minute."""
    index = tmp_path / 'model.safetensors.index.json'
    write_index(tmp_path, {f'a{i}': i * ((1 << 61) - 1) for i in range(100_000)})
    start = time.process_time()
    refused(index, 'names .0., which is not a file beside it')
    with pytest.raises(flaxzoo.DownloadError, match='not a file beside it'):
        hub._shards(index)
    assert time.process_time() - start < 5
