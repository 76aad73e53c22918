"""Walking through traced computations."""

from collections.abc import Iterator

import jax

from flaxzoo.ops._jax import Jaxpr, JaxprEqn, Var

__all__ = ['Jaxpr', 'JaxprEqn', 'Var', 'inner', 'nested']


def inner(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """The computations that an equation holds: a jit's, a remat's, the branches of a cond."""
    for leaf in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, 'eqns')):
        if hasattr(leaf, 'eqns'):
            yield getattr(leaf, 'jaxpr', leaf)


def nested(jaxpr: Jaxpr) -> Iterator[Jaxpr]:
    """`jaxpr` and all those within it."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for each in inner(equation):
            yield from nested(each)
