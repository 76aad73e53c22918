"""Says why weights do not fit a network, and whose they are: which registered network has the most alike tensors."""

import dataclasses
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache, partial

from flaxzoo.dialect import Dialect
from flaxzoo.registry import MODELS
from flaxzoo.weights.architecture import Architecture, Shapes
from flaxzoo.weights.dialects import Reading, dialects, own_heads, prefixes, unwrap
from flaxzoo.weights.errors import ConversionError

SHOWN = 12  # lines of an error that lists tensors


@dataclass(frozen=True)
class Misfit:
    """What of the weights does not fit a network: nothing, or an error.

    Attributes:
      architecture: the network.
      given: the shapes of the weights, by the network's names where they were understood.
      shapes: the shapes of the network.
      heads: the names of its heads, if the trunk or part of it was found.
      missing: names that the weights lack.
      extra: names that the network lacks.
      wrong: the weights' shapes where they differ.
      buffers: lines on buffers of another value.
    """

    architecture: Architecture
    given: Shapes
    shapes: Shapes
    heads: Set[str]
    missing: Set[str]
    extra: Set[str]
    wrong: Shapes
    buffers: Sequence[str] = ()

    def check(self) -> None:
        """Raises unless every leaf is filled once and every tensor used once.

        Raises:
          ConversionError: with what to do about it, or whose weights they are.
        """
        problems = [f'- {key}' for key in self.missing] + [f'+ {key}' for key in self.extra] + [*self.buffers]
        problems += [f'! {key}: shape {shape}, expected {self.shapes[key]}' for key, shape in self.wrong.items()]
        if not problems:
            return
        more = [f'... and {len(problems) - SHOWN} more'] if len(problems) > SHOWN else []
        listed = '\n  '.join([*sorted(problems)[:SHOWN], *more])
        raise ConversionError(
            f'the weights do not fit {self.architecture.name}. {self._advice()}.\n'
            f'(- missing, + extra, ! wrong; {len(problems)} in all):\n  {listed}'
        )

    def _advice(self) -> str:
        """A sentence, without its full stop, on what to do."""
        stems = self._wrong_stems()
        foreign = self.extra - own_heads(self.extra, self.shapes, self.heads)
        trunk_fits = self.missing <= self.heads and self.wrong.keys() <= self.heads | stems.keys() and not foreign
        if trunk_fits and (self.missing or self.wrong):
            advice = [self._on_channels(stems)] if stems else []
            advice += [self._on_heads()] if self.missing or self.wrong.keys() & self.heads else []
            return '. '.join(advice)
        (best, share), *others = resembling(self.given)
        if best == self.architecture.name and (switch := self._switched_off()):
            return switch
        if share < 0.3:
            return 'They resemble no registered network'
        if best == self.architecture.name:
            return f'They are nearest to {best} even so: {share:.0%} of the tensors have the same name and shape'
        also = ', '.join(f'{other} {share:.0%}' for other, share in others[:2] if share > 0.3)
        return f'They resemble {best} most: {share:.0%} of the tensors have the same name and shape' + (
            f' ({also})' if also else ''
        )

    def _wrong_stems(self) -> dict[str, int]:
        """{kernel: the file's channels} of first convolutions that are for other images."""
        stems = self.architecture.stems() if self.wrong and not self.missing - self.heads else set()
        return {
            key: shape[1]
            for key, shape in self.wrong.items()
            if key in stems and len(shape) > 1 and shape == (self.shapes[key][0], shape[1], *self.shapes[key][2:])
        }

    def _on_channels(self, stems: Mapping[str, int]) -> str:
        channels = next(iter(stems.values()))
        only = '' if 3 in (channels, self.architecture.in_channels) else ', as only 3 are converted to others'
        return f'The file is for images of {channels} channels: in_channels={channels}' + only

    def _on_heads(self) -> str:
        if self.missing:
            heads = f'It has no head ({", ".join(sorted(self.missing))}'
            other = f', but {", ".join(sorted(self.extra)[:2])})' if self.extra else ')'
            return heads + other + ': take its features by num_classes=0, or a new head by num_classes=N'
        key = next(key for key in self.wrong if key in self.heads)
        classes, expected = self.wrong[key][0], self.shapes[key][0]
        replace = '' if 'num_classes' in self.architecture.fields else f', or replace it by num_classes={expected}'
        return f'The file is for {classes} classes. Keep its head by num_classes={classes}' + replace

    def _switched_off(self) -> str | None:
        """Advice where the weights are those of the network without a part that a field switches off."""
        model = self.architecture.build()
        on = [item.name for item in dataclasses.fields(model) if getattr(model, item.name) is True]
        for name in on if self.missing else ():
            rest = self.architecture.but(**{name: False}).shapes().keys()
            if rest - self.heads <= self.given.keys() and not self.missing & rest - self.heads:
                parts = ', '.join(sorted({key.partition('.')[0] for key in self.missing}))
                return f'It has no {parts}: load it with {name}=False'
        return None


def resembling(given: Shapes) -> list[tuple[str, float]]:
    """Registered networks, most alike first, with the share of tensors that have the same name and shape.

    Nothing is traced: the networks' tensors are in the index. Names are also compared under prefixes and in the
    dialects of each family.
    """
    from flaxzoo.weights.index import index  # here, as only errors need it

    given = unwrap(given)
    forms = cache(partial(_forms, given))
    shares = {}
    for name, shapes in index().items():
        if name in MODELS:
            tensors = set(shapes.items())
            shares[name] = max(_overlap(form, tensors) for form in forms(dialects(name)))
    return sorted(shares.items(), key=lambda item: item[1], reverse=True)


def _forms(given: Shapes, known: tuple[Dialect, ...]) -> list[set[tuple[str, tuple[int, ...]]]]:
    """Names and shapes under each prefix that most have, translated if a known dialect applies."""
    forms = []
    for start in prefixes(given, len(given) / 2):
        inner = [key.removeprefix(start) for key in given if key.startswith(start)]
        reading = Reading(start, next((dialect for dialect in known if dialect.applies(inner)), None))
        forms.append({(reading.name(start + key), given[start + key]) for key in inner})
    return forms


def _overlap(one: set, other: set) -> float:
    """Size of the intersection over the mean size of both."""
    return 2 * len(one & other) / max(len(one) + len(other), 1)
