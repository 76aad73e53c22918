"""Torch state dict <-> flax variables by one generic rule, strict in both directions.

Submodules carry torch's names, so the path of a leaf joined by dots is the state-dict key once its last part is
translated: kernel and scale -> weight, mean -> running_mean, var -> running_var. Kernels, of a Linear or of a
convolution in one to three dimensions, are transposed: (*spatial, I, O) <-> (O, I, *spatial). Any other leaf has
torch's name and layout and is copied as it is.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxzoo.layers.network import Network
from flaxzoo.registry import create
from flaxzoo.weights.errors import ConversionError

COLLECTIONS = ('params', 'batch_stats')
RENAMED = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
# BatchNorm's counter of batches, the one buffer of torch's layers that holds no weights.
COUNTER = 'num_batches_tracked'


def from_torch(
    model: nn.Module | str, state_dict: Mapping[str, Any], *, input_shape: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """Variables of `model` with the values of a torch state dict.

    Every key is used once, every leaf is filled once and every shape is checked. Buffers that the network computes
    itself (see `buffers`) are compared with what it computes. Half precision is widened to float32, exactly; float64
    is kept when jax's x64 is on and rounded to float32 when not.

    Args:
      model: a network, or a name for `flaxzoo.create`.
      state_dict: {torch name: torch tensor or numpy array}.
      input_shape: (N, H, W, C) of an image the network takes; the default has the model's `image_size` and 3 channels.

    Returns:
      {'params': ..., 'batch_stats': ...}, without 'batch_stats' if the network has none.

    Raises:
      ConversionError: keys are missing (-), extra (+) or of another shape or value (!).
      TypeError: `state_dict` is none.
    """
    if isinstance(model, str):
        model = create(model)
    if not isinstance(state_dict, Mapping):
        module = hasattr(state_dict, 'state_dict')
        hint = ', got the module itself: pass module.state_dict()' if module else f', got {type(state_dict).__name__}'
        raise TypeError('from_torch takes a state dict {torch name: tensor}' + hint)
    leaves = torch_names(template(model, input_shape))
    held = {key for key in state_dict if is_buffer(model, key)}
    given = {key: value for key, value in state_dict.items() if key not in held}
    problems = buffer_problems(model, {key: state_dict[key] for key in held})
    problems += [f'- {key}' for key in leaves if key not in given]
    problems += [f'+ {key}' for key in given if key not in leaves]
    variables = {}
    for key, (path, leaf) in leaves.items():
        if key not in given:
            continue
        value = to_numpy(given[key])
        expected = torch_shape(path, leaf.shape)
        if value.shape != expected:
            problems.append(f'! {key}: shape {value.shape}, expected {expected}')
        else:
            variables[path] = jnp.asarray(_transpose(path, value, to_torch=False))
    if problems:
        listed = '\n  '.join(sorted(problems))
        raise ConversionError(
            f'the state dict does not fit {type(model).__name__} '
            f'(- missing, + extra, ! wrong shape; {len(problems)} in all):\n  {listed}'
        )
    return unflatten_dict(variables)


def to_torch(variables: Mapping[str, Any], model: nn.Module | str | None = None) -> dict[str, np.ndarray]:
    """The state dict {torch name: numpy array} of `variables`, the inverse of `from_torch`.

    Torch's `load_state_dict(strict=True)` takes it, each array wrapped by `torch.from_numpy`. The counter
    num_batches_tracked, which torch itself adds to old checkpoints, is left out.

    Args:
      variables: {'params': ..., 'batch_stats': ...}.
      model: the network that they are of, or its name: buffers that it computes itself are added. Torch's strict
        loading wants those of Swin; other networks have none.

    Raises:
      ConversionError: a collection other than 'params' and 'batch_stats', two leaves with one torch name, or folded
        batch norms.
    """
    model = create(model) if isinstance(model, str) else model
    buffers = model.buffers() if isinstance(model, Network) else {}
    return {
        key: np.array(_transpose(path, np.asarray(leaf), to_torch=True), order='C')  # a copy that may be written to
        for key, (path, leaf) in torch_names(variables).items()
    } | {key: value.copy() for key, value in buffers.items()}


def is_buffer(model: nn.Module, key: str) -> bool:
    """Whether a torch name is that of a buffer, which holds no weights and which flax variables do not have.

    A network declares those that it computes itself by their last names: `ignored = frozenset({'index_table'})`.
    """
    return key.rpartition('.')[2] in {COUNTER, *getattr(model, 'ignored', ())}


def buffer_problems(model: nn.Module, buffers: Mapping[str, Any]) -> list[str]:
    """A line for each buffer that is not what the network computes in its place.

    The network says so by its method `check_buffer(key, value: np.ndarray)`: words on what is wrong, or None.
    """
    check = getattr(model, 'check_buffer', None)
    if check is None:
        return []
    words = {key: check(key, to_numpy(value)) for key, value in buffers.items() if not key.endswith(COUNTER)}
    return [f'! {key}: {text}' for key, text in words.items() if text]


def template(model: nn.Module, input_shape: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Shapes and dtypes of the model's variables, without computing them."""
    size = getattr(model, 'image_size', 224)
    image = jax.ShapeDtypeStruct(input_shape or (1, size, size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def torch_names(variables: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], Any]]:
    """{torch name: (path, leaf)} of every leaf."""
    unknown = set(variables) - set(COLLECTIONS)
    if unknown:
        raise ConversionError(f'only {COLLECTIONS} have torch names, got the collections {sorted(unknown)}')
    names: dict[str, tuple[tuple[str, ...], Any]] = {}
    for path, leaf in flatten_dict(dict(variables)).items():
        *modules, last = path[1:]
        if last == 'folded_bias':
            raise ConversionError(f'{"/".join(path)}: folded batch norms have no torch names; convert the original')
        key = '.'.join([*modules, RENAMED.get(last, last)])
        if key in names:
            raise ConversionError(f'{"/".join(path)} and {"/".join(names[key][0])} both have the name {key}')
        names[key] = (path, leaf)
    return names


def torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that torch gives the leaf at `path`."""
    return tuple(shape[axis] for axis in _axes(path, len(shape)))


def _axes(path: tuple[str, ...], rank: int) -> tuple[int, ...]:
    """The axes of the leaf at `path` in torch's order; `np.argsort` of them goes back."""
    if path[-1] != 'kernel':
        return tuple(range(rank))
    if not 2 <= rank <= 5:
        raise ConversionError(f'{"/".join(path)}: a kernel has from 2 to 5 axes (*spatial, I, O), this one {rank}')
    return (rank - 1, rank - 2, *range(rank - 2))


def _transpose(path: tuple[str, ...], value: np.ndarray, to_torch: bool) -> np.ndarray:
    axes = _axes(path, value.ndim)
    return value.transpose(axes if to_torch else np.argsort(axes))


def to_numpy(value: Any) -> np.ndarray:
    """A numpy array from a torch tensor or an array; half precision widened to float32, without importing torch."""
    if hasattr(value, 'detach'):
        value = value.detach().cpu()
        half = str(value.dtype) in ('torch.bfloat16', 'torch.float16')
        return (value.float() if half else value).numpy()
    value = np.asarray(value)
    return value.astype(np.float32) if value.dtype.itemsize < 4 else value
