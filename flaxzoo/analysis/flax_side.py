"""The flax half of a comparison: what a linen module computes on given images."""

import inspect
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from flaxzoo.analysis.dropouts import drops_at_random
from flaxzoo.weights.convert import to_torch

Tensors = dict[str, dict[str, np.ndarray]]


def run_flax(model: nn.Module, variables: Mapping[str, Any], x: jax.Array, labels: np.ndarray | None) -> Tensors:
    """{'output', 'loss', 'gradient', 'statistic'}: tensors by torch's names; only outputs without `labels`."""
    train = labels is not None
    # A module that has no mode, for example a block without norms, takes no `train`.
    mode = {'train': train} if _takes_train(model) else {}

    def forward(params: Any, x: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        with nn.intercept_methods(without_dropout):
            out, state = model.apply(
                {**variables, 'params': params},
                x,
                capture_intermediates=True,
                mutable=['intermediates', 'batch_stats'],
                **mode,
            )
        found = heads(out)
        loss = sum(optax.softmax_cross_entropy_with_integer_labels(h, labels).mean() for h in found) if train else 0.0
        return loss, {**state, 'heads': found}

    # Compiling is most of the time of a comparison; float64 checks the mathematics, not the compiler's speed.
    options = {'xla_backend_optimization_level': 0} if x.dtype == jnp.float64 else None
    run = jax.jit(jax.value_and_grad(forward, has_aux=True) if train else forward, compiler_options=options)
    try:
        result, grads = run(variables['params'], x) if train else (run(variables['params'], x), None)
    except flax.errors.InvalidRngError as error:
        raise ValueError(
            f'a module of {type(model).__name__} draws random numbers; build the network without them, because only '
            f'dropout that is a module (Dropout, DropPath, StochasticDepth, ...) is switched off: {error}'
        ) from error
    loss, state = result
    tensors = {'output': _outputs(state.get('intermediates', {}), state['heads'])}
    if train:
        tensors['loss'] = {'loss': loss}
        tensors['gradient'] = to_torch({'params': grads})
        tensors['statistic'] = to_torch({'batch_stats': state.get('batch_stats', {})})
    return jax.tree.map(np.asarray, tensors)


def without_dropout(call, args, kwargs, context):
    """An interceptor for `nn.intercept_methods`: modules that drop at random give back their input."""
    module = context.module
    if context.method_name == '__call__' and drops_at_random(module):
        return args[0] if args else next(iter(kwargs.values()))
    if isinstance(module, nn.MultiHeadDotProductAttention):
        object.__setattr__(module, 'dropout_rate', 0.0)  # of the copy that `apply` made
    return call(*args, **kwargs)


def heads(out: Any) -> tuple:
    """Logits first, then those of auxiliary heads, from a network's output."""
    return tuple(h for h in out if h is not None) if isinstance(out, tuple) else (out,)


def call_name(module: str, call: int) -> str:
    """The name of a module's output; a shared module has one for each of its calls."""
    return module if call == 0 else f'{module} (call {call + 1})'


def _takes_train(model: nn.Module) -> bool:
    parameters = inspect.signature(type(model).__call__).parameters.values()
    return any(p.name == 'train' or p.kind == p.VAR_KEYWORD for p in parameters)


def _outputs(intermediates: Mapping[str, Any], found: tuple) -> dict[str, jax.Array]:
    outputs = {f'logits{i or ""}': head for i, head in enumerate(found)}
    for path, calls in flatten_dict(intermediates).items():
        if path[-1] != '__call__' or len(path) == 1:
            continue
        for i, value in enumerate(calls):
            first = value[0] if isinstance(value, (tuple, list)) and value else value
            if isinstance(first, jax.Array):
                outputs[call_name('.'.join(path[:-1]), i)] = first
    return outputs
