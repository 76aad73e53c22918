"""What is in a file for a network: which of several state dicts is its own, and for how many classes that is."""

import logging
import re
from collections.abc import Mapping
from types import SimpleNamespace

from flaxzoo.registry import suggest
from flaxzoo.weights.adapt import Architecture, fitness
from flaxzoo.weights.dialects import dialects, find, unwrap
from flaxzoo.weights.errors import ConversionError, WeightsError

logger = logging.getLogger('flaxzoo')

Shapes = Mapping[str, tuple[int, ...]]

# Below this share of the network a state dict is another's: `adapt` says whose.
LEAST = 0.2
# Parts of the keys under which training programs keep averages of the weights.
AVERAGED = re.compile(r'(^|[._])(ema|swa|averaged?|shadow)([._]|$)', re.IGNORECASE)


def choose(candidates: Mapping[str, Shapes], architecture: Architecture, key: str | None = None) -> str:
    """The key of the state dict that fits a network best.

    Args:
      candidates: {key: {name: shape}}; '' is the top of the file, 'a.b' lies in 'a'.
      architecture: the network.
      key: the one that was asked for.

    Returns:
      `key`; else that which has most of the network. Among equals, one that has more of the head; then the one that is
      an average of others, which is logged. If none has much of it, the largest.

    Raises:
      WeightsError: there is none called `key`, or several fit equally.
    """
    if key is not None:
        if key not in candidates:
            near, listed = suggest(key, list(candidates)), _listed(candidates)
            raise WeightsError(f'the file has no state dict with key={key!r}{near}; it has {listed}')
        return key
    if len(candidates) == 1:
        return next(iter(candidates))
    scores = {name: _fitness(architecture, shapes) for name, shapes in candidates.items()}
    if max(scores.values()) < LEAST:
        return max(candidates, key=lambda name: len(candidates[name]))
    best = _outermost(_best(scores))
    if len(best) > 1:
        wanted = architecture.shapes().items()
        best = _best({name: len(candidates[name].items() & wanted) for name in best})
    if len(best) > 1:
        averages = [name for name in best if AVERAGED.search(name)]
        if len(averages) != 1:
            listed = _listed(best)
            raise WeightsError(
                f'the file holds several state dicts that fit equally: {listed}; name one: key={best[0]!r}'
            )
        logger.warning('the file holds several state dicts (%s): reading the average, %r', _listed(best), averages[0])
        best = averages
    return best[0]


def classes_of(shapes: Shapes, architecture: Architecture) -> int | None:
    """The number of classes of the heads in a state dict; None if it has none that is known, or of several widths."""
    heads, shapes = architecture.heads().keys(), unwrap(shapes)
    try:
        reading = find(shapes, architecture.shapes(), heads, dialects(architecture.name))
    except ConversionError:  # adapt says what is wrong with it
        return None
    names = reading.names(shapes)
    widths = {shapes[names[head]][:1] for head in heads if head in names}
    return widths.pop()[0] if len(widths) == 1 and () not in widths else None


def _fitness(architecture: Architecture, shapes: Shapes) -> float:
    """The share of the network that a state dict has."""
    try:
        return fitness(architecture, {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()})
    except ConversionError:  # names of two dialects at once
        return 0.0


def _best(scores: Mapping[str, float]) -> list[str]:
    return [name for name, score in scores.items() if score == max(scores.values())]


def _outermost(keys: list[str]) -> list[str]:
    """The keys that lie in no other; but where one holds several of them that are apart, those instead of it."""

    def inside(key: str, other: str) -> bool:
        return key != other and (not other or key.startswith(f'{other}.'))

    def apart(key: str | None) -> list[str]:
        within = [other for other in keys if key is None or inside(other, key)]
        children = [child for child in within if not any(inside(child, other) for other in within)]
        found = [name for child in children for name in apart(child)]
        return found if key is None or len(found) > 1 else [key]

    return apart(None)


def _listed(keys: list[str] | Mapping[str, Shapes]) -> str:
    shown = [repr(key) for key in keys]
    return ', '.join(shown[:8]) + (f' and {len(shown) - 8} more' if len(shown) > 8 else '')
