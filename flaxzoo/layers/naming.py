"""Torch's names for what a network computes: the members of its Sequentials, and values that can be asked for.

`feature_maps.py` records the values under their names while a network runs; otherwise the names cost nothing.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax

# A function of x; or a module's class or a partial of it, built where it runs and called with (x, train) or with x.
Layer = Callable[..., Any]


class Builder:
    """Something that builds a module when it is called, as a module's class does."""


class Finished(Exception):
    """Raised inside a network when all that was wanted of it is there."""


class Recorder:
    """Values by name while a network runs.

    Attributes:
      wanted: the names to keep; None keeps all.
      root: the path of the network in the module that it is part of.
      values: {torch name: value}, in the order in which they are computed.
    """

    def __init__(self, wanted: Iterable[str] | None, root: tuple[str, ...] = ()) -> None:
        self.wanted = None if wanted is None else frozenset(wanted)
        self.root = root
        self.values: dict[str, Any] = {}

    def record(self, path: Sequence[str], value: Any) -> None:
        name = '.'.join(path[len(self.root) :])
        if self.wanted is None or name in self.wanted:
            self.values[name] = value
            if self.wanted == self.values.keys():
                raise Finished

    def looks_into(self, module: nn.Module, name: str | None) -> bool:
        """Whether a value inside `module`'s part `name` is wanted (None: inside a part that has no name)."""
        if self.wanted is None or name is None:
            return True
        inside = '.'.join((*module.path[len(self.root) :], name, ''))
        return any(wanted.startswith(inside) for wanted in self.wanted)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Modules called and values named within are recorded."""

        def intercept(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            value = call(*args, **kwargs)
            path = context.module.path
            if context.method_name == '__call__' and len(path) > len(self.root) and not _unrecorded.get():
                self.record(path, value)
            return value

        token = _recorder.set(self)
        try:
            with nn.intercept_methods(intercept):
                yield
        finally:
            _recorder.reset(token)


_recorder: ContextVar[Recorder | None] = ContextVar('recorder', default=None)
_unrecorded: ContextVar[bool] = ContextVar('unrecorded', default=False)


def current_recorder() -> Recorder | None:
    """The recorder that is active, or None."""
    return _recorder.get()


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """What is computed within is not recorded: it does not leave a part that is traced by itself."""
    token = _unrecorded.set(True)
    try:
        yield
    finally:
        _unrecorded.reset(token)


def tap(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """`x`, which torch knows as `name` within `module`, though no module of ours computes it."""
    recorder = _recorder.get()
    if recorder and not _unrecorded.get():
        recorder.record((*module.path, name), x)
    return x


def sequential(
    module: nn.Module, x: jax.Array, train: bool, name: str, layers: Sequence[Layer | None], start: int = 0
) -> jax.Array:
    """`x` through the members of torch's nn.Sequential `name` of `module`, which are called `name.0`, `name.1`, ...

    `start` is the number of the first. Functions count: a ReLU or a pool has a number in torch too. None counts and
    does nothing.
    """
    for number, layer in enumerate(layers, start):
        if layer is None:
            continue
        member = f'{name}.{number}'
        x = run(partial(layer, name=member), x, train) if is_module(layer) else tap(module, member, layer(x))
    return x


def run(layer: Layer, x: jax.Array, train: bool) -> jax.Array:
    """`x` through the module that `layer` builds, told `train` if it asks for it."""
    module = layer()
    return module(x, train) if _takes_train(type(module)) else module(x)


def is_module(layer: Layer) -> bool:
    """Whether `layer` builds a module, and is no function of x."""
    while isinstance(layer, partial):
        layer = layer.func
    return isinstance(layer, Builder) or (isinstance(layer, type) and issubclass(layer, nn.Module))


@cache
def _takes_train(kind: type[nn.Module]) -> bool:
    return 'train' in inspect.signature(kind.__call__).parameters
