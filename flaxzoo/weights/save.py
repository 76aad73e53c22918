"""`save`: variables or a state dict as a file with torch's names, which PyTorch loads."""

import contextlib
import dataclasses
import glob
import json
import logging
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

import flax.linen as nn
import numpy as np

from flaxzoo.registry import create
from flaxzoo.weights import safetensors_file
from flaxzoo.weights.convert import template, to_torch, torch_names, torch_shape
from flaxzoo.weights.errors import WeightsError
from flaxzoo.weights.own import as_json

logger = logging.getLogger('flaxzoo')

# Fields that say how a network is run, not what its weights mean.
NOT_OF_THE_WEIGHTS = ('parent', 'name', 'variant', 'preset', 'remat', 'axis_name', 'freeze_batch_norm')


def save(
    path: str | os.PathLike,
    variables: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
    *,
    model: nn.Module | None = None,
) -> None:
    """Writes the variables of a network under torch's names, so that PyTorch can load them.

        module.load_state_dict(safetensors.torch.load_file(path), strict=True)

    The file appears whole or not at all: it is written under another name, flushed to disk and renamed. Equal variables
    give equal bytes.

    Args:
      path: `.safetensors`; or `.pth`/`.pt` for `torch.load`, or `.npz` for `numpy.load`.
      variables: {'params': ..., 'batch_stats': ...}.
      metadata: kept in the header of a safetensors file; values that are no strings are written as JSON.
      model: the network that they are of. None of its variables may be missing then, and a safetensors file says by
        which name and fields `flaxzoo.create` builds it, so that `flaxzoo.load(path)` needs no others. Buffers that it
        computes itself (Swin's) are written too, as torch's strict loading wants them.

    Raises:
      ConversionError: the variables have no torch names.
      WeightsError: there are no parameters, variables are missing or not the model's, the suffix is another, or the
        format has no metadata or no such dtype.
      OSError: the file cannot be written.
    """
    weights = to_torch(variables)
    if not variables.get('params'):
        raise WeightsError(f"{path}: the variables {sorted(variables)} have no 'params'")
    if model is not None:
        _check(path, model, weights)
        weights = to_torch(variables, model)
        if Path(path).suffix == '.safetensors':
            metadata = {**_origin(model), **(metadata or {})}
    write_weights(path, dict(sorted(weights.items())), metadata)


def write_weights(
    path: str | os.PathLike, weights: Mapping[str, np.ndarray], metadata: Mapping[str, Any] | None = None
) -> None:
    """`save` for {torch name: array}."""
    path = Path(path).expanduser()
    write = WRITERS.get(path.suffix)
    if write is None:
        raise WeightsError(f'{path}: the suffix must be one of {", ".join(WRITERS)}')
    if metadata and write is not _write_safetensors:
        raise WeightsError(f'{path}: only .safetensors files hold metadata')
    partial = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        _remove_abandoned(path)
        write(partial, weights, metadata or {})
        with partial.open('rb') as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # the other name would tell nothing
    except WeightsError as error:
        raise WeightsError(f'{path}: {error}') from error.__cause__
    finally:
        # Where it could not be made it cannot be removed: the first error is the one to tell.
        with contextlib.suppress(OSError):
            partial.unlink()


def _check(path: str | os.PathLike, model: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Raises if the weights are not all of the model's; images may have any number of channels."""
    expected = {key: torch_shape(place, leaf.shape) for key, (place, leaf) in torch_names(template(model)).items()}
    problems = [f'- {key}' for key in expected if key not in weights]
    problems += [f'+ {key}' for key in weights if key not in expected]
    for key in expected.keys() & weights.keys():
        given, shape = weights[key].shape, expected[key]
        sees_images = len(shape) == 4 and shape[1] == 3
        if given != shape and not (sees_images and given[:1] + given[2:] == shape[:1] + shape[2:]):
            problems.append(f'! {key}: shape {given}, expected {shape}')
    if problems:
        shown = sorted(problems)[:12] + [f'... and {len(problems) - 12} more'] * (len(problems) > 12)
        listed = '\n  '.join(shown)
        statistics = all(problem.endswith(('.running_mean', '.running_var')) for problem in problems)
        hint = "; 'batch_stats' belong to them" if statistics else ''
        raise WeightsError(
            f'{path}: the variables are not those of {type(model).__name__}{hint} '
            f'(- missing, + extra, ! wrong shape; {len(problems)} in all):\n  {listed}'
        )


def _origin(model: nn.Module) -> dict[str, str]:
    """Name and fields by which `flaxzoo.create` builds the model, and its images' preparation; empty without a name."""
    name = getattr(model, 'variant', '')
    if not name:
        return {}
    standard = create(name)
    own = [field.name for field in dataclasses.fields(model) if field.compare and field.name not in NOT_OF_THE_WEIGHTS]
    fields = {key: getattr(model, key) for key in own if getattr(model, key) != getattr(standard, key)}
    fields['num_classes'] = model.num_classes
    written = {key: _json(value) for key, value in fields.items()}
    if unknown := [f'{key}={fields[key]!r}' for key, text in written.items() if text is None]:
        logger.warning('the file will not say what network it is of, as JSON cannot hold %s', ', '.join(unknown))
        return {}
    origin = {'flaxzoo.model': name, 'flaxzoo.fields': json.dumps(fields, sort_keys=True, default=as_json)}
    if model.preset:
        origin['flaxzoo.preset'] = json.dumps(dataclasses.asdict(model.preset), sort_keys=True)
    return origin


def _json(value: Any) -> str | None:
    try:
        return json.dumps(value, default=as_json)
    except TypeError:
        return None


def _remove_abandoned(path: Path) -> None:
    """Removes what processes left that were killed while they wrote this file."""
    if os.name != 'posix':  # elsewhere there is no harmless way to ask whether a process lives
        return
    for partial in path.parent.glob(f'.{glob.escape(path.name)}.*.tmp'):
        number = partial.name.split('.')[-2]
        if not number.isdecimal():
            continue
        try:
            os.kill(int(number), 0)
        except (ProcessLookupError, OverflowError):
            partial.unlink(missing_ok=True)
        except PermissionError:  # it lives
            continue


def _write_safetensors(path: Path, weights: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    # 'pt' tells readers that names and layouts are torch's.
    safetensors_file.write(path, weights, {'format': 'pt', **text})


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
        _add(archive, 'data.pkl', content)
        _add(archive, 'byteorder', b'little')
        for i, value in enumerate(weights.values()):
            _add(archive, f'data/{i}', value.reshape(-1).view(np.uint8))
        _add(archive, 'version', b'3\n')


def _add(archive: zipfile.ZipFile, name: str, content: Any) -> None:
    """Adds an entry without the time of day."""
    with archive.open(f'archive/{name}', 'w', force_zip64=True) as entry:
        entry.write(content)


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
