"""Every name of jax that its promise of compatibility leaves out, in this one file.

`jax._src`, `jax.core`, `jax.extend` and `jax.interpreters` may change at any time
(https://docs.jax.dev/en/latest/api_compatibility.html). If a name is missing without which there are no primitives,
there is one warning, and XLA's own operations are what flaxzoo computes with: the same numbers, slower on CPUs.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

try:
    from jax.extend.core import Primitive
    from jax.interpreters.ad import defbilinear, defjvp, primitive_jvps, primitive_transposes
    from jax.interpreters.batching import defvectorized, primitive_batchers
    from jax.interpreters.mlir import lower_fun, register_lowering
except ImportError as error:
    Primitive = None
    warnings.warn(
        f'jax {jax.__version__} lacks what flaxzoo makes primitives of ({error}): convolutions are those of XLA, '
        'with the same numbers and slower on CPUs',
        RuntimeWarning,
        stacklevel=2,
    )

try:
    from jax.extend.core import Jaxpr, JaxprEqn, Var
except ImportError:
    Jaxpr = JaxprEqn = Any
    Var = type(jax.make_jaxpr(lambda x: x)(np.zeros(())).jaxpr.invars[0])

try:
    from jax.core import Tracer
except ImportError:
    Tracer = None

try:
    from jax._src.xla_bridge import backends_are_initialized
except ImportError:

    def backends_are_initialized() -> bool:
        """Unknown, so taken for not yet."""
        return False


class Native:
    """What stands in for a primitive where none can be made: its native computation, which jax transforms itself."""

    def __init__(self, native: Callable) -> None:
        self.bind = native


def linear_primitive(name: str, native: Callable, **lowerings: Callable) -> Any:
    """The identity on an array, which a platform of `lowerings` computes so, and derivatives as `native`."""
    if Primitive is None:
        return Native(native)
    primitive = Primitive(name)
    primitive.def_impl(native)
    primitive.def_abstract_eval(native)
    defjvp(primitive, lambda tangent, x: tangent)
    primitive_transposes[primitive] = lambda cotangent, x: [cotangent]
    defvectorized(primitive)
    _lower(primitive, native, lowerings)
    return primitive


def primitive(name: str, native: Callable, portable: Callable, **lowerings: Callable) -> Any:
    """A primitive `bind(*arrays, **params)` that computes `native`, and on a platform of `lowerings` an equal of it.

    `portable` computes the same in operations of jax, which is what vmap makes of it. `params` must be hashable.
    """
    if Primitive is None:
        return Native(native)
    primitive = Primitive(name)

    @lru_cache(maxsize=4096)
    def result(*avals, **params):
        return jax.make_jaxpr(partial(native, **params))(*avals).out_avals[0]

    # One jitted function for all shapes, so that jax.clear_caches() frees what was compiled.
    @partial(jax.jit, static_argnums=0)
    def compiled(params: tuple, *arrays):
        return primitive.bind(*arrays, **dict(params))

    primitive.def_impl(lambda *arrays, **params: compiled(tuple(params.items()), *arrays))
    primitive.def_abstract_eval(result)
    primitive_batchers[primitive] = lambda arrays, axes, **params: (
        jax.vmap(partial(portable, **params), axes)(*arrays),
        0,
    )
    _lower(primitive, native, lowerings)
    return primitive


def _lower(primitive: Any, native: Callable, lowerings: dict[str, Callable]) -> None:
    register_lowering(primitive, lower_fun(native, multiple_results=False))
    for platform, lowering in lowerings.items():
        register_lowering(primitive, lower_fun(lowering, multiple_results=False), platform=platform)


def bilinear(primitive: Any, first: Callable, second: Callable) -> None:
    """Says that a primitive is bilinear, and what `first(ct, a, b)` and `second(ct, a, b)` its two gradients are."""
    if Primitive is not None:
        defbilinear(primitive, first, second)


def differentiate_like(primitive: Any, other: Any) -> None:
    if Primitive is not None:
        primitive_jvps[primitive] = primitive_jvps[other]
        primitive_transposes[primitive] = primitive_transposes[other]


def is_traced(x: Any) -> bool:
    """Whether `x` is an array of a function that is being traced, and so has no values."""
    return isinstance(x, Tracer) if Tracer else isinstance(x, jax.Array) and type(x).__name__.endswith('Tracer')


def explicitly_sharded(x: jax.Array) -> bool:
    """Whether the type of `x` says that an axis lies over the devices of a mesh, which reshapes must then be told."""
    sharding = getattr(jax.typeof(x), 'sharding', None)
    return any(axis is not None for axis in getattr(sharding, 'spec', ()))


def on_mesh_of(x: jax.Array, array: jax.Array) -> jax.Array:
    """`array`, which the mesh that `x` explicitly lies over has copies of, if no mesh is part of its type.

    XLA's convolution has no kernel gradient for a kernel of another mesh, such as one that a file was read into.
    """
    if not explicitly_sharded(x) or not jax.typeof(array).sharding.mesh.empty:
        return array
    return jax.reshard(array, NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec()))


def varying_axes(x: jax.Array) -> frozenset[str]:
    """The axes of a shard_map over which `x` differs from device to device."""
    return getattr(getattr(jax.typeof(x), 'manual_axis_type', None), 'varying', frozenset())


def inner_jaxprs(jaxpr: Any) -> Iterator[Any]:
    """The programs within a program: the bodies of its jits, loops, branches and checkpoints."""
    for equation in jaxpr.eqns:
        for leaf in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, 'eqns')):
            if hasattr(leaf, 'eqns'):
                yield getattr(leaf, 'jaxpr', leaf)
