"""Where lowerings other than XLA's own may be used, and what is known of symbolic shapes."""

from collections.abc import Callable

import jax
from jax import lax

from flaxzoo.ops._jax import explicitly_sharded
from flaxzoo.ops.plain import is_plain


def native_only(*arrays: jax.Array) -> bool:
    """Whether nothing but jax's own operations may compute with `arrays`.

    So it is in plain mode; where a shape is symbolic, which a lowering would take for numbers; and where the sharding
    of an array is part of its type, because a lowering's reshapes do not say how their results are sharded.
    """
    concrete = all(is_concrete(size) for array in arrays for size in array.shape)
    return is_plain() or not concrete or any(map(explicitly_sharded, arrays))


def by_platform(native: Callable, *arrays: jax.Array, **lowerings: Callable) -> jax.Array:
    """`native(*arrays)`, or on a platform of `lowerings` an equal of it."""
    if native_only(*arrays):
        return native(*arrays)
    return lax.platform_dependent(*arrays, **lowerings, default=native)


def is_concrete(size: int) -> bool:
    """Whether an element of a shape is a number, and not a symbol of `jax.export`."""
    return isinstance(size, int)


def surely_less(size: int, bound: int) -> bool:
    """Whether `size` is less than `bound`, as far as is known: of a symbol of `jax.export` it may not be."""
    try:
        return bool(size < bound)
    except jax.errors.InconclusiveDimensionOperation:
        return False
