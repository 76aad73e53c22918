"""Torch state dict <-> flax variables by one generic rule, strict in both directions.

Submodules carry torch's names, so the path of a leaf joined by dots is the state-dict key once its last part is
translated: kernel and scale -> weight, mean -> running_mean, var -> running_var, anything else stays. Kernels are
transposed by their rank: (H, W, I, O) <-> (O, I, H, W) and (I, O) <-> (O, I).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxzoo.registry import create

COLLECTIONS = ('params', 'batch_stats')
RENAMED = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
# Torch's permutation of a kernel's axes by rank; its inverse goes back.
TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}
# Buffers that hold no weights: they are counted or recomputed.
IGNORED = ('num_batches_tracked', 'relative_position_index', 'relative_coords_table')


class ConversionError(ValueError):
    """A state dict does not fit the model; the message lists every key that does not."""


def from_torch(
    model: nn.Module | str, state_dict: Mapping[str, Any], *, input_shape: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """Variables of `model` with the values of a torch state dict.

    Every key is used once, every leaf is filled once and every shape is checked. Half precision is widened to
    float32, exactly; float64 is kept when jax's x64 is on and rounded to float32 when not.

    Args:
      model: a network, or a name for `flaxzoo.create`.
      state_dict: {torch name: torch tensor or numpy array}.
      input_shape: (N, H, W, C) of an image the network takes; the default has the model's `image_size` and 3 channels.

    Returns:
      {'params': ..., 'batch_stats': ...}, without 'batch_stats' if the network has none.

    Raises:
      ConversionError: keys are missing (-), extra (+) or of another shape (!).
    """
    if isinstance(model, str):
        model = create(model)
    leaves = torch_names(template(model, input_shape))
    given = {key: value for key, value in state_dict.items() if key.split('.')[-1] not in IGNORED}
    problems = [f'- {key}' for key in leaves if key not in given]
    problems += [f'+ {key}' for key in given if key not in leaves]
    variables = {}
    for key, (path, leaf) in leaves.items():
        if key not in given:
            continue
        value = _to_numpy(given[key])
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


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict {torch name: numpy array} of `variables`, the inverse of `from_torch`.

    Torch's `load_state_dict(strict=True)` takes it, each array wrapped by `torch.from_numpy`. The counter
    num_batches_tracked, which torch itself adds to old checkpoints, is left out.

    Raises:
      ConversionError: a collection other than 'params' and 'batch_stats', two leaves with one torch name, or folded
        batch norms.
    """
    return {
        key: np.array(_transpose(path, np.asarray(leaf), to_torch=True), order='C')  # a copy that may be written to
        for key, (path, leaf) in torch_names(variables).items()
    }


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
    return tuple(shape[axis] for axis in TO_TORCH[len(shape)]) if path[-1] == 'kernel' else tuple(shape)


def _transpose(path: tuple[str, ...], value: np.ndarray, to_torch: bool) -> np.ndarray:
    if path[-1] != 'kernel':
        return value
    axes = TO_TORCH[value.ndim]
    return value.transpose(axes if to_torch else np.argsort(axes))


def _to_numpy(value: Any) -> np.ndarray:
    """A numpy array from a torch tensor or an array; half precision widened to float32, without importing torch."""
    if hasattr(value, 'detach'):
        value = value.detach().cpu()
        half = str(value.dtype) in ('torch.bfloat16', 'torch.float16')
        return (value.float() if half else value).numpy()
    value = np.asarray(value)
    return value.astype(np.float32) if value.dtype.itemsize < 4 else value
