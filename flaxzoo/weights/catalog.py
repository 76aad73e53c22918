"""The catalogue of released weights, catalog.csv: where each file is and what its network expects.

Columns: model (the registered name), tag, default (one tag of each model), source (who released it), url, sha256 (the
first digits, where the release states them; empty where it does not), size_mib, parameters, classes (0: the head is not
usable), acc1 and acc5 (published, per cent), resize and crop (pixels), interpolation, mean and std of the normalisation
(of values from 0 to 1), transform_input (below), label_offset (rows of the head in the file before the first class),
license (an SPDX identifier).
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources

from flaxzoo.registry import suggest
from flaxzoo.weights.errors import WeightsError

DEFAULT = 'DEFAULT'
# The normalisation that networks with `transform_input` see.
HALVES = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Release:
    """A row of the catalogue.

    Attributes:
      transform_input: torchvision's googlenet and inception_v3 turn ImageNet's normalisation into (x - 0.5) / 0.5
        before their first convolution when they have these weights. Our networks do not: `normalisation` does.
    """

    model: str
    tag: str
    default: bool
    source: str
    url: str
    sha256: str
    size_mib: float | None
    parameters: int
    classes: int
    acc1: float | None
    acc5: float | None
    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    transform_input: bool
    label_offset: int
    license: str

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation, of values from 0 to 1, that the first convolution was trained on."""
        # ((x - mean) / std) * (std / 0.5) + (mean - 0.5) / 0.5, which torchvision computes, is (x - 0.5) / 0.5.
        return (HALVES, HALVES) if self.transform_input else (self.mean, self.std)


@cache
def releases() -> tuple[Release, ...]:
    """All rows of the catalogue."""
    import csv

    with resources.files('flaxzoo.weights').joinpath('catalog.csv').open(newline='') as file:
        return tuple(_release(row) for row in csv.DictReader(file))


def tags(model: str) -> list[str]:
    """The tags of a model, the default first."""
    return [row.tag for row in sorted(releases(), key=lambda row: not row.default) if row.model == model]


def find(model: str, tag: str = DEFAULT) -> Release:
    """The release of `model` called `tag`.

    Raises:
      WeightsError: nothing was released for the model, or not under this tag.
    """
    rows = {row.tag: row for row in releases() if row.model == model}
    if not rows:
        models = sorted({row.model for row in releases()})
        raise WeightsError(f'the catalogue has no weights for {model!r}{suggest(model, models)}')
    if tag == DEFAULT:
        return next(row for row in rows.values() if row.default)
    if tag not in rows:
        # torchvision's 'ResNet50_Weights.IMAGENET1K_V2', and any case
        same = [row for row in rows if row.casefold() == tag.rpartition('.')[2].casefold()]
        near = suggest(same[0] if same else tag, list(rows))
        raise WeightsError(f'{model} has no weights {tag!r}{near}; it has {", ".join(rows)}')
    return rows[tag]


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The names of the 1000 ImageNet classes, in the order of the logits."""
    text = resources.files('flaxzoo.weights').joinpath('imagenet_classes.txt').read_text(encoding='utf-8')
    return tuple(text.splitlines())


def _release(row: dict[str, str]) -> Release:
    numbers = {name: int(row[name]) for name in ('parameters', 'classes', 'resize', 'crop')}
    optional = {name: float(row[name]) if row[name] else None for name in ('size_mib', 'acc1', 'acc5')}
    colours = {name: tuple(float(value) for value in row[name].split()) for name in ('mean', 'std')}
    flags = {name: row[name] == 'yes' for name in ('default', 'transform_input')}
    return Release(**{**row, **numbers, **optional, **colours, **flags, 'label_offset': int(row['label_offset'] or 0)})
