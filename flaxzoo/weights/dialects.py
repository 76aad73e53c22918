"""Finds the tensors of a network in a file: in its own names or a dialect's, under any prefix, or numbered.

What is looked for is the network's names and shapes. Nothing here lists prefixes or wrappers' attribute names but
`WRAPPERS`, whose members stand in the middle of names.
"""

import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from flaxzoo.dialect import Dialect
from flaxzoo.registry import lookup
from flaxzoo.weights.errors import ConversionError

Shapes = Mapping[str, tuple[int, ...]]

# What DataParallel, torch.compile, FSDP and activation checkpointing put into names, wherever a module is wrapped.
WRAPPERS = frozenset(('module', '_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module'))


def dialects(name: str) -> tuple[Dialect, ...]:
    """Those of the network's family that hold for it."""
    family = sys.modules[lookup(name).func.__module__]
    every: tuple[Dialect, ...] = getattr(family, 'DIALECTS', ())
    return tuple(one for one in every if any(fnmatchcase(name, pattern) for pattern in one.networks))


@dataclass(frozen=True)
class Reading:
    """A way to understand the names in a file.

    Attributes:
      prefix: what the network's names have before them; others are outside the network.
      dialect: whose names they are, or None for the network's own.
      children: {number: name} of the network's children in an `nn.Sequential` of them.
    """

    prefix: str = ''
    dialect: Dialect | None = None
    children: Mapping[str, str] = field(default_factory=dict)

    def name(self, key: str) -> str | None:
        """Our name of what the file calls `key`; None if it is outside the network."""
        if not key.startswith(self.prefix):
            return None
        name = key.removeprefix(self.prefix)
        if self.dialect:
            name = self.dialect.translate(name)
        child, dot, rest = name.partition('.')
        return self.children.get(child, child) + dot + rest

    def names(self, given: Mapping[str, Any]) -> dict[str, str]:
        """{our name: name in the file}.

        Raises:
          ConversionError: two tensors of the file have one name.
        """
        result: dict[str, str] = {}
        for key in given:
            name = self.name(key)
            if name is None:
                continue
            if name in result:
                raise ConversionError(f'{result[name]!r} and {key!r} of the file are both {name!r} of the network')
            result[name] = key
        return result

    def fits(self, name: str, given: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        """Whether a tensor of the file has the shape of ours, or the numbers if the dialect reshapes it."""
        if given == shape:
            return True
        return bool(self.dialect) and math.prod(given) == math.prod(shape) and self.dialect.reshapes(name)

    def score(self, given: Shapes, shapes: Shapes, heads: Set[str]) -> float:
        """How much of the trunk the file has by name and shape, from 0 to 1; less if its trunk has more besides."""
        names = self.names(given)
        trunk = {name: shape for name, shape in shapes.items() if name not in heads}
        found = sum(name in names and self.fits(name, given[names[name]], shape) for name, shape in trunk.items())
        extra = names.keys() - shapes.keys()
        return found / max(len(trunk) + len(extra - own_heads(extra, shapes, heads)), 1)

    def __str__(self) -> str:
        words = [f'the names of {self.dialect.name}'] if self.dialect else []
        words += [f'names under {self.prefix!r}'] if self.prefix else []
        words += ['numbers of an nn.Sequential'] if self.children else []
        return ', '.join(words)


def unwrap(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights without the names of wrappers; as they are if two tensors would then have one name."""
    names = {'.'.join(part for part in key.split('.') if part not in WRAPPERS): key for key in weights}
    return {name: weights[key] for name, key in names.items()} if len(names) == len(weights) else dict(weights)


def own_heads(extra: Set[str], shapes: Shapes, heads: Set[str]) -> set[str]:
    """Those of the tensors that the network lacks which may be a head: in its head's place, or apart from its trunk."""
    trunk = {key.partition('.')[0] for key in shapes.keys() - heads}
    modules = tuple(key.rpartition('.')[0] + '.' for key in heads)
    return {key for key in extra if key.startswith(modules) or key.partition('.')[0] not in trunk}


def readings(
    given: Shapes, shapes: Shapes, heads: Set[str], known: tuple[Dialect, ...], prefix: str | None = None
) -> Iterator[tuple[float, Reading]]:
    """Ways to understand a file, each with its `score`.

    Args:
      given: the shapes of the file by its names.
      shapes: the shapes of the network.
      heads: the names of its heads.
      known: the dialects of its family.
      prefix: look under this one only.

    Raises:
      ConversionError: two dialects apply.
    """
    least = len(shapes.keys() - heads) / 2
    for start in prefixes(given, least) if prefix is None else [prefix]:
        inner = {key.removeprefix(start): shape for key, shape in given.items() if key.startswith(start)}
        applying = [dialect for dialect in known if dialect.applies(inner)]
        if len(applying) > 1:
            raise ConversionError(f'the file has names of {" and of ".join(dialect.name for dialect in applying)}')
        ways = [Reading(start, *applying)]
        if numbered := _numbered(inner, shapes, heads):
            ways.append(Reading(start, None, numbered))
        for reading in ways:
            yield reading.score(given, shapes, heads), reading


def find(
    given: Shapes, shapes: Shapes, heads: Set[str], known: tuple[Dialect, ...], prefix: str | None = None
) -> Reading:
    """The reading that finds most of the network; the network's own names if none finds much. Arguments: `readings`.

    Raises:
      ConversionError: two dialects apply, or the file has several networks that fit equally.
    """
    scored = list(readings(given, shapes, heads, known, prefix))
    best = max(score for score, _ in scored)
    first, *others = [reading for score, reading in scored if score == best]
    if best < 0.2:  # then it is for the sake of messages only
        return Reading(prefix or '')
    if others and best > 0.5:
        places = ' and '.join(repr(reading.prefix.rstrip('.')) for reading in (first, *others))
        raise ConversionError(f'the file has several networks that fit, under {places}: choose one by key=...')
    return first


def prefixes(given: Mapping[str, Any], least: float) -> list[str]:
    """The starts of names, up to a dot, that more than `least` names have; the empty one first."""
    counts: Counter[str] = Counter()
    for key in given:
        counts.update(key[: match.end()] for match in re.finditer(r'\.', key))
    return ['', *(start for start, count in counts.items() if count > least)]


def _numbered(given: Shapes, shapes: Shapes, heads: Set[str]) -> dict[str, str]:
    """{number: child} where `given` is numbered as `nn.Sequential(*network.children())` numbers it; else nothing.

    A number is the child whose tensors it has; a child that holds a head may have another one in the file. Children
    with the same tensors can be told apart only if they are themselves numbered, as block4 and block5.
    """
    trunk = _by_child({name: shape for name, shape in shapes.items() if name not in heads})
    children = {child: trunk.get(child, tensors) for child, tensors in _by_child(shapes).items()}
    alike: dict[frozenset, list[str]] = {}
    for child in sorted(children, key=lambda name: [int(digits) for digits in re.findall(r'\d+', name)]):
        alike.setdefault(children[child], []).append(child)
    numbers = {number: tensors for number, tensors in _by_child(given).items() if number.isdecimal()}
    result = {}
    for tensors, same in alike.items():
        found = sorted((number for number in numbers if tensors <= numbers[number]), key=int)
        if len(found) == len(same) and len({re.sub(r'\d+', '#', child) for child in same}) == 1:
            result |= zip(found, same, strict=True)
    return result


def _by_child(shapes: Shapes) -> dict[str, frozenset]:
    """{child: {(rest of the name, shape without the input channels)}}: a file may be for other images."""
    groups: dict[str, set] = {}
    for key, shape in shapes.items():
        child, _, rest = key.partition('.')
        groups.setdefault(child, set()).add((rest, tuple(shape[:1]) + tuple(shape[2:])))
    return {child: frozenset(tensors) for child, tensors in groups.items()}
