"""Walking through traced computations; the one place of this package that imports jax's unstable names for them."""

from collections.abc import Iterator

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

__all__ = ['Jaxpr', 'JaxprEqn', 'Var', 'inner', 'nested']


def inner(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """The computations that an equation holds: a jit's, a remat's, the branches of a cond."""
    for value in equation.params.values():
        for each in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(each, (Jaxpr, ClosedJaxpr)):
                yield getattr(each, 'jaxpr', each)


def nested(jaxpr: Jaxpr) -> Iterator[Jaxpr]:
    """`jaxpr` and all those within it."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for each in inner(equation):
            yield from nested(each)
