"""`save`: variables or a state dict as a file with torch's names, which PyTorch loads."""

import json
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import (
    BINPERSID,
    BINUNICODE,
    EMPTY_DICT,
    EMPTY_TUPLE,
    GLOBAL,
    LONG1,
    MARK,
    NEWFALSE,
    PROTO,
    REDUCE,
    SETITEMS,
    STOP,
    TUPLE,
)
from typing import Any

import numpy as np

from flaxzoo.weights.convert import to_torch
from flaxzoo.weights.errors import WeightsError


def save(path: str | os.PathLike, variables: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
    """Writes the variables of a network under torch's names, so that PyTorch can load them.

        model.load_state_dict(safetensors.torch.load_file(path), strict=True)

    The file appears whole or not at all: it is written under another name, flushed to disk and renamed.

    Args:
      path: `.safetensors`; or `.pth`/`.pt` for `torch.load`, or `.npz` for `numpy.load`.
      variables: {'params': ..., 'batch_stats': ...}.
      metadata: kept in the header of a safetensors file; values that are no strings are written as JSON.

    Raises:
      ConversionError: the variables have no torch names.
      WeightsError: another suffix, metadata for a format that has none, or a dtype that the format lacks.
    """
    write_weights(path, to_torch(variables), metadata)


def write_weights(
    path: str | os.PathLike, weights: Mapping[str, np.ndarray], metadata: Mapping[str, Any] | None = None
) -> None:
    """`save` for {torch name: array}."""
    path = Path(path)
    write = WRITERS.get(path.suffix)
    if write is None:
        raise WeightsError(f'{path}: the suffix must be one of {", ".join(WRITERS)}')
    if metadata and write is not _write_safetensors:
        raise WeightsError(f'{path}: only .safetensors files hold metadata')
    partial = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        write(partial, weights, metadata or {})
        with partial.open('rb') as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_safetensors(path: Path, weights: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file

    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    # 'pt' tells readers that names and layouts are torch's.
    save_file({key: np.asarray(value, order='C') for key, value in weights.items()}, path, {'format': 'pt', **text})


def _write_npz(path: Path, weights: Mapping[str, np.ndarray], _: Mapping[str, Any]) -> None:
    for key, value in weights.items():
        if value.dtype.kind not in 'biufc':
            raise WeightsError(f'{key!r} has the dtype {value.dtype}, which .npz cannot hold')
    with path.open('wb') as file:
        np.savez(file, **weights)


def _write_torch(path: Path, weights: Mapping[str, np.ndarray], _: Mapping[str, Any]) -> None:
    """The zip format of torch.save: a pickle of views and the storages' bytes."""
    from flaxzoo.weights.torch_file import DTYPES, STORAGES

    names = {DTYPES[dtype]: storage for storage, dtype in STORAGES.items()}
    for key, value in weights.items():
        if value.dtype not in names:
            raise WeightsError(f'{key!r} has the dtype {value.dtype}, which is not written to .pth')
    items = [_item(key, value, names[value.dtype], str(i)) for i, (key, value) in enumerate(weights.items())]
    content = b''.join([PROTO, b'\2', EMPTY_DICT, MARK, *items, SETITEMS, STOP])
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
        archive.writestr('archive/data.pkl', content)
        archive.writestr('archive/byteorder', 'little')
        for i, value in enumerate(weights.values()):
            with archive.open(f'archive/data/{i}', 'w', force_zip64=True) as entry:
                entry.write(value.reshape(-1).view(np.uint8))
        archive.writestr('archive/version', '3\n')


REBUILD = GLOBAL + b'torch._utils\n_rebuild_tensor_v2\n'
HOOKS = GLOBAL + b'collections\nOrderedDict\n' + EMPTY_TUPLE + REDUCE


def _item(key: str, value: np.ndarray, storage: str, number: str) -> bytes:
    """The pickle of one item: key, _rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())."""
    strides = [int(np.prod(value.shape[axis + 1 :], dtype=np.int64)) for axis in range(value.ndim)]
    kind = GLOBAL + f'torch\n{storage}\n'.encode()
    identity = [MARK, _text('storage'), kind, _text(number), _text('cpu'), _integer(value.size), TUPLE, BINPERSID]
    arguments = [*identity, _integer(0), _integers(value.shape), _integers(strides), NEWFALSE, HOOKS]
    return b''.join([_text(key), REBUILD, MARK, *arguments, TUPLE, REDUCE])


def _text(text: str) -> bytes:
    data = text.encode()
    return BINUNICODE + struct.pack('<I', len(data)) + data


def _integer(value: int) -> bytes:
    return LONG1 + b'\x08' + struct.pack('<q', value)


def _integers(values: Any) -> bytes:
    return MARK + b''.join(_integer(value) for value in values) + TUPLE


WRITERS: dict[str, Callable[[Path, Mapping[str, np.ndarray], Mapping[str, Any]], None]] = {
    '.safetensors': _write_safetensors,
    '.pth': _write_torch,
    '.pt': _write_torch,
    '.npz': _write_npz,
}
