"""What the arguments `name` and `weights` mean: a release, a repository, a URL, a file or a dict. Parsed once, here."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flaxzoo.registry import MODELS, suggest
from flaxzoo.weights import catalog, hub
from flaxzoo.weights.cache import Copy
from flaxzoo.weights.convert import to_numpy
from flaxzoo.weights.digest import Stamp
from flaxzoo.weights.errors import WeightsError

# What names of weights files end in; other names without a folder are tags.
SUFFIXES = ('.pth', '.pt', '.pth.tar', '.tar', '.bin', '.ckpt', '.pkl', '.safetensors', '.npz', hub.INDEX)


@dataclass(frozen=True)
class Source:
    """Where weights come from.

    Attributes:
      kind: 'release' of the catalogue, 'hub' repository, 'url', 'file' or 'dict'.
      place: the URL, 'hf-hub:OWNER/NAME...' or the path.
      sha256: the digest, or its first digits, if it is known.
      release: the row of the catalogue.
      content: the dict.
    """

    kind: Literal['release', 'hub', 'url', 'file', 'dict']
    place: str
    sha256: str = ''
    release: catalog.Release | None = None
    content: Mapping[str, Any] | None = None

    def fetch(self, offline: bool | None = None, refresh: bool = False) -> Copy:
        """The local copy, downloaded if need be; of a dict there is none.

        Raises:
          FileNotFoundError: there is no such local file.
          DownloadError: as `hub.fetch`.
        """
        if self.kind == 'dict':
            return Copy(None, Stamp(''))
        if self.kind != 'file':
            return hub.fetch(self.place, self.sha256, offline=offline, refresh=refresh)
        path = Path(self.place)
        if not path.exists():
            near = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
            raise FileNotFoundError(f'there is no file {path}{suggest(path.name, near)}')
        return Copy(path, Stamp(''))


def parse(name: str, weights: str | os.PathLike | Mapping[str, Any]) -> Source:
    """What `weights` is for the network `name`.

    A tag comes before a file of its name: a string is a file's only with a folder before it or a suffix of `SUFFIXES`.

    Raises:
      WeightsError: the catalogue has no such tag.
      TypeError: it is neither string nor path nor dict.
    """
    if isinstance(weights, Mapping):
        return Source('dict', 'the dict', content=arrays(weights))
    if not isinstance(weights, str | os.PathLike):
        raise TypeError(_not_a_source(weights))
    if isinstance(weights, str) and (weights.startswith(hub.HUB) or '://' in weights):
        release = next((row for row in catalog.releases() if (row.model, row.url) == (name, weights)), None)
        return _of_release(release) if release else Source('hub' if weights.startswith(hub.HUB) else 'url', weights)
    if is_file_name(weights) or weights.startswith('~') or '/' in weights or os.sep in weights:
        return Source('file', os.path.expanduser(os.fspath(weights)))
    try:
        return _of_release(catalog.find(name, weights))
    except WeightsError as error:
        here = f'; the file of this name is ./{weights}' if os.path.exists(weights) else ''
        raise WeightsError(f'{error}{here}') from None


def is_file_name(text: Any) -> bool:
    """Whether this is a path or ends as the names of weights files do."""
    return isinstance(text, os.PathLike) or (isinstance(text, str) and text.endswith(SUFFIXES))


def split(name: str, weights: Any) -> tuple[str, Any]:
    """Network and weights of 'NETWORK.TAG', a name as torchvision and timm write it; others unchanged."""
    if name in MODELS or is_file_name(name) or not is_default(weights):
        return name, weights
    network, _, tag = name.partition('.')
    return network, tag or weights


def is_default(weights: Any) -> bool:
    """Whether `weights` was left out; arrays in a dict are not compared."""
    return isinstance(weights, str) and weights == catalog.DEFAULT


def _of_release(release: catalog.Release) -> Source:
    return Source('release', release.url, release.sha256, release)


def _not_a_source(weights: Any) -> str:
    """Why this is no source of weights, and what to write instead."""
    text = f'weights must be a tag, a path or a URL, or a dict {{torch name: array}}, got {weights!r:.80}'
    if weights is None or weights is False:
        return f'{text}; for random values: model = flaxzoo.create(name); flaxzoo.init(model, key)'
    if weights is True:
        return f'{text}; leave it out for the released weights'
    if callable(getattr(weights, 'state_dict', None)):
        return f'weights is a {type(weights).__name__}; give its state_dict(): weights=module.state_dict()'
    if isinstance(getattr(weights, 'name', None), str):  # torchvision's enumerations
        return f'{text}; give its name: weights={weights.name!r}'
    return text


def arrays(weights: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of numpy, jax or torch arrays as numpy arrays.

    Raises:
      TypeError: a value is no array.
    """
    for key, value in weights.items():
        if not hasattr(value, 'shape') or not hasattr(value, 'dtype'):
            raise TypeError(
                f'weights is a dict, so it must hold {{torch name: array}}, but {key!r} is a {type(value).__name__}'
                + (f'; did you mean weights[{key!r}]?' if isinstance(value, Mapping) else '')
            )
    return {key: to_numpy(value) for key, value in weights.items()}
