"""The variables of a network, without compiling the network."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxzoo.ops._jax import is_traced

# What jax raises where a module asks for the value of a traced array, or keeps one beyond its trace.
TRACING_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.UnexpectedTracerError,
)


def init(model: nn.Module, key: Any, x: Any = None, **kwargs: Any) -> dict[str, Any]:
    """What `model.init(key, x)` gives, in a fraction of the time: nothing but the parameters is computed.

    Works under jit and vmap as `model.init` does. A module whose parameters cannot be had apart from its computation
    (`nn.remat`, `nn.scan`, initialisers that read `x`) is initialised by `model.init` compiled.

    Args:
      model: a network of `flaxzoo.create`, or any other linen module.
      key: `jax.random.key(seed)`, a uint32 key of `jax.random.PRNGKey`, or {name of an rng: key}.
      x: an image (N, H, W, C), or anything with its shape and dtype, which stands for zeros; of the size that the
        network was designed for if not given.
      kwargs: for the call of the model.

    Returns:
      {'params'} and, if the network has them, {'batch_stats'}: arrays in float32. The numbers are those of
      `model.init`, up to rounding.

    Raises:
      TypeError: `model` is no module, `key` is no key, or `x` is missing and the model has no `image_size`.
    """
    _check(model, key)
    if isinstance(x, tuple) and x and all(isinstance(size, int) for size in x):
        raise TypeError(f'x is an image, or what has its shape and dtype: jax.ShapeDtypeStruct({x}, jnp.float32)')
    if x is None:
        x = _image(model)
    call = partial(model.init, **kwargs)
    if _traced((key, x, kwargs)):
        return call(key, _values(x))
    try:
        found = _parameters_alone(call, key, x)
    except TRACING_ERRORS:
        return call(key, _values(x))  # the module looks at the values of x
    return jax.jit(call)(key, _values(x)) if found is None else found


def _parameters_alone(call: Any, key: Any, x: Any) -> dict[str, Any] | None:
    """The variables, or None if some of them are traced along with `x`."""
    found = []

    def forward(x: Any) -> None:
        # What does not depend on the traced image, the parameters, is computed now.
        with jax.ensure_compile_time_eval():
            variables = call(key, x)
        if not _traced(variables):
            found.append(variables)

    jax.eval_shape(forward, x)
    return found[0] if found else None


def _traced(tree: Any) -> bool:
    return any(map(is_traced, jax.tree.leaves(tree)))


def _image(model: nn.Module) -> jax.ShapeDtypeStruct:
    size = getattr(model, 'image_size', None)
    if size is None:
        raise TypeError(
            f'{type(model).__name__} does not say which images it takes (it has no image_size): give x, an array '
            'or a jax.ShapeDtypeStruct of the shape that it is called with'
        )
    return jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)


def _values(x: Any) -> Any:
    """`x` with zeros in the place of what has only a shape and a dtype."""
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype) if isinstance(a, jax.ShapeDtypeStruct) else a, x)


def _check(model: Any, key: Any) -> None:
    if not isinstance(model, nn.Module):
        name = model if isinstance(model, str) else 'resnet50'
        raise TypeError(f'init takes a linen module, got {model!r}; flaxzoo.create({name!r}) builds one')
    for each in key.values() if isinstance(key, Mapping) else [key]:
        if not _is_key(each):
            given = f'an array of {each.dtype}{list(each.shape)}' if hasattr(each, 'dtype') else repr(each)
            seed = each if isinstance(each, int) else 0
            raise TypeError(f'init takes one random key, jax.random.key({seed}), got {given}')


def _is_key(key: Any) -> bool:
    if not hasattr(key, 'dtype'):
        return False
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key.ndim == 0 if typed else key.dtype == jnp.uint32 and key.ndim == 1
