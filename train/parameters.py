"""Parameters by torch's names: which of them a run leaves as they are, and which decay."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from flaxzoo.registry import suggest
from flaxzoo.weights.convert import torch_names
from train.config import ConfigError

Path = tuple[str, ...]


def frozen_paths(params: Any, patterns: Iterable[str]) -> set[Path]:
    """Paths of the parameters that config.freeze names; a pattern that names none is a ConfigError."""
    for pattern in patterns:
        if not _named(params, [pattern]):
            near = suggest(pattern, list(_names(params).values()))
            raise ConfigError(f'config.freeze: no parameter has the torch name {pattern!r}{near}')
    return _named(params, patterns)


def decayed_paths(params: Any, no_weight_decay: Iterable[str] = ()) -> set[Path]:
    """Paths of the parameters that weight decay is for: matrices and kernels.

    Not biases and the affine terms of norms, which are vectors, nor what the network excludes by torch-name wildcards:
    tokens, tables of positions, scales.
    """
    excluded = _named(params, no_weight_decay)
    leaves = torch_names({'params': params}).values()
    return {path[1:] for path, leaf in leaves if leaf.ndim > 1} - excluded


def _named(params: Any, patterns: Iterable[str]) -> set[Path]:
    patterns = tuple(patterns)
    return {path for path, name in _names(params).items() if any(fnmatchcase(name, p) for p in patterns)}


def _names(params: Any) -> dict[Path, str]:
    return {path[1:]: name for name, (path, _) in torch_names({'params': params}).items()}
