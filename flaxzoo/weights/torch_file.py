"""Files of torch.save, read without torch: the zip format (torch >= 1.6) and the one before it.

Both hold a pickle whose tensors are (storage, offset, shape, strides), and the storages' bytes: in the zip format each
is an entry `data/KEY` with a CRC32, in the legacy format they follow the pickles one after another, with no checksum.
"""

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from flaxzoo.weights.errors import WeightsError
from flaxzoo.weights.mapped import Archive, MappedFile, strided
from flaxzoo.weights.other_files import describe_archive
from flaxzoo.weights.pickles import Opaque, call, loads, set_item

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

DTYPES = {
    'float64': np.dtype(np.float64),
    'float32': np.dtype(np.float32),
    'float16': np.dtype(np.float16),
    'bfloat16': np.dtype(ml_dtypes.bfloat16),
    'float8_e4m3fn': np.dtype(ml_dtypes.float8_e4m3fn),
    'float8_e4m3fnuz': np.dtype(ml_dtypes.float8_e4m3fnuz),
    'float8_e5m2': np.dtype(ml_dtypes.float8_e5m2),
    'float8_e5m2fnuz': np.dtype(ml_dtypes.float8_e5m2fnuz),
    'complex64': np.dtype(np.complex64),
    'complex128': np.dtype(np.complex128),
    'int64': np.dtype(np.int64),
    'int32': np.dtype(np.int32),
    'int16': np.dtype(np.int16),
    'int8': np.dtype(np.int8),
    'uint64': np.dtype(np.uint64),
    'uint32': np.dtype(np.uint32),
    'uint16': np.dtype(np.uint16),
    'uint8': np.dtype(np.uint8),
    'bool': np.dtype(np.bool_),
}
STORAGES = {
    'DoubleStorage': 'float64',
    'FloatStorage': 'float32',
    'HalfStorage': 'float16',
    'BFloat16Storage': 'bfloat16',
    'ComplexFloatStorage': 'complex64',
    'ComplexDoubleStorage': 'complex128',
    'LongStorage': 'int64',
    'IntStorage': 'int32',
    'ShortStorage': 'int16',
    'CharStorage': 'int8',
    'ByteStorage': 'uint8',
    'BoolStorage': 'bool',
}
# Storages whose tensors are not read, but whose sizes must be known to find the next.
QUANTISED = {
    'QInt8Storage': 'int8',
    'QUInt8Storage': 'uint8',
    'QInt32Storage': 'int32',
    'QUInt4x2Storage': 'uint8',
    'QUInt2x4Storage': 'uint8',
}


class StorageType(NamedTuple):
    """What a storage class of torch says of its elements; untyped storages count bytes."""

    dtype: np.dtype


class Storage(NamedTuple):
    """`count` elements of `dtype`, found under `key`."""

    key: str
    dtype: np.dtype
    count: int


