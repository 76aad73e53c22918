"""Says whose weights they are when they do not fit: which registered network has the most alike tensors."""

import math
import re
from collections.abc import Mapping
from functools import cache

from flaxzoo.registry import MODELS, create
from flaxzoo.weights import catalog
from flaxzoo.weights.convert import template, torch_names, torch_shape

Shapes = Mapping[str, tuple[int, ...]]


def explain(name: str, given: Shapes, expected: Shapes) -> str:
    """A sentence, without its full stop, on why tensors of these names and shapes are not those of network `name`."""
    prefixes = {key.partition('.')[0] for key in given}
    for prefix in prefixes:
        inner = {key.removeprefix(f'{prefix}.') for key in given if key.startswith(f'{prefix}.')}
        if len(inner & expected.keys()) > 0.8 * len(expected) and len(given.keys() & expected.keys()) < len(inner):
            return f'Its names have the prefix {prefix!r}: remove it, {{k.removeprefix({prefix + "."!r}): v for ...}}'
    (best, share), *others = resembling(given)
    if share < 0.3:
        return 'They resemble no registered network'
    also = ', '.join(f'{other} {share:.0%}' for other, share in others[:2] if share > 0.3 and other != best)
    if best == name:
        return f'They are nearest to {name} even so: {share:.0%} of the tensors have the same name and shape'
    return f'They resemble {best} most: {share:.0%} of the tensors have the same name and shape' + (
        f' ({also})' if also else ''
    )


def resembling(given: Shapes) -> list[tuple[str, float]]:
    """Registered networks, most alike first, with the share of tensors that have the same name and shape.

    Tracing a network takes a fraction of a second, so not all are compared: first the four whose number of parameters
    in the catalogue is nearest. If one of them fits, its relatives that are not in the catalogue; else one of each
    family, by its names without their numbers, and then the two families that are nearest.
    """
    tensors = set(given.items())
    known = {row.model: row.parameters for row in catalog.releases() if row.model in MODELS}
    count = sum(math.prod(shape) for key, shape in given.items() if 'running_' not in key)
    # A head of fewer classes, the usual difference, makes the file smaller, seldom larger.
    candidates = sorted(known, key=lambda name: max(known[name] - count, 4 * (count - known[name])))[:4]
    shares = {name: _overlap(tensors, set(_shapes(name).items())) for name in candidates}
    best = max(shares, key=lambda name: shares[name])
    if shares[best] > 0.9:
        more = [name for name, builder in MODELS.items() if name not in known and builder.func is MODELS[best].func]
    else:
        more = _nearest_families(given)
    shares |= {name: _overlap(tensors, set(_shapes(name).items())) for name in more}
    return sorted(shares.items(), key=lambda item: item[1], reverse=True)


def _nearest_families(given: Shapes) -> list[str]:
    """The networks of the two classes whose tensors' names are most alike."""
    families: dict[type, list[str]] = {}
    for name, builder in MODELS.items():
        families.setdefault(builder.func, []).append(name)
    kinds = {_kind(key) for key in given}
    alike = {family: _overlap(kinds, {_kind(key) for key in _shapes(names[0])}) for family, names in families.items()}
    nearest = sorted(alike, key=lambda family: alike[family], reverse=True)[:2]
    return [name for family in nearest for name in families[family]]


@cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    leaves = torch_names(template(create(name)))
    return {key: torch_shape(path, leaf.shape) for key, (path, leaf) in leaves.items()}


def _kind(key: str) -> str:
    """A name without its numbers."""
    return re.sub(r'\d+', '#', key)


def _overlap(one: set, other: set) -> float:
    """Size of the intersection over the mean size of both."""
    return 2 * len(one & other) / max(len(one) + len(other), 1)
