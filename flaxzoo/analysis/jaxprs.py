"""Walking through traced computations."""

from collections.abc import Iterator
from types import SimpleNamespace

from flaxzoo.ops._jax import Jaxpr, JaxprEqn, Var, inner_jaxprs

__all__ = ['Jaxpr', 'JaxprEqn', 'Var', 'inner', 'nested']


def inner(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """The computations that an equation holds: a jit's, a remat's, the branches of a cond."""
    return inner_jaxprs(SimpleNamespace(eqns=[equation]))


def nested(jaxpr: Jaxpr) -> Iterator[Jaxpr]:
    """`jaxpr` and all those within it."""
    yield jaxpr
    for each in inner_jaxprs(jaxpr):
        yield from nested(each)
