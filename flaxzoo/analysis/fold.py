"""`fold_batch_norm`: for inference, the arithmetic of batch norms moved into the convolutions before them.

Which norm follows which convolution is read off the traced computation, not off names: the convolutions' outputs and
the norms' inputs are marked in it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name

from flaxzoo.analysis.jaxprs import Jaxpr, JaxprEqn, Var, nested
from flaxzoo.layers import BatchNorm, Conv2d
from flaxzoo.weights.convert import template

Path = tuple[str, ...]


def fold_batch_norm(
    model: nn.Module, variables: Mapping[str, Any], *, input_shape: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """Variables with which the same model computes the same logits with less arithmetic, exact to rounding.

        folded = flaxzoo.fold_batch_norm(model, variables)
        logits = model.apply(folded, x)

    Each BatchNorm that alone reads a convolution's output is folded into it: the convolution's `kernel` and `bias` are
    multiplied by scale / sqrt(var + eps), an output channel each, and the norm's leaves are replaced by the parameter
    `folded_bias` (C,), which is all that the norm still adds. Computed in float64 and stored in the dtype of the
    original. Other norms stay as they are: those after something else, those whose convolution has other readers or
    runs several times, and those of auxiliary heads, which evaluation does not run.

    Folded variables are for inference only: `train=True` raises, unless the norms are frozen, and they have no torch
    names, so convert and save the original.

    Args:
      model: the network; norms are found by tracing its evaluation.
      variables: {'params': ..., 'batch_stats': ...}; left as they are.
      input_shape: (N, H, W, C) of an image the network takes; the default has the model's `image_size` and
        the channels that the variables take.

    Returns:
      {'params': ..., 'batch_stats': ...}, without 'batch_stats' if every norm was folded.

    Raises:
      ValueError: the variables do not fit the model, for example lack 'batch_stats', or are folded already.
    """
    leaves = flatten_dict(dict(variables))
    if any(path[-1] == 'folded_bias' for path in leaves):
        raise ValueError('the batch norms of these variables are folded already')
    for conv, norm, eps in _pairs(model, variables, input_shape):
        kernel = leaves.get(('params', *conv, 'kernel'))
        if np.ndim(kernel) != 4:
            continue  # stacked by nn.scan or nn.vmap
        mean, var = (_wide(leaves.pop(('batch_stats', *norm, leaf))) for leaf in ('mean', 'var'))
        factor = _wide(leaves.pop(('params', *norm, 'scale'), 1)) / np.sqrt(var + eps)
        bias = _wide(leaves.pop(('params', *norm, 'bias'), 0)) - mean * factor
        leaves['params', *norm, 'folded_bias'] = jnp.asarray(bias.astype(kernel.dtype))
        for path in (('params', *conv, 'kernel'), ('params', *conv, 'bias')):
            if path in leaves:
                leaves[path] = jnp.asarray((_wide(leaves[path]) * factor).astype(leaves[path].dtype))
    return unflatten_dict(leaves)


def _pairs(
    model: nn.Module, variables: Mapping[str, Any], input_shape: tuple[int, ...] | None
) -> list[tuple[Path, Path, float]]:
    """(path of a convolution, path of the norm that alone reads its output, the norm's eps), each running once."""
    modules: dict[str, nn.Module] = {}
    running: set[str] = set()

    def mark(call, args, kwargs, context):
        module, name = context.module, '/'.join(context.module.path)
        within = name in running  # the base's call within a subclass's
        if context.method_name != '__call__' or within or not _foldable(module):
            return call(*args, **kwargs)
        modules[name] = module
        running.add(name)
        if isinstance(module, Conv2d):
            result = checkpoint_name(call(*args, **kwargs), name)
        else:
            marked = jax.tree.map(
                lambda leaf: checkpoint_name(leaf, name) if isinstance(leaf, jax.Array) else leaf, (args, kwargs)
            )
            result = call(*marked[0], **marked[1])
        running.remove(name)
        return result

    image = jax.ShapeDtypeStruct(input_shape or _image_shape(model, variables), jnp.float32)
    try:
        with nn.intercept_methods(mark):
            traced = jax.make_jaxpr(model.apply)(variables, image)
    except flax.errors.FlaxError as error:
        raise ValueError(f'the variables do not fit {type(model).__name__}: {error}') from error
    runs: Counter[str] = Counter()
    successive = []
    for jaxpr in nested(traced.jaxpr):
        marks = [e for e in jaxpr.eqns if e.primitive.name == 'name' and e.params['name'] in modules]
        runs.update(e.params['name'] for e in marks)
        successive += _successive(jaxpr, marks)
    return [
        (modules[conv].path, modules[norm].path, modules[norm].eps)
        for conv, norm in successive
        if runs[conv] == runs[norm] == 1
    ]


def _foldable(module: nn.Module) -> bool:
    """Whether `module` is a convolution or a batch norm that computes what its parameters say.

    A subclass does if it inherits the call or says `foldable = True` itself: a call of its own may, for example,
    standardise the kernel first.
    """
    kind = type(module)
    inherits = any(issubclass(kind, base) and kind.__call__ is base.__call__ for base in (Conv2d, BatchNorm))
    return vars(kind).get('foldable', inherits)


def _image_shape(model: nn.Module, variables: Mapping[str, Any]) -> tuple[int, ...]:
    """(1, H, W, C) of an image of the size that the model is designed for and the channels that the variables take."""
    size = getattr(model, 'image_size', 224)
    given = flatten_dict(dict(variables))
    for path, leaf in flatten_dict(template(model, (1, size, size, 3))).items():
        if path[-1] == 'kernel' and path in given and np.ndim(given[path]) == 4 == leaf.ndim:
            channels, usual = given[path].shape[2], leaf.shape[2]
            if channels != usual == 3:
                return (1, size, size, channels)
    return (1, size, size, 3)


def _successive(jaxpr: Jaxpr, marks: Sequence[JaxprEqn]) -> Iterator[tuple[str, str]]:
    """(name, next name) of each marked value that nothing but the next mark reads: a convolution's and a norm's."""
    read = [*jaxpr.outvars, *(value for equation in jaxpr.eqns for value in equation.invars)]
    reads = Counter(value for value in read if isinstance(value, Var))
    readers = {e.invars[0]: e.params['name'] for e in marks}
    for e in marks:
        if reads[e.outvars[0]] == 1 and e.outvars[0] in readers:
            yield e.params['name'], readers[e.outvars[0]]


def _wide(leaf: Any) -> np.ndarray:
    return np.asarray(leaf, np.float64)
