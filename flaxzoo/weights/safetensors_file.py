"""Files of safetensors: read as memory-mapped arrays, written so that equal weights make equal bytes.

Those that are written here hold a SHA-256 of their tensors (names, dtypes, shapes and numbers) in the metadata, which
is verified when they are read. Format: https://github.com/huggingface/safetensors#format.
"""

import contextlib
import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flaxzoo.weights.errors import WeightsError
from flaxzoo.weights.mapped import MappedFile, check_shape
from flaxzoo.weights.torch_file import DTYPES

CODES = {  # its names of dtypes: torch's
    'BF16': 'bfloat16',
    'BOOL': 'bool',
    'C64': 'complex64',
    'F8_E4M3': 'float8_e4m3fn',
    'F8_E5M2': 'float8_e5m2',
    **{f'F{bits}': f'float{bits}' for bits in (16, 32, 64)},
    **{f'I{bits}': f'int{bits}' for bits in (8, 16, 32, 64)},
    **{f'U{bits}': f'uint{bits}' for bits in (8, 16, 32, 64)},
}
DIGEST = 'flaxzoo.sha256'


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors, in the order of their bytes.

    The library checks the header and that the tensors fill the file; mapping them saves it a copy of everything.

    Raises:
      WeightsError: the file is damaged or has tensors of other dtypes.
    """
    file = MappedFile(path)
    weights, entries = {}, []
    with _opened(path) as header:
        position = 8 + int.from_bytes(file.view(0, 8), 'little')
        for name in header.offset_keys():
            tensor = header.get_slice(name)
            code, shape = tensor.get_dtype(), tuple(tensor.get_shape())
            if code not in CODES:
                raise WeightsError(f'{name[:200]!r} has the dtype {code}, which is not supported')
            dtype = DTYPES[CODES[code]]
            check_shape(shape, dtype.itemsize)
            count = int(np.prod(shape, dtype=object))
            weights[name] = file.array(position, count, dtype).reshape(shape)
            size = count * dtype.itemsize
            entries.append((name, code, shape, file.chunks(position, size)))
            position += size
        expected = (header.metadata() or {}).get(DIGEST)
    if expected is not None and expected != _digest(entries):
        raise WeightsError('the file is damaged: its tensors are not those whose SHA-256 is in its metadata')
    return weights


def metadata(path: Path) -> dict[str, str]:
    """The metadata in the header."""
    with _opened(path) as header:
        return dict(header.metadata() or {})


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The library's view of a file, whose errors are WeightsErrors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, 'np') as file:
            yield file
    except SafetensorError as error:
        raise WeightsError(f'not a valid safetensors file, or a truncated one ({error})') from error


def write(path: Path, weights: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a file whose bytes depend on nothing but the weights and the metadata.

    Raises:
      WeightsError: the format has no such dtype.
      OSError: the file cannot be written.
    """
    codes = {DTYPES[name]: code for code, name in CODES.items()}
    for name, value in weights.items():
        if value.dtype not in codes:
            raise WeightsError(f'{name!r} has the dtype {value.dtype}, which .safetensors cannot hold')
    # The widest first, so that all are aligned, as the library does it.
    names = sorted(weights, key=lambda name: (-weights[name].dtype.itemsize, name))
    arrays = {name: np.asarray(weights[name], order='C') for name in names}
    entries = [(name, codes[value.dtype], value.shape, [_bytes(value)]) for name, value in arrays.items()]
    header: dict[str, Any] = {'__metadata__': dict(sorted({**metadata, DIGEST: _digest(entries)}.items()))}
    end = 0
    for name, code, shape, _ in entries:
        start, end = end, end + arrays[name].nbytes
        header[name] = {'dtype': code, 'shape': shape, 'data_offsets': [start, end]}
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    with path.open('wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        for value in arrays.values():
            file.write(_bytes(value))


def _bytes(value: np.ndarray) -> memoryview:
    return value.reshape(-1).view(np.uint8).data


def _digest(entries: Iterable[tuple[str, str, tuple[int, ...], Iterable[bytes]]]) -> str:
    """SHA-256 of tensors (name, code of the dtype, shape, bytes in pieces) in the order in which they lie."""
    digest = hashlib.sha256()
    for name, code, shape, pieces in entries:
        digest.update(json.dumps([name, code, shape]).encode())
        for piece in pieces:
            digest.update(piece)
    return digest.hexdigest()
