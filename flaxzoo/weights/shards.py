"""The index of weights in several files: which file beside it holds which tensors."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxzoo.weights.errors import WeightsError

LARGEST_INDEX = 1 << 24  # bytes of JSON


def read_index(path: Path) -> dict[str, set[str]]:
    """{file name: names of its tensors} in an index; each file lies beside it.

    Raises:
      WeightsError: it is not an index, or names what could lie elsewhere.
    """
    parts: dict[str, set[str]] = {}
    for name, part in _weight_map(path).items():
        # Only strings become keys: numbers can be chosen to collide, which takes the square of their count in time.
        # What has a separator, of this system or another, could lie elsewhere.
        if not isinstance(part, str) or not re.fullmatch(r'[^/\\:\0]+\.(safetensors|bin|pth|pt)', part):
            raise WeightsError(f'refused: the index names {str(part)[:200]!r}, which is not a file beside it')
        parts.setdefault(part, set()).add(name)
    return parts


def _weight_map(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > LARGEST_INDEX:
            raise ValueError('too large')
        content = json.loads(path.read_text('utf-8'))['weight_map']
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError('not an index of weights: it has no "weight_map", {name: file}') from error
    if not isinstance(content, dict):
        raise WeightsError('not an index of weights: its "weight_map" is not {name: file}')
    return content
