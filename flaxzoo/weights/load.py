"""`load`: a network with released or own weights, in one line and without torch."""

import dataclasses
import inspect
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flaxzoo.preset import preset_of
from flaxzoo.registry import MODELS, lookup, suggest
from flaxzoo.weights import catalog
from flaxzoo.weights.adapt import Architecture, Changes, adapt, initialise
from flaxzoo.weights.cache import Copy
from flaxzoo.weights.choose import choose, classes_of
from flaxzoo.weights.convert import ConversionError, from_torch
from flaxzoo.weights.errors import WeightsError
from flaxzoo.weights.files import candidates, read_weights
from flaxzoo.weights.own import own_network, stated_fields
from flaxzoo.weights.source import Source, is_default, is_file_name, parse, split
from flaxzoo.weights.state_dicts import StateDict, find, parts

logger = logging.getLogger('flaxzoo')

Weights = str | os.PathLike | Mapping[str, Any]


@dataclass(frozen=True)
class LoadReport:
    """Where weights came from and what was changed to make them fit; `str()` has a line for each change.

    Attributes:
      path: the local file; None for a dict.
      release: the row of the catalogue, or None for other files.
      changes: the tensors that are new, adapted, dropped or renamed.
      key: of the state dict in the file, if it holds several.
      sha256: of the file, if it was downloaded.
      revision: the commit of the hub repository that the file is of, if the server stated one.
    """

    path: Path | None
    release: catalog.Release | None
    changes: Changes
    key: str = ''
    sha256: str = ''
    revision: str = ''

    def __str__(self) -> str:
        return f'{self.path or "a dict"}\n{self.changes}'


