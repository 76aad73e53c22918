"""`read_weights`: the state dict in a file of torch.save, safetensors or numpy, without torch.

The format is told by the first bytes, not by the name. Nothing in a file is executed and nothing larger than the file
is allocated. What is verified: in zip archives (torch >= 1.6, npz) the CRC32 of every entry that is read; in
safetensors the header, by its library, and the SHA-256 that `flaxzoo.save` puts there; everywhere that every tensor
lies inside the file.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flaxzoo.registry import suggest
from flaxzoo.weights import safetensors_file
from flaxzoo.weights.errors import WeightsError
from flaxzoo.weights.mapped import Archive, MappedFile, check_shape
from flaxzoo.weights.other_files import describe_file, describe_folder
from flaxzoo.weights.shards import read_index
from flaxzoo.weights.state_dicts import StateDict, choose, explain_none, find, listed, parts
from flaxzoo.weights.torch_file import Content, read_legacy, read_zip


def read_weights(path: str | os.PathLike, key: str | None = None) -> dict[str, np.ndarray]:
    """The state dict in a weights file.

    It may lie anywhere in the file: in dicts and lists ('model', 'model.state_dict', ...) or in a module that was saved
    as a whole. Of several, averaged weights are preferred and that is logged. Objects of other classes beside the
    weights are skipped; nothing of them is made or called. Prefixes of wrappers that all names share ('module.',
    '_orig_mod.', 'model.', ...) are removed. The arrays are memory-mapped: they take memory as they are used and may be
    written to, which does not change the file; the file must not be overwritten in place meanwhile.

    Args:
      path: a `.pth`/`.pt` file of torch.save (both formats), `.safetensors`, or `.npz` of numpy.savez; the
        `.index.json` of a file in several parts (or the folder of both).
      key: which state dict, if the file holds several: the keys on the way to it ('model', 'ema.state_dict'), or a
        prefix of names in it ('model.backbone').

    Returns:
      {torch name: array of the shape, layout and dtype in the file}; bfloat16 and float8 are ml_dtypes'.

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: the file is not a weights file, is damaged, or holds no state dict or several.
    """

    def read(content: Any, tensor: Callable[[Any], np.ndarray]) -> dict[str, np.ndarray]:
        return dict(_strict(state_dict(content, tensor, key)))

    return _with(path, read)


def candidates(path: str | os.PathLike, key: str | None = None) -> dict[str, StateDict]:
    """All state dicts in a weights file by the `key` that `read_weights` takes; '' is what lies at the top.

    Large parts of a state dict whose names begin alike are candidates too, without the prefix ('backbone', beside
    others), and so is the part called `key` if it is small. An array is read when it is asked for; `.shapes` gives
    {name: shape} without reading.

    Raises:
      FileNotFoundError, WeightsError: as `read_weights`.
    """

    def read(content: Any, tensor: Callable[[Any], np.ndarray]) -> dict[str, StateDict]:
        def named(value: Any) -> np.ndarray:
            return _naming(path, tensor, value)

        return parts(_found(content, named), key)

    return _with(path, read)


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The metadata in the header of a safetensors file; other formats have none, which gives {}.

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: the file is damaged.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return {}
    with path.open('rb') as file:
        start = file.read(9)
    return _naming(path, safetensors_file.metadata, path) if _is_safetensors(start) else {}


def state_dict(content: Any, read: Callable[[Any], np.ndarray], key: str | None = None) -> StateDict:
    """The state dict under `key` in what a file holds, or the one that `choose` prefers.

    Raises:
      WeightsError: there is none, or several that cannot be told apart.
    """
    found = _found(content, read)
    if key is None:
        return choose(found)
    found = parts(found, key)
    if key not in found:
        raise WeightsError(f'the file has no state dict {key=}{suggest(key, list(found))}; it has {listed(found)}')
    return found[key]


def _found(content: Any, read: Callable[[Any], np.ndarray]) -> dict[str, StateDict]:
    found = find(content, read)
    if not found:
        raise WeightsError(explain_none(content))
    return found


def _strict(weights: StateDict) -> StateDict:
    if weights.others:
        shown = ', '.join(f'{name[:100]} ({kind[:100]})' for name, kind in list(weights.others.items())[:8])
        raise WeightsError(f'not a state dict: these entries are no tensors: {shown}')
    return weights


def _naming(path: str | os.PathLike, function: Callable, *arguments: Any) -> Any:
    """The function's result; its WeightsErrors begin with the path."""
    try:
        return function(*arguments)
    except WeightsError as error:
        raise WeightsError(f'{path}: {error}') from error.__cause__


