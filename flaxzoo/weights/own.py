"""What files of `flaxzoo.save(path, variables, model=model)` say of their network."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxzoo.weights.errors import WeightsError


def own_network(path: str | os.PathLike) -> tuple[str, Mapping[str, Any]]:
    """Name and fields of the network that a file is of.

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: it does not say.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f'there is no file {path}')
    name = _metadata(path).get('flaxzoo.model')
    if not name:
        raise WeightsError(f'{path} does not say what network it is of: flaxzoo.load(NAME, {str(path)!r})')
    return name, stated_fields(path)


def stated_fields(path: str | os.PathLike) -> Mapping[str, Any]:
    """The fields of the network that a file is of; empty if it does not say.

    Raises:
      WeightsError: what it says is not a JSON object.
    """
    text = _metadata(path).get('flaxzoo.fields', '{}')
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise WeightsError(f"{path}: its metadata 'flaxzoo.fields' is not a JSON object: {text!r:.80}")
    return {name: _hashable(value) for name, value in fields.items()}


def _metadata(path: str | os.PathLike) -> Mapping[str, str]:
    """The metadata in a safetensors file; other formats have none."""
    from safetensors import SafetensorError, safe_open

    with Path(path).open('rb') as file:
        if file.read(9)[8:] != b'{':
            return {}
    try:
        with safe_open(path, 'np') as file:
            return file.metadata() or {}
    except SafetensorError:  # the reader says what is wrong with it
        return {}


def _hashable(value: Any) -> Any:
    """JSON's lists as tuples: fields of a network must be hashable."""
    if isinstance(value, dict):
        return {name: _hashable(inner) for name, inner in value.items()}
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
