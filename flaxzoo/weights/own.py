"""What files of `flaxzoo.save(path, variables, model=model)` say of their network."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxzoo.weights.errors import WeightsError
from flaxzoo.weights.files import read_metadata


def own_network(path: str | os.PathLike) -> tuple[str, Mapping[str, Any]]:
    """Name and fields of the network that a file is of.

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: it does not say.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f'there is no file {path}')
    name = read_metadata(path).get('flaxzoo.model')
    if not name:
        raise WeightsError(f'{path} does not say what network it is of: flaxzoo.load(NAME, {str(path)!r})')
    return name, stated_fields(path)


def stated_fields(path: str | os.PathLike) -> Mapping[str, Any]:
    """The fields of the network that a file is of; empty if it does not say.

    Raises:
      WeightsError: what it says is not a JSON object.
    """
    return {name: _hashable(value) for name, value in _stated(path, 'flaxzoo.fields').items()}


def stated_preset(path: str | os.PathLike) -> Mapping[str, Any]:
    """The fields of the `Preset` that a file's network had; empty if it does not say."""
    return {name: _hashable(value) for name, value in _stated(path, 'flaxzoo.preset').items()}


def _stated(path: str | os.PathLike, key: str) -> Mapping[str, Any]:
    """A JSON object in the metadata of a file; empty if there is none."""
    text = read_metadata(path).get(key, '{}')
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise WeightsError(f'{path}: its metadata {key!r} is not a JSON object: {text!r:.80}')
    return value


def _hashable(value: Any) -> Any:
    """JSON's lists as tuples: fields of a network must be hashable."""
    if isinstance(value, dict):
        return {name: _hashable(inner) for name, inner in value.items()}
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
