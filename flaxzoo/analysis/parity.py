"""Where a network and its torch reference part: every module's output, the loss, every gradient, the statistics.

Modules are matched by name, which flaxzoo shares with torch. Both sides compute in float64 unless told otherwise, so
that what remains of a correct port is rounding, about 1e-14.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from flaxzoo.layers import Dropout, StochasticDepth
from flaxzoo.weights.convert import from_torch, to_torch

# A tensor much smaller than the largest of its kind is compared with this share of that one: the gradient of a bias
# before a BatchNorm is zero in theory and noise in practice, up to 1e-15 of the largest gradient (VGG, BN-Inception).
# In float64 a real mistake in a gradient a million times smaller than the largest would still show.
FLOOR = 1e-3


@dataclass(frozen=True)
class Row:
    """One compared tensor: `kind` is output, loss, gradient or statistic, `error` is max|a - b| / max|b|."""

    kind: str
    name: str
    shape: tuple[int, ...]
    error: float


@dataclass(frozen=True)
class Report:
    """Compared tensors in the order in which torch computes them."""

    rows: Sequence[Row]

    @property
    def error(self) -> float:
        """The largest relative error; NaN counts as the largest."""
        return max((row.error if row.error == row.error else np.inf for row in self.rows), default=np.inf)

    def first_above(self, tolerance: float) -> Row | None:
        """The first tensor that differs by more than `tolerance`: where the networks part."""
        return next((row for row in self.rows if not row.error <= tolerance), None)

    def __str__(self) -> str:
        lines = [f'{row.error:10.2e}  {row.kind:9}  {row.name}  {row.shape}' for row in self.rows]
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
    plus that of each auxiliary head, and gradients and running statistics after the step are compared too.

    Args:
      model: the flax network.
      module: the `torch.nn.Module` it reimplements; left as it was.
      x: images (N, H, W, C).
      train: one training step instead of an evaluation.
      labels: class indices (N,), needed if `train`.
      dtype: 'float64' or 'float32', on both sides.
    """
    x = np.asarray(x, dtype)
    with jax.enable_x64(dtype == 'float64'):
        variables = from_torch(model, module.state_dict(), input_shape=x.shape)
        variables = jax.tree.map(lambda a: a.astype(dtype), variables)
        ours = _run_flax(model, variables, jnp.asarray(x), labels if train else None)
        ours = {kind: jax.tree.map(np.asarray, tensors) for kind, tensors in ours.items()}
    theirs = _run_torch(module, x, labels if train else None)
    rows = []
    for kind, tensors in theirs.items():
        unmatched = set(ours[kind]) - set(tensors)
        if unmatched:
            raise ValueError(f'the torch module has no {kind} for {sorted(unmatched)}')
        floor = FLOOR * max((np.abs(t).max(initial=0) for name, t in tensors.items() if name in ours[kind]), default=0)
        for name, expected in tensors.items():
            if name in ours[kind]:
                rows.append(Row(kind, name, expected.shape, _error(ours[kind][name], expected, floor)))
    return Report(rows)