def load(
    name: str | os.PathLike,
    weights: Weights = catalog.DEFAULT,
    *,
    key: str | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    rng: jax.Array | int = 0,
    offline: bool | None = None,
    refresh: bool = False,
    **fields: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """A network and its variables from released weights or a file. What is changed to make them fit is logged.

    Args:
      name: one of `flaxzoo.list_models()`; or a file alone, of `flaxzoo.save(path, variables, model=model)`, which says
        itself what network it is of.
      weights: a tag of the catalogue ('IMAGENET1K_V2'; 'DEFAULT' is the source's best), the path of a file that
        `read_weights` reads, its URL, 'hf-hub:OWNER/NAME[@REVISION][/FILE]', or {torch name: array}. A file in the
        current directory needs a suffix ('x.pth') or './' before its name.
      key: which state dict of a file that holds several ('model', 'ema.state_dict'), or a prefix of names in one
        ('encoder_q', 'model.backbone'); the default is the one that fits.
      num_classes: the default is the release's or the file's. With another number, the head is initialised anew.
      in_channels: channels of the images. If the file's first convolution takes three, it is summed over them (for 1)
        or they are repeated and scaled by 3 / in_channels, as timm does.
      rng: key or seed for what is initialised anew.
      offline: use cached files only; None follows the environment variable FLAXZOO_OFFLINE.
      refresh: download the file even if it is in the cache.
      **fields: other fields of the network, over those that the file itself states of this network. Tensors of a part
        that they switch off (`aux_logits=False`) are dropped.

    Returns:
      (model, variables): `model.apply(variables, x)` gives logits for `x` prepared by `flaxzoo.transforms(model)`.

    Raises:
      ValueError: no network has this name.
      TypeError: the network has no such field.
      WeightsError, DownloadError: there are no such weights, or they cannot be fetched or read.
      ConversionError: they do not fit; the message says whose they are.
      FileNotFoundError: there is no such file.
    """
    model, variables, _ = load_with_report(
        name,
        weights,
        key=key,
        num_classes=num_classes,
        in_channels=in_channels,
        rng=rng,
        offline=offline,
        refresh=refresh,
        **fields,
    )
    return model, variables


def load_with_report(
    name: str | os.PathLike,
    weights: Weights = catalog.DEFAULT,
    *,
    key: str | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    rng: jax.Array | int = 0,
    offline: bool | None = None,
    refresh: bool = False,
    **fields: Any,
) -> tuple[nn.Module, dict[str, Any], LoadReport]:
    """`load`, with a report of what was new, adapted or dropped as the third result."""
    name, weights = split(name, weights)
    if is_file_name(name) and is_default(weights):
        weights = os.path.expanduser(os.fspath(name))
        name = own_network(weights)
    _check_arguments(name, in_channels, fields)
    source = parse(name, weights)
    if source.release and source.release.crop and lookup(name).func.fixed_size:
        fields = {'image_size': source.release.crop, **fields}
    copy = source.fetch(offline, refresh)
    found = _candidates(source, copy, key)
    if copy.path:
        fields = {**stated_fields(copy.path, name), **fields}
    architecture = Architecture(name, fields, in_channels)
    key = choose({place: weights.shapes for place, weights in found.items()}, architecture, key)
    classes = _classes(source, architecture, found[key].shapes) if num_classes is None else num_classes
    if classes is not None:
        architecture = Architecture(name, {**fields, 'num_classes': classes}, in_channels)
    try:
        fitted, changes = adapt(
            architecture,
            read_weights(copy.path, key) if source.content is None else dict(found[key]),
            replace_head=num_classes is not None,
            label_offset=source.release.label_offset if source.release else 0,
        )
    except ConversionError as error:
        raise ConversionError(f'{copy.path or source.place}: {error}') from None
    if changes.new:
        rng = jax.random.key(rng) if isinstance(rng, int | np.integer) else rng
        fitted |= initialise(architecture, changes.new, rng)
    model, preset = architecture.build(), preset_of(source, copy.path, offline, refresh)
    model = model.clone(preset=preset.scaled(model.image_size) if preset and model.fixed_size else preset)
    report = LoadReport(copy.path, source.release, changes, key, copy.stamp.sha256, copy.stamp.revision)
    _log(name, report)
    return model, from_torch(model, fitted, input_shape=architecture.image()), report


def _check_arguments(name: Any, in_channels: Any, fields: Mapping[str, Any]) -> None:
    """Raises for a name without a network and for arguments of other libraries or misspelt ones."""
    if isinstance(name, str) and name not in MODELS and catalog.tags(name):
        raise ValueError(f'{name} has released weights, but the network is not in flaxzoo yet; see list_models()')
    known = {field.name for field in dataclasses.fields(lookup(name).func)}
    if 'pretrained' in fields and 'pretrained' not in known:
        raise TypeError(
            f'load has no argument pretrained: flaxzoo.load({name!r}) loads the released weights; '
            f'for random values: model = flaxzoo.create({name!r}); flaxzoo.init(model, key)'
        )
    for field in fields:
        near = suggest(field, list(inspect.signature(load).parameters)[1:-1]) if field not in known else ''
        if near:
            raise TypeError(f'load has no argument {field!r}{near}')
    if isinstance(in_channels, bool) or not isinstance(in_channels, int | np.integer) or in_channels < 1:
        raise ValueError(f'in_channels must be a positive integer, got {in_channels!r}')


def _candidates(source: Source, copy: Copy, key: str | None) -> Mapping[str, StateDict]:
    """The state dicts that were given, by their keys; of a dict the parts are such too, as in a file."""
    if source.content is not None:
        content = StateDict(source.content, np.asarray, {})
        return parts(find(source.content, np.asarray) or {'': content}, key)
    try:
        return candidates(copy.path, key)
    except WeightsError as error:
        if source.kind == 'file':
            raise
        again = f'it is the copy of {source.place} in the cache, which refresh=True fetches anew'
        raise WeightsError(f'{error} ({again})') from error


def _classes(source: Source, architecture: Architecture, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The number of classes that the release, the fields or the file's heads have; None is the network's own."""
    if source.release:
        return source.release.classes or None
    if 'num_classes' in architecture.fields:
        return architecture.fields['num_classes']
    return classes_of(shapes, architecture)


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
