"""Names of networks and how each is built: `create` and `list_models`."""

import csv
import dataclasses
import difflib
import fnmatch
import operator
import re
from functools import cache, partial
from importlib import resources
from types import ModuleType
from typing import Any

from flaxzoo.layers.network import Network
from flaxzoo.models import (
    alexnet,
    bn_inception,
    densenet,
    efficientnet,
    inception_resnet,
    inception_v1,
    inception_v3,
    inception_v4,
    mobilenet_v3,
    resnet,
    squeezenet,
    swin,
    vgg,
    vit,
    xception,
)

# What other packages call networks that have another name here.
ALIASES = {
    'legacy_xception': 'xception',
    'vit_base_patch16_224': 'vit_b_16',
    'vit_base_patch32_224': 'vit_b_32',
    'vit_large_patch16_224': 'vit_l_16',
    'vit_large_patch32_224': 'vit_l_32',
    'vit_huge_patch14_224': 'vit_h_14',
    'swin_tiny_patch4_window7_224': 'swin_t',
    'swin_small_patch4_window7_224': 'swin_s',
    'swin_base_patch4_window7_224': 'swin_b',
}
# Fields of every network that count something: the least value and what it means.
INTEGERS = {'num_classes': (0, '0 for no head'), 'image_size': (1, 'in pixels')}
# Arguments of torchvision's and timm's constructors that are no fields here, and what there is instead.
INSTEAD = {
    'norm_layer': (
        'its norm is not a choice, as in torch (others take a flaxzoo.layers.Norm(...)); whether BatchNorm is shared '
        'over devices or frozen is said by flaxzoo.with_policy(model, axis_name=..., freeze_batch_norm=...)'
    ),
    'pretrained': 'create makes no arrays; flaxzoo.load(name) gives a network and its released weights',
    'weights': 'create makes no arrays; flaxzoo.load(name, weights) gives a network and its weights',
    'in_channels': 'a network takes the channels of the image that it is initialised on; load has in_channels=...',
    'in_chans': 'a network takes the channels of the image that it is initialised on; load has in_channels=...',
    'features_only': 'flaxzoo.features gives the feature maps of any network',
}


def register(*families: ModuleType) -> dict[str, partial]:
    """{name: builder} of the `VARIANTS` of the families.

    Raises:
      ValueError: two families have one name.
    """
    models: dict[str, partial] = {}
    owners: dict[str, str] = {}
    for family in families:
        for name, builder in family.VARIANTS.items():
            if name in models:
                raise ValueError(f'{name!r} is registered twice, by {owners[name]} and by {family.__name__}')
            models[name], owners[name] = builder, family.__name__
    return models


MODELS = register(
    alexnet,
    vgg,
    squeezenet,
    inception_v1,
    bn_inception,
    inception_v3,
    inception_v4,
    inception_resnet,
    xception,
    resnet,
    densenet,
    mobilenet_v3,
    efficientnet,
    vit,
    swin,
)


def list_models(pattern: str = '*') -> list[str]:
    """Registered names, in natural order, that match a pattern or contain a word, in upper or lower case.

    `pattern` with a wildcard (`*`, `?`, `[seq]`) is for the whole name; without, names that contain it are listed.
    """
    pattern = pattern.lower()
    if not re.search(r'[*?[]', pattern):
        pattern = f'*{pattern}*'
    return sorted((name for name in MODELS if fnmatch.fnmatchcase(name.lower(), pattern)), key=_natural)


def create(name: str, /, **fields: Any) -> Network:
    """Builds the network `name`; no arrays are made yet.

    Args:
      name: one of `list_models()`.
      **fields: fields of the network, over those of the variant: `num_classes=10`, `remat=True`. With
        `num_classes=0` the network has no head and returns the features before it, (N, C).

    Returns:
      A Network, which is a linen Module called on `x: (N, H, W, C)`: `variables = flaxzoo.init(model, key)`,
      `model.apply(variables, x)`.

    Raises:
      ValueError: no network has this name, or `num_classes` or `image_size` is no integer or too small.
      TypeError: the network has no such field, or `norm_layer` is no `Norm`.
    """
    builder = lookup(name)
    known = [f.name for f in dataclasses.fields(builder.func) if f.name != 'parent']
    for field in fields:
        if field not in known:
            near = f'; {INSTEAD[field]}' if field in INSTEAD else suggest(field, known)
            raise TypeError(f'{name} has no field {field!r}{near}; its fields are {", ".join(known)}')
    for field in fields.keys() & INTEGERS.keys():
        fields[field] = _integer(field, fields[field])
    # A variant may state its first fields by position; as keywords they can be overridden like the rest.
    common = {f.name for f in dataclasses.fields(Network)}
    positional = dict(zip([field for field in known if field not in common], builder.args, strict=False))
    return builder.func(**{**positional, **builder.keywords, 'variant': name, **fields})


def lookup(name: str) -> partial:
    """The builder of a registered name, or an error that says what was meant."""
    if name in MODELS:
        return MODELS[name]
    meant = _meant(name)
    if meant in MODELS:
        raise ValueError(f'there is no model {name!r}, did you mean {meant}?' + _on_tag(name, meant))
    if meant in _released():
        raise ValueError(f'flaxzoo does not have {meant} yet; flaxzoo.list_models() names what it has')
    raise ValueError(f'there is no model {name!r}{suggest(meant, list(MODELS))}; flaxzoo.list_models() names all')


def suggest(word: str, choices: list[str]) -> str:
    """A clause with the choices nearest to a misspelt word, or an empty one."""
    near = difflib.get_close_matches(word, dict.fromkeys(choices), n=3, cutoff=0.5)
    return f', did you mean {" or ".join(near)}?' if near else ''


def _meant(name: str) -> str:
    """The name in this package's spelling: 'timm/ResNet-50.a1_in1k' is 'resnet50'. Its last part if none is alike."""
    bare = str(name).rpartition('/')[2].partition('.')[0].lower()
    spelt = {_letters(known): known for known in (*_released(), *MODELS)} | {_letters(a): b for a, b in ALIASES.items()}
    return spelt.get(_letters(bare), bare)


@cache
def _released() -> frozenset[str]:
    """The names in the catalogue of weights, which holds every network of torchvision, also those that are to come."""
    with resources.files('flaxzoo.weights').joinpath('catalog.csv').open(newline='') as file:
        return frozenset(row['model'] for row in csv.DictReader(file))


def _letters(name: str) -> str:
    return re.sub(r'[^a-z0-9]', '', name.lower())


def _on_tag(name: str, meant: str) -> str:
    """What to do with a name of timm that holds a tag."""
    bare = str(name).rpartition('/')[2]
    return f" For timm's weights: flaxzoo.load({meant!r}, 'hf-hub:timm/{bare}')" if '.' in bare else ''


def _integer(field: str, value: Any) -> int:
    """A field of `INTEGERS` as an int; numpy's integers are integers too."""
    least, meaning = INTEGERS[field]
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f'{field} must be an integer, {meaning}, got {value!r}')
    return number


def _natural(name: str) -> list:
    """Sort key in which resnet18 comes before resnet101."""
    return [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', name)]
