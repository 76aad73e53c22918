"""Names of networks and how each is built: `create` and `list_models`."""

import dataclasses
import difflib
import fnmatch
import re
from functools import partial

from flaxzoo.layers.network import Network
from flaxzoo.models import (
    alexnet,
    bn_inception,
    inception_resnet,
    inception_v1,
    inception_v3,
    inception_v4,
    resnet,
    squeezenet,
    swin,
    vgg,
    vit,
    xception,
)

MODELS: dict[str, partial] = {
    **alexnet.VARIANTS,
    **vgg.VARIANTS,
    **squeezenet.VARIANTS,
    **inception_v1.VARIANTS,
    **bn_inception.VARIANTS,
    **inception_v3.VARIANTS,
    **inception_v4.VARIANTS,
    **inception_resnet.VARIANTS,
    **xception.VARIANTS,
    **resnet.VARIANTS,
    **vit.VARIANTS,
    **swin.VARIANTS,
}


def list_models(pattern: str = '*') -> list[str]:
    """Registered names that match the wildcard `pattern` (`*`, `?`, `[seq]`), in natural order."""
    return sorted(fnmatch.filter(MODELS, pattern), key=_natural)


def create(name: str, /, **fields) -> Network:
    """Builds the network `name`; no arrays are made yet.

    Args:
      name: one of `list_models()`.
      **fields: fields of the network, over those of the variant: `num_classes=10`, `remat=True`. With
        `num_classes=0` the network has no head and returns the features before it, (N, C).

    Returns:
      A Network, which is a linen Module called on `x: (N, H, W, C)`: `variables = flaxzoo.init(model, key)`,
      `model.apply(variables, x)`.

    Raises:
      ValueError: no network has this name, or `num_classes` is no integer or negative.
      TypeError: the network has no such field.
    """
    builder = lookup(name)
    known = [f.name for f in dataclasses.fields(builder.func) if f.name not in ('parent', 'name')]
    for field in fields:
        if field not in known:
            raise TypeError(f'{name} has no field {field!r}{suggest(field, known)}; its fields are {", ".join(known)}')
    num_classes = fields.get('num_classes', 1)
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
        raise ValueError(f'num_classes must be an integer, 0 for no head, got {num_classes!r}')
    # A variant may state its first fields by position; as keywords they can be overridden like the rest.
    common = {f.name for f in dataclasses.fields(Network)}
    positional = dict(zip([field for field in known if field not in common], builder.args, strict=False))
    return builder.func(**{**positional, **builder.keywords, 'variant': name, **fields})


def lookup(name: str) -> partial:
    """The builder of a registered name, or an error with the nearest names."""
    if name not in MODELS:
        raise ValueError(f'there is no model {name!r}{suggest(name, list(MODELS))}; flaxzoo.list_models() names all')
    return MODELS[name]


def suggest(word: str, choices: list[str]) -> str:
    """A clause with the choices nearest to a misspelt word, or an empty one."""
    near = difflib.get_close_matches(word, choices, n=3, cutoff=0.5)
    return f', did you mean {" or ".join(near)}?' if near else ''


def _natural(name: str) -> list:
    """Sort key in which resnet18 comes before resnet101."""
    return [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', name)]
