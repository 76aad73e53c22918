"""Height and width given as one number or two."""

import operator
from collections.abc import Sequence

Pair = tuple[int, int]
IntOrPair = int | Sequence[int]


def pair(value: IntOrPair, name: str) -> Pair:
    """`3` and `(3, 3)` both mean (height 3, width 3). Numpy's integers count as integers.

    Raises:
      ValueError: anything else; `name` says which argument it was.
    """
    try:
        return (operator.index(value),) * 2
    except TypeError:
        pass
    try:
        height, width = map(operator.index, value)
    except (TypeError, ValueError):
        raise ValueError(f'{name} must be an int or a (height, width) pair of ints, got {value!r}') from None
    return height, width
