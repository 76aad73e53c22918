"""Where a network and its torch reference part: every module's output, the loss, every gradient, the statistics.

Modules are matched by name, which flaxzoo shares with torch. Both sides compute in float64 unless told otherwise, so
that what remains of a correct port is rounding, about 1e-14.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxzoo.analysis.flax_side import run_flax
from flaxzoo.analysis.torch_side import randomise, run_torch
from flaxzoo.weights.convert import from_torch

__all__ = ['Report', 'Row', 'compare', 'randomise']

# A tensor much smaller than the largest of its kind is compared with this share of that one: the gradient of a bias
# before a BatchNorm is zero in theory and noise in practice, up to 1e-15 of the largest gradient (VGG, BN-Inception).
# In float64 a real mistake in a gradient a million times smaller than the largest would still show.
FLOOR = 1e-3


@dataclass(frozen=True)
class Row:
    """One compared tensor: `kind` is output, loss, gradient or statistic, `error` is max|a - b| / max|b|.

    `shape` is ours. `ambiguous`: torch's tensor has this shape whether its channels are first or last, and the reading
    with the smaller error counts. Images that are not square leave nothing ambiguous.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    error: float
    ambiguous: bool = False


@dataclass(frozen=True)
class Report:
    """Compared tensors in the order in which torch computes them.

    `unmatched` names modules of ours whose output torch does not show, such as a linear layer whose weights torch's
    attention reads without calling it; their gradients are compared like all others.
    """

    rows: Sequence[Row]
    unmatched: Sequence[str] = ()

    @property
    def error(self) -> float:
        """The largest relative error; NaN counts as the largest."""
        return max((row.error if row.error == row.error else np.inf for row in self.rows), default=np.inf)

    def first_above(self, tolerance: float) -> Row | None:
        """The first tensor that differs by more than `tolerance`: where the networks part."""
        return next((row for row in self.rows if not row.error <= tolerance), None)

    def __str__(self) -> str:
        lines = [
            f'{row.error:10.2e}  {row.kind:9}  {row.name}  {row.shape}' + ('  channels first or last' * row.ambiguous)
            for row in self.rows
        ]
        lines += [f'         -  output     {name}  not in torch' for name in self.unmatched]
        return '\n'.join([*lines, f'{self.error:10.2e}  largest of {len(self.rows)}'])


def compare(
    model: nn.Module,
    module: Any,
    x: np.ndarray,
    *,
    train: bool = False,
    labels: np.ndarray | None = None,
    dtype: str = 'float64',
) -> Report:
    """Runs both networks with the torch module's weights on the same images and compares what they compute.

    In training mode dropout and stochastic depth are off on both sides, the loss is the cross-entropy of the logits
    plus that of each auxiliary head, and gradients and running statistics after the step are compared too. A parameter
    that has no gradient in torch must have a zero one here. Of a module that returns several tensors the first is
    compared. Torch's outputs may have their channels first or last.

    Args:
      model: any linen module, called on `x`, with `train=train` if it takes that.
      module: the `torch.nn.Module` it reimplements; left as it was.
      x: images (N, H, W, C), which torch gets as (N, C, H, W); an array of another rank is the same for both.
      train: one training step instead of an evaluation.
      labels: class indices (N,), if and only if `train`.
      dtype: 'float64' or 'float32', on both sides.

    Raises:
      ConversionError: the torch module's weights do not fit the model.
      ValueError: labels are missing, not wanted or no class indices; the model draws random numbers other than those
        of a dropout.
    """
    if dtype not in ('float64', 'float32'):
        raise ValueError(f"dtype is 'float64' or 'float32', got {dtype!r}")
    x = np.asarray(x, dtype)
    labels = _checked(labels, train, len(x))
    with jax.enable_x64(dtype == 'float64'):
        variables = from_torch(model, module.state_dict(), input_shape=x.shape)
        variables = jax.tree.map(lambda a: a.astype(dtype), variables)
        theirs = run_torch(module, x, labels)
        ours = run_flax(model, variables, jnp.asarray(x), labels)
    unmatched = {kind: tuple(name for name in ours[kind] if name not in theirs[kind]) for kind in theirs}
    for kind in ('gradient', 'statistic'):
        if unmatched.get(kind):
            raise ValueError(f'the torch module has no {kind} for {", ".join(unmatched[kind])}')
    rows = [row for kind in theirs for row in _rows(kind, ours[kind], theirs[kind])]
    return Report(rows, unmatched['output'])


def _checked(labels: Any, train: bool, count: int) -> np.ndarray | None:
    """`labels` as an array, or an error if they do not fit `count` images."""
    if not train:
        if labels is not None:
            raise ValueError('labels are for a training step: train=True is missing')
        return None
    if labels is None:
        raise ValueError('a training step needs labels: class indices (N,)')
    labels = np.asarray(labels)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f'labels are {count} class indices, one an image, got an array of {labels.dtype}{list(labels.shape)}'
        )
    return labels


def _rows(kind: str, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> list[Row]:
    names = [name for name in theirs if name in ours]
    floor = FLOOR * max((np.abs(theirs[name]).max(initial=0) for name in names), default=0)
    rows = []
    for name in names:
        readings = [theirs[name]]
        if kind == 'output' and theirs[name].ndim > 2:
            readings.append(np.moveaxis(theirs[name], 1, -1))
        fitting = [reading for reading in readings if reading.shape == ours[name].shape]
        error = min((_error(ours[name], reading, floor) for reading in fitting), default=np.inf)
        rows.append(Row(kind, name, ours[name].shape, error, len(fitting) > 1))
    return rows


def _error(ours: np.ndarray, theirs: np.ndarray, floor: float) -> float:
    scale = max(np.abs(theirs).max(initial=0), floor)
    difference = np.abs(ours - theirs).max(initial=0)
    return float(difference / scale) if scale else float(difference)
