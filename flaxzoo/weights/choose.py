"""Which of several state dicts in a file is the network's."""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from flaxzoo.registry import suggest
from flaxzoo.weights.errors import WeightsError

logger = logging.getLogger('flaxzoo')

AVERAGED = re.compile(r'(^|[._])(ema|swa|averaged?|shadow)([._]|$)|averaged_model|_ema|ema_', re.IGNORECASE)


def choose(
    candidates: Mapping[str, Mapping[str, Any]], shapes: Mapping[str, tuple[int, ...]], key: str | None = None
) -> str:
    """The key of the state dict that fits best.

    Args:
      candidates: {key: {torch name: array}}.
      shapes: {torch name: shape} of what the network has.
      key: the one that was asked for.

    Returns:
      `key`; else that of the most tensors with the names and shapes of the network, then of the most with its shapes;
      among equals the one that is an average of others, which is logged.

    Raises:
      WeightsError: there is none called `key`, or several fit equally.
    """
    listed = ', '.join(map(repr, candidates))
    if key is not None:
        if key not in candidates:
            near = suggest(key, list(candidates))
            raise WeightsError(f'the file has no state dict with key={key!r}{near}; it has {listed}')
        return key
    fits = {name: _fit(weights, shapes) for name, weights in candidates.items()}
    best = [name for name, fit in fits.items() if fit == max(fits.values())]
    if len(best) > 1:
        averages = [name for name in best if AVERAGED.search(name)]
        if len(averages) != 1:
            raise WeightsError(
                f'the file holds several state dicts that fit equally, {", ".join(map(repr, best))}; name one: '
                f'key={best[0]!r}'
            )
        logger.warning('the file holds several state dicts (%s): reading the average, %r', listed, averages[0])
        best = averages
    return best[0]


def _fit(weights: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Tensors with the name and shape of one of the network's, and tensors with the shape alone."""
    given = {name: tuple(value.shape) for name, value in weights.items()}
    named = sum(shapes.get(name) == shape for name, shape in given.items())
    return named, (Counter(given.values()) & Counter(shapes.values())).total()
