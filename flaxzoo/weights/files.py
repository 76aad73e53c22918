"""`read_weights`: the state dict in a file of torch.save, safetensors or numpy, without torch.

The format is told by the first bytes, not by the name. Nothing in a file is executed and nothing larger than the file
is allocated. What is verified: in zip archives (torch >= 1.6, npz) the CRC32 of every entry that is read; in
safetensors the header, by its library; everywhere that every tensor lies inside the file.
"""

import io
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from flaxzoo.weights.errors import WeightsError

logger = logging.getLogger('flaxzoo')

# Where a checkpoint keeps its weights if it has several state dicts: averaged ones first, as timm.
PREFERRED = ('state_dict_ema', 'model_ema', 'state_dict', 'model_state_dict', 'model')
# Prefixes that torch.nn.DataParallel, DistributedDataParallel and torch.compile put before every name.
PREFIXES = ('module.', '_orig_mod.')
SAFETENSORS = {  # its names of dtypes: torch's
    'BF16': 'bfloat16',
    'BOOL': 'bool',
    'C64': 'complex64',
    'F8_E4M3': 'float8_e4m3fn',
    'F8_E5M2': 'float8_e5m2',
    **{f'F{bits}': f'float{bits}' for bits in (16, 32, 64)},
    **{f'I{bits}': f'int{bits}' for bits in (8, 16, 32, 64)},
    **{f'U{bits}': f'uint{bits}' for bits in (8, 16, 32, 64)},
}
NOT_WEIGHTS = {
    b'version https://git-lfs': 'a git-LFS pointer, not the file itself; run `git lfs pull` where it came from',
    b'<': 'a web page (HTML or XML), probably an error message saved under this name; download the file again',
    b'{': 'a JSON file, not weights',
    b'\x1f\x8b': 'gzip-compressed; unpack it first',
    b'\x89HDF': 'an HDF5 file (Keras?), which is not supported',
}


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The state dict in a weights file.

    Nested checkpoints are unwrapped ('state_dict', 'model', ...; averaged weights are preferred and that is logged),
    and the prefixes 'module.' and '_orig_mod.' are removed. The arrays are memory-mapped: they take memory as they are
    used and may be written to, which does not change the file; the file must not be overwritten in place meanwhile.

    Args:
      path: a `.pth`/`.pt` file of torch.save (both formats), `.safetensors`, or `.npz` of numpy.savez.

    Returns:
      {torch name: array of the shape, layout and dtype in the file}; bfloat16 and float8 are ml_dtypes'.

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: the file is not a weights file, is damaged, or holds something that is not read.
    """
    path = Path(path)
    try:
        if not path.stat().st_size:
            raise WeightsError('the file is empty (0 bytes)')
        return _strip(_read(path))
    except WeightsError as error:
        raise WeightsError(f'{path}: {error}') from error.__cause__


def _read(path: Path) -> dict[str, np.ndarray]:
    from flaxzoo.weights.mapped import Archive, MappedFile
    from flaxzoo.weights.torch_file import read_legacy, read_zip

    with path.open('rb') as file:
        start = file.read(264)
    if start[8:9] == b'{' and start[:1] not in (b'{', b'<'):
        return _read_safetensors(path)
    with MappedFile(path) as file:
        if start.startswith(b'PK\3\4'):
            archive = Archive(file)
            if all(name.endswith('.npy') for name in archive.entries):
                return _read_npz(file, archive)
            content, read = read_zip(file, archive)
        elif start.startswith(b'\x80'):
            content, read = read_legacy(file)
        else:
            raise WeightsError(_describe(start))
        return {name: read(tensor) for name, tensor in state_dict(content).items()}


def _describe(start: bytes) -> str:
    """What a file is that is not weights."""
    if start[257:262] == b'ustar':
        return 'a tar archive; unpack it, or if torch < 0.1.10 wrote it, save it anew'
    text = start.lstrip().removeprefix(b'\xef\xbb\xbf')
    for magic, description in NOT_WEIGHTS.items():
        if text.startswith(magic):
            return description
    return f'not a file of torch.save, safetensors or numpy.savez; it begins with {start[:16]!r}'


def state_dict(content: Any) -> dict[str, Any]:
    """The state dict in what a checkpoint holds.

    Raises:
      WeightsError: there is none, or one of several that cannot be told apart.
    """
    from flaxzoo.weights.torch_file import Tensor

    def is_state_dict(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and len(value) > 0
            and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())
        )

    if is_state_dict(content):
        return content
    if not isinstance(content, dict):
        raise WeightsError(f'the file holds a {type(content).__name__.lower()}, not a state dict')
    if 'param_groups' in content and 'state' in content:
        raise WeightsError("the file holds an optimizer's state, not a model's; save model.state_dict()")
    found = [key for key, value in content.items() if is_state_dict(value)]
    if len(found) == 1:
        return content[found[0]]
    for key in PREFERRED:
        if key in found:
            logger.warning('the file holds several state dicts (%s): reading %r', ', '.join(map(str, found)), key)
            return content[key]
    names = ', '.join(str(key)[:50] for key in list(content)[:8]) or 'nothing'
    if found:
        raise WeightsError(f'the file holds several state dicts, none called {" or ".join(PREFERRED)}: {names}')
    other = [str(key)[:50] for key, value in content.items() if not isinstance(value, Tensor)]
    if len(other) < len(content):
        raise WeightsError(f'not a state dict: these entries are no tensors: {", ".join(other[:8])}')
    raise WeightsError(f'the file holds no state dict, that is {{name: tensor}}; it holds {names}')


def _strip(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights without the prefixes that all names share, in whatever order they were put."""
    while weights and (prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in weights)), None)):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The library checks the header and that the tensors fill the file; mapping them saves it a copy of everything."""
    from safetensors import SafetensorError, safe_open

    from flaxzoo.weights.mapped import MappedFile

    weights = {}
    try:
        with safe_open(path, 'np') as header, MappedFile(path) as file:
            position = 8 + int.from_bytes(file.view(0, 8), 'little')
            for name in header.offset_keys():
                tensor = header.get_slice(name)
                dtype = _safetensors_dtype(tensor.get_dtype(), name)
                shape = tuple(tensor.get_shape())
                count = int(np.prod(shape, dtype=object))
                weights[name] = file.array(position, count, dtype).reshape(shape)
                position += count * dtype.itemsize
    except SafetensorError as error:
        raise WeightsError(f'not a valid safetensors file, or a truncated one ({error})') from error
    return weights


def _safetensors_dtype(code: str, name: str) -> np.dtype:
    from flaxzoo.weights.torch_file import DTYPES

    if code not in SAFETENSORS:
        raise WeightsError(f'{name!r} has the dtype {code}, which is not supported')
    return DTYPES[SAFETENSORS[code]]


def _read_npz(file: Any, archive: Any) -> dict[str, np.ndarray]:
    """Like numpy.load(allow_pickle=False), with the declared sizes checked before anything is allocated."""
    weights = {}
    for entry in archive.entries:
        start, length = archive.find(entry)
        header = io.BytesIO(file.view(start, min(length, 1 << 16)))
        try:
            version = np.lib.format.read_magic(header)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, fortran, dtype = read(header)
        except (ValueError, KeyError) as error:
            raise WeightsError(f'{entry!r} in the archive is not a numpy array') from error
        if dtype.hasobject or dtype.kind not in 'biufc':
            raise WeightsError(f'refused: {entry!r} has the dtype {dtype}; only numbers are read, without pickle')
        count = int(np.prod(shape, dtype=object))
        if header.tell() + count * dtype.itemsize != length:
            raise WeightsError(
                f'the file is damaged: {entry!r} declares {shape}, which does not fit its {length} bytes'
            )
        values = file.array(start + header.tell(), count, dtype)
        weights[entry.removesuffix('.npy')] = values.reshape(shape, order='F' if fortran else 'C')
    return weights