class Tensor(NamedTuple):
    """A tensor of a file, not read yet; offset and strides in elements of `dtype`."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# A pickled object, in which tensors are `Tensor`s, and the function that reads one.
Content = tuple[Any, Callable[[Tensor], np.ndarray]]


def read_zip(file: MappedFile, archive: Archive) -> Content:
    """Reads a zip-format file. Every entry that is read has its CRC32 verified."""
    pickles = [name for name in archive.entries if name.count('/') == 1 and name.endswith('/data.pkl')]
    if len(pickles) != 1:
        raise WeightsError(f'a zip archive without the data.pkl of torch.save{describe_archive(archive.entries)}')
    folder = pickles[0].removesuffix('data.pkl')
    if f'{folder}constants.pkl' in archive.entries:
        raise WeightsError(
            'a TorchScript archive (torch.jit.save), which is a program and not a state dict; in torch: '
            "torch.save(torch.jit.load(path, map_location='cpu').state_dict(), new_path)"
        )
    if f'{folder}byteorder' in archive.entries and bytes(archive.view(f'{folder}byteorder')) != b'little':
        raise WeightsError('written on a big-endian machine, which is not supported')
    data, _ = loads(archive.view(pickles[0]), NAMES, _storage, size=file.size)

    def find(storage: Storage) -> int:
        start, length = archive.find(f'{folder}data/{storage.key}')
        if length < storage.count * storage.dtype.itemsize:
            raise WeightsError(f'the file is damaged: storage {storage.key} has {length} bytes, not what it declares')
        return start

    return data, _reader(file, find)


def read_legacy(file: MappedFile) -> Content:
    """Reads a legacy file; its length is verified, its numbers cannot be."""
    view = file.view()
    magic, end = loads(view, NAMES, _storage)
    if magic != LEGACY_MAGIC:
        raise WeightsError('a pickle, but not of torch.save; load it where it was written and torch.save the weights')
    protocol, end = loads(view, NAMES, _storage, end)
    system, end = loads(view, NAMES, _storage, end)
    if protocol != LEGACY_PROTOCOL or not isinstance(system, dict):
        raise WeightsError('a file of torch.save in an unknown version of its legacy format')
    if not system.get('little_endian', True):
        raise WeightsError('written on a big-endian machine, which is not supported')
    declared: dict[str, Storage] = {}

    def persistent(identity: tuple) -> Storage | Opaque:
        storage = _storage(identity)
        return declared.setdefault(storage.key, storage) if isinstance(storage, Storage) else storage

    data, end = loads(view, NAMES, persistent, end)
    keys, end = loads(view, NAMES, _storage, end)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in declared for key in keys):
        raise WeightsError('the file is damaged: its list of storages does not fit its tensors')
    starts = {}
    for key in keys:
        file.check(end, 8)
        (count,) = struct.unpack('<q', view[end : end + 8])
        if count != declared[key].count:
            raise WeightsError(f'the file is damaged: storage {key[:50]} has {count} values, not what it declares')
        starts[key] = end + 8
        end += 8 + count * declared[key].dtype.itemsize
        file.check(end, 0)

    def find(storage: Storage) -> int:
        if storage.key not in starts:
            raise WeightsError(f'the file is damaged: storage {storage.key[:50]} is missing')
        return starts[storage.key]

    return data, _reader(file, find)


def _reader(file: MappedFile, find: Callable[[Storage], int]) -> Callable[[Tensor], np.ndarray]:
    """The function that reads a tensor; tensors that share a storage share its memory."""
    arrays: dict[tuple[str, np.dtype], np.ndarray] = {}

    def read(tensor: Tensor) -> np.ndarray:
        storage, dtype = tensor.storage, tensor.dtype
        if (storage.key, dtype) not in arrays:
            count = storage.count * storage.dtype.itemsize // dtype.itemsize
            arrays[storage.key, dtype] = file.array(find(storage), count, dtype)
        return strided(arrays[storage.key, dtype], tensor.offset, tensor.shape, tensor.strides, file.size)

    return read


def _storage(identity: tuple) -> Storage | Opaque:
    """The storage of a persistent id: ('storage', type, key, device, number of elements[, view]).

    The legacy format has ('module', class, source file, source) for the classes of modules too.
    """
    if not isinstance(identity, tuple) or len(identity) not in (4, 5, 6):
        raise WeightsError('the file is damaged: it refers to something that torch.save does not write')
    if identity[0] == 'module' and isinstance(identity[1], Opaque):
        return identity[1]
    if identity[0] != 'storage' or len(identity) == 4:
        raise WeightsError('the file is damaged: it refers to something that torch.save does not write')
    _, kind, key, _, count, *view = identity
    if not isinstance(kind, StorageType | Opaque) or not isinstance(key, str) or type(count) is not int or count < 0:
        raise WeightsError('the file is damaged: a storage is not described as torch.save does')
    if view not in ([], [None]):
        raise WeightsError('the file has views of storages (torch < 0.4), which are not supported; save it anew')
    return Storage(key, kind.dtype, count) if isinstance(kind, StorageType) else kind


def _tensor(storage: Storage | Opaque, offset: int, shape: tuple, strides: tuple, *_: Any) -> Tensor | Opaque:
    """A tensor, or something opaque if that is what its storage is."""
    if isinstance(storage, Opaque):
        return storage
    _expect(storage, Storage)
    return Tensor(storage, storage.dtype, offset, _expect(shape, tuple), _expect(strides, tuple))


def _tensor_with_dtype(
    storage: Storage, offset: int, shape: tuple, strides: tuple, _grad: Any, _hooks: Any, dtype: np.dtype, *_: Any
) -> Tensor | Opaque:
    tensor = _tensor(storage, offset, shape, strides)
    if isinstance(tensor, Opaque) or isinstance(dtype, Opaque):
        return dtype if isinstance(dtype, Opaque) else tensor
    return tensor._replace(dtype=_expect(dtype, np.dtype))


def _parameter(data: Tensor | Opaque, *_: Any) -> Tensor | Opaque:
    return _expect(data, Tensor | Opaque)


def _subclass(rebuild: Any, kind: Any, arguments: tuple, *_: Any) -> Tensor | Opaque:
    """A tensor with Python attributes, such as nn.Buffer: only the tensor counts."""
    if isinstance(rebuild, Opaque):
        return kind if isinstance(kind, Opaque) else rebuild
    if rebuild not in (_tensor, _tensor_with_dtype, _parameter):
        raise WeightsError('refused: the pickle rebuilds something that is not a tensor')
    return call(rebuild, arguments)


def _dict(items: Any = ()) -> dict:
    """Python 3 pickles an OrderedDict empty, Python 2 as a list of pairs.

    The list is emptied, so that a pickle that refers to it again and again has it walked through once.
    """
    result: dict = {}
    if items:
        for key, value in _expect(items, list):
            set_item(result, key, value)
        items.clear()
    return result


def _default_dict(*_: Any) -> dict:
    """What makes missing values is not called; the items follow."""
    return {}


def _set(items: Any = ()) -> Any:
    return items


def _size(shape: tuple = ()) -> tuple:
    return _expect(shape, tuple)


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise WeightsError('the file is damaged: a tensor is not described as torch.save does')
    return value


# All names that mean something in a pickle.
NAMES: dict[str, Any] = {
    'collections.OrderedDict': _dict,
    'collections.defaultdict': _default_dict,
    'builtins.set': _set,
    '__builtin__.set': _set,  # of protocol 2, which torch.save writes
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor_with_dtype,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
    'torch._tensor._rebuild_from_type_v2': _subclass,
    'torch.Size': _size,
    'torch.UntypedStorage': StorageType(np.dtype(np.uint8)),
    'torch.storage.UntypedStorage': StorageType(np.dtype(np.uint8)),
    **{f'torch.{name}': dtype for name, dtype in DTYPES.items()},
    **{f'torch.{name}': StorageType(DTYPES[dtype]) for name, dtype in {**STORAGES, **QUANTISED}.items()},
}
