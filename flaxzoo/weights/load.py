"""`load`: a network with released or own weights, in one line and without torch."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from flaxzoo.registry import MODELS, lookup
from flaxzoo.weights import catalog
from flaxzoo.weights.adapt import Architecture, Changes, adapt, initialise
from flaxzoo.weights.convert import ConversionError, from_torch
from flaxzoo.weights.files import read_weights
from flaxzoo.weights.hub import fetch

logger = logging.getLogger('flaxzoo')

SUFFIXES = ('.pth', '.pt', '.bin', '.ckpt', '.safetensors', '.npz')


@dataclass(frozen=True)
class LoadReport:
    """Where weights came from and what was changed to make them fit; `str()` has a line for each change.

    Attributes:
      path: the local file.
      release: the row of the catalogue, or None for other files.
      changes: the tensors that are new, adapted, dropped or renamed.
    """

    path: Path
    release: catalog.Release | None
    changes: Changes

    def __str__(self) -> str:
        return f'{self.path}\n{self.changes}'


def load(
    name: str,
    weights: str | os.PathLike = catalog.DEFAULT,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    rng: jax.Array | int = 0,
    offline: bool | None = None,
    **fields: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """A network and its variables from released weights or a file. What is changed to make them fit is logged.

    Args:
      name: one of `flaxzoo.list_models()`.
      weights: a tag of the catalogue ('IMAGENET1K_V2'; 'DEFAULT' is the source's best), the path of a file that
        `read_weights` reads, its URL, or 'hf-hub:OWNER/NAME[@REVISION]'.
      num_classes: the default is the release's. If the file has another number, the head is initialised anew.
      in_channels: channels of the images. If the file's first convolution takes three, it is summed over them (for 1)
        or they are repeated and scaled by 3 / in_channels, as timm does.
      rng: key or seed for what is initialised anew.
      offline: use cached files only; None follows the environment variable FLAXZOO_OFFLINE.
      **fields: other fields of the network. Tensors of a part that they switch off (`aux_logits=False`) are dropped.

    Returns:
      (model, variables): `model.apply(variables, x)` gives logits for `x` prepared by `flaxzoo.transforms`.

    Raises:
      ValueError: no network has this name.
      WeightsError, DownloadError: there are no such weights, or they cannot be fetched or read.
      ConversionError: they do not fit; the message says whose they are.
      FileNotFoundError: there is no such file.
    """
    model, variables, _ = load_with_report(
        name, weights, num_classes=num_classes, in_channels=in_channels, rng=rng, offline=offline, **fields
    )
    return model, variables


def load_with_report(
    name: str,
    weights: str | os.PathLike = catalog.DEFAULT,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    rng: jax.Array | int = 0,
    offline: bool | None = None,
    **fields: Any,
) -> tuple[nn.Module, dict[str, Any], LoadReport]:
    """`load`, with a report of what was new, adapted or dropped as the third result."""
    if name not in MODELS and catalog.tags(name):
        raise ValueError(f'{name} has released weights, but the network is not in flaxzoo yet; see list_models()')
    lookup(name)
    if isinstance(in_channels, bool) or not isinstance(in_channels, int) or in_channels < 1:
        raise ValueError(f'in_channels must be a positive integer, got {in_channels!r}')
    path, release = locate(name, weights, offline)
    if release and release.crop and lookup(name).func.fixed_size:
        fields = {'image_size': release.crop, **fields}
    classes = num_classes if num_classes is not None or release is None else release.classes or None
    architecture = Architecture(name, fields if classes is None else {**fields, 'num_classes': classes}, in_channels)
    model = architecture.build()
    try:
        fitted, changes = adapt(
            architecture,
            read_weights(path),
            replace_head=num_classes is not None,
            label_offset=release.label_offset if release else 0,
        )
    except ConversionError as error:
        raise ConversionError(f'{path}: {error}') from None
    if changes.new:
        key = jax.random.key(rng) if isinstance(rng, int) else rng
        fitted |= initialise(architecture, changes.new, key)
    report = LoadReport(path, release, changes)
    _log(name, report)
    return model, from_torch(model, fitted, input_shape=architecture.image()), report


def locate(name: str, weights: str | os.PathLike, offline: bool | None) -> tuple[Path, catalog.Release | None]:
    """The local file that `weights` means for network `name`, fetched if need be, and its row of the catalogue."""
    if isinstance(weights, str):
        if weights.startswith('hf-hub:') or '://' in weights:
            release = next((row for row in catalog.releases() if row.url == weights and row.model == name), None)
            return fetch(weights, release.sha256 if release else '', offline=offline), release
        if not weights.endswith(SUFFIXES) and os.sep not in weights and not Path(weights).is_file():
            release = catalog.find(name, weights)
            return fetch(release.url, release.sha256, offline=offline), release
    elif not isinstance(weights, os.PathLike):
        raise TypeError(f'weights must be a tag, a path or a URL, got {type(weights).__name__}')
    path = Path(weights)
    if not path.exists():
        raise FileNotFoundError(f'there is no file {path}')
    return path, None


def _log(name: str, report: LoadReport) -> None:
    """One line for each kind of change, so that none is silent."""
    changes: Mapping[str, Mapping[str, str]] = vars(report.changes)
    for kind in ('new', 'adapted', 'dropped'):
        if changes[kind]:
            keys = list(changes[kind])
            more = f' and {len(keys) - 4} more' if len(keys) > 4 else ''
            logger.warning('%s: %s %s%s: %s', name, kind, ', '.join(keys[:4]), more, changes[kind][keys[0]])
    if report.release and not report.release.classes and not report.changes.new:
        logger.warning('%s: %s has no usable head, only features', name, report.release.tag)