def _with(path: str | os.PathLike, use: Callable[[Any, Callable[[Any], np.ndarray]], Any]) -> Any:
    """What `use` makes of a file's content and the function that reads a tensor in it."""
    path = Path(path).expanduser()
    return _naming(path, lambda: use(*_read(path)))


def _read(path: Path) -> Content:
    if path.is_dir():
        indices = sorted(path.glob('*.index.json'))
        if len(indices) != 1:
            raise WeightsError(describe_folder(path))
        return _read_shards(indices[0]), _same
    if not path.stat().st_size:
        raise WeightsError('the file is empty (0 bytes)')
    with path.open('rb') as file:
        start = file.read(264)
    if _is_safetensors(start):
        return safetensors_file.read(path), _same
    if start.startswith(b'{') and path.name.endswith('.index.json'):
        return _read_shards(path), _same
    file = MappedFile(path)
    if start.startswith((b'PK\3\4', b'PK\5\6')):  # the second has no entries
        archive = Archive(file)
        if archive.entries and all(name.endswith('.npy') for name in archive.entries):
            return _read_npz(file, archive), _same
        return read_zip(file, archive)
    if start.startswith(b'\x80'):
        return read_legacy(file)
    raise WeightsError(describe_file(start))


def _is_safetensors(start: bytes) -> bool:
    """Whether a header of JSON follows a length of 8 bytes; text has no zero byte."""
    return start[8:9] == b'{' and b'\0' in start[:8]


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    """The weights in the parts that an index names. All lie beside it, and each holds what the index says."""
    weights: dict[str, np.ndarray] = {}
    for part, names in sorted(read_index(index).items()):
        path = index.with_name(part)
        if not path.is_file():
            raise WeightsError(f'the part {part[:200]!r} is missing; it belongs into {index.parent}')
        content, read = _naming(part, _read, path)
        if not isinstance(content, dict) or content.keys() != names:
            raise WeightsError(f'the part {part[:200]!r} does not hold the tensors that the index says')
        weights |= {name: _naming(part, read, tensor) for name, tensor in content.items()}
    return weights


def _read_npz(file: MappedFile, archive: Archive) -> dict[str, np.ndarray]:
    """Like numpy.load(allow_pickle=False), with the declared sizes checked before anything is allocated."""
    weights = {}
    for entry in archive.entries:
        start, length = archive.find(entry)
        header = io.BytesIO(file.view(start, min(length, 1 << 16)))
        try:
            version = np.lib.format.read_magic(header)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, fortran, dtype = read(header)
        except Exception as error:  # numpy's parser of the header raises many types
            raise WeightsError(f'{entry[:200]!r} in the archive is not a numpy array') from error
        if dtype.hasobject or dtype.kind not in 'biufc':
            raise WeightsError(f'refused: {entry[:200]!r} has the dtype {dtype}; only numbers are read, without pickle')
        check_shape(shape, dtype.itemsize)
        count = int(np.prod(shape, dtype=object))
        if header.tell() + count * dtype.itemsize != length:
            raise WeightsError(
                f'the file is damaged: {entry[:200]!r} declares {shape}, which does not fit its {length} bytes'
            )
        values = file.array(start + header.tell(), count, dtype)
        weights[entry.removesuffix('.npy')] = values.reshape(shape, order='F' if fortran else 'C')
    return weights