def randomise(module: Any, seed: int = 0) -> Any:
    """Draws what a fresh torch module has at 0 or 1: running statistics, affine terms, biases and an all-zero head.

    Without this a comparison proves little: fresh networks hide most mistakes. Changes `module` and returns it.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Any, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            last = name.split('.')[-1]
            if last == 'running_var' or (last == 'weight' and tensor.ndim == 1):
                uniform(tensor, 0.5, 1.5)
            elif tensor.is_floating_point() and (last.endswith(('mean', 'bias')) or not tensor.any()):
                uniform(tensor, -0.2, 0.2)
    return module


def _error(ours: np.ndarray, theirs: np.ndarray, floor: float) -> float:
    if ours.shape != theirs.shape:
        return np.inf
    scale = max(np.abs(theirs).max(initial=0), floor)
    difference = np.abs(ours - theirs).max(initial=0)
    return float(difference / scale) if scale else float(difference)


def _run_flax(
    model: nn.Module, variables: Mapping[str, Any], x: jax.Array, labels: np.ndarray | None
) -> dict[str, dict[str, jax.Array]]:
    train = labels is not None

    def without_dropout(call, args, kwargs, context):
        off = isinstance(context.module, (Dropout, StochasticDepth)) and context.method_name == '__call__'
        return args[0] if off else call(*args, **kwargs)

    def forward(params: Any, x: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        with nn.intercept_methods(without_dropout):
            out, state = model.apply(
                {**variables, 'params': params},
                x,
                train=train,
                capture_intermediates=True,
                mutable=['intermediates', 'batch_stats'],
            )
        heads = _heads(out)
        loss = sum(optax.softmax_cross_entropy_with_integer_labels(h, labels).mean() for h in heads) if train else 0.0
        return loss, {**state, 'logits': heads}

    # Compiling is most of the time of a comparison; float64 checks the mathematics, not the compiler's speed.
    options = {'xla_backend_optimization_level': 0} if x.dtype == jnp.float64 else None
    run = jax.jit(jax.value_and_grad(forward, has_aux=True) if train else forward, compiler_options=options)
    result, grads = run(variables['params'], x) if train else (run(variables['params'], x), None)
    loss, state = result
    outputs = {f'logits{i or ""}': head for i, head in enumerate(state['logits'])}
    for path, (value, *_) in flatten_dict(state['intermediates']).items():
        if isinstance(value, jax.Array) and len(path) > 1:
            outputs['.'.join(path[:-1])] = value
    tensors = {'output': outputs}
    if train:
        tensors['loss'] = {'loss': loss}
        tensors['gradient'] = to_torch({'params': grads})
        tensors['statistic'] = to_torch({'batch_stats': state.get('batch_stats', {})})
    return tensors


def _run_torch(module: Any, x: np.ndarray, labels: np.ndarray | None) -> dict[str, dict[str, np.ndarray]]:
    import copy

    import torch

    module = copy.deepcopy(module).to(torch.float64 if x.dtype == np.float64 else torch.float32)
    module.train(labels is not None)
    outputs: dict[str, np.ndarray] = {}

    def keep(name: str):
        def hook(_module, _args, out):
            if isinstance(out, torch.Tensor):
                outputs[name] = _channels_last(out)

        return hook

    for name, child in module.named_modules():
        if type(child).__name__ in ('Dropout', 'DropPath', 'StochasticDepth'):
            child.eval()
        # timm's BatchNormAct2d is a norm and a ReLU in one; what its norm gives passes through its child `drop`.
        source = child.drop if type(child).__name__ == 'BatchNormAct2d' else child
        if name:
            source.register_forward_hook(keep(name))
    heads = _heads(module(torch.from_numpy(np.moveaxis(x, -1, 1).copy())))
    outputs |= {f'logits{i or ""}': _channels_last(head) for i, head in enumerate(heads)}
    tensors = {'output': outputs}
    if labels is not None:
        targets = torch.from_numpy(np.asarray(labels, np.int64))
        loss = sum(torch.nn.functional.cross_entropy(head, targets) for head in heads)
        loss.backward()
        tensors['loss'] = {'loss': loss.detach().numpy()}
        tensors['gradient'] = {n: p.grad.numpy() for n, p in module.named_parameters() if p.grad is not None}
        tensors['statistic'] = {
            n: b.numpy() for n, b in module.named_buffers() if n.split('.')[-1].startswith('running')
        }
    return tensors


def _heads(out: Any) -> tuple:
    """Logits first, then those of auxiliary heads, from a network's output."""
    return tuple(h for h in out if h is not None) if isinstance(out, tuple) else (out,)


def _channels_last(tensor: Any) -> np.ndarray:
    array = tensor.detach().numpy().copy()
    return np.moveaxis(array, 1, -1) if array.ndim == 4 else array
