"""What files of `flaxzoo.save(path, variables, model=model)` say of their network."""

import json
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxzoo.layers import BatchNorm, LayerNorm, Norm
from flaxzoo.weights.errors import WeightsError
from flaxzoo.weights.files import read_metadata

NORMS = {kind.__name__: kind for kind in (BatchNorm, LayerNorm)}


def own_network(path: str | os.PathLike) -> str:
    """The name of the network that a file is of.

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: it does not say.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f'there is no file {path}')
    name = read_metadata(path).get('flaxzoo.model')
    if not name:
        raise WeightsError(f'{path} does not say what network it is of; name it: flaxzoo.load(NAME, {str(path)!r})')
    return name


def stated_fields(path: str | os.PathLike, name: str) -> Mapping[str, Any]:
    """The fields of the network `name` that a file is of; empty if it is of another or does not say.

    Raises:
      WeightsError: what it says is not a JSON object.
    """
    if read_metadata(path).get('flaxzoo.model') != name:
        return {}
    return {field: _value(value) for field, value in _stated(path, 'flaxzoo.fields').items()}


def stated_preset(path: str | os.PathLike) -> Mapping[str, Any]:
    """The fields of the `Preset` that a file's network had; empty if it does not say."""
    return {field: _value(value) for field, value in _stated(path, 'flaxzoo.preset').items()}


def as_json(value: Any) -> Any:
    """What stands in a file for a field's value that JSON does not have: a `Norm` or an integer of numpy.

    Raises:
      TypeError: it is something else.
    """
    if isinstance(value, Norm) and NORMS.get(value.kind.__name__) is value.kind:
        return {'Norm': {'kind': value.kind.__name__, 'eps': float(value.eps), 'momentum': float(value.momentum)}}
    return operator.index(value)


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


def _value(value: Any) -> Any:
    """A field's value from JSON: lists as tuples, for fields must be hashable, and what `as_json` wrote."""
    match value:
        case {'Norm': {'kind': str(kind), 'eps': float(eps), 'momentum': float(momentum)}} if kind in NORMS:
            return Norm(NORMS[kind], eps, momentum)
        case dict():
            return {name: _value(inner) for name, inner in value.items()}
        case list():
            return tuple(map(_value, value))
    return value
