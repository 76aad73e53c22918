"""Makes a state dict fit a network that differs from the one it was saved from, and says what was done.

Three differences are adapted to, each only when asked for: another number of classes (the head is initialised anew),
another number of image channels (the first convolution is summed or repeated), and a part of the network that a field
switches off (its tensors are left out). Which leaves belong to the head or to the first convolution is not written
down anywhere: they are those whose shape follows `num_classes` or the image's channels.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from flaxzoo.registry import create
from flaxzoo.weights.convert import IGNORED, ConversionError, template, to_torch, torch_names, torch_shape
from flaxzoo.weights.diagnose import explain

# Names in torchvision's older files and what its networks call them now.
LEGACY = (
    (re.compile(r'(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)'), r'\1\2'),  # densenet
    (re.compile(r'(.*\.mlp)\.linear_1\.(\w+)'), r'\1.0.\2'),  # vision transformer
    (re.compile(r'(.*\.mlp)\.linear_2\.(\w+)'), r'\1.3.\2'),
)
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Architecture:
    """What a network is built from: `create(name, **fields)` for images of `in_channels` channels."""

    name: str
    fields: Mapping[str, Any]
    in_channels: int = 3

    def image(self) -> tuple[int, ...]:
        """Shape of an image: (1, H, W, in_channels)."""
        size = getattr(self.build(), 'image_size', 224)
        return (1, size, size, self.in_channels)

    def build(self) -> Any:
        """The network."""
        return create(self.name, **self.fields)

    def shapes(self) -> Shapes:
        """{torch name: torch's shape} of what the network has."""
        leaves = torch_names(template(self.build(), self.image()))
        return {key: torch_shape(path, leaf.shape) for key, (path, leaf) in leaves.items()}

    def following_classes(self, shapes: Shapes) -> set[str]:
        """The leaves of the heads: those whose shape follows `num_classes`."""
        classes = self.fields.get('num_classes', getattr(self.build(), 'num_classes', 0))
        other = Architecture(self.name, {**self.fields, 'num_classes': classes + 1}, self.in_channels).shapes()
        return {key for key in shapes if other.get(key) != shapes[key]}

    def following_channels(self, shapes: Shapes) -> set[str]:
        """The kernels that see the image: those whose shape follows its channels."""
        other = Architecture(self.name, self.fields, self.in_channels + 1).shapes()
        return {key for key in shapes if other[key] != shapes[key]}


@dataclass
class Changes:
    """What was done to a state dict, each in words by the tensor's name."""

    new: dict[str, str] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        done = {'new': self.new, 'adapted': self.adapted, 'dropped': self.dropped}
        lines = [f'{kind} {key}: {words}' for kind, keys in done.items() for key, words in keys.items()]
        if self.renamed:
            lines.append(f'renamed {len(self.renamed)} tensors from an older version of the network')
        return '\n'.join(lines) or 'everything is as in the file'


def adapt(
    architecture: Architecture,
    weights: Mapping[str, np.ndarray],
    *,
    replace_head: bool = False,
    label_offset: int = 0,
) -> tuple[dict[str, np.ndarray], Changes]:
    """The tensors of `weights` that `architecture` takes, in its shapes, and what was done.

    Args:
      architecture: the network to fit.
      weights: {torch name: array} of a file.
      replace_head: leave out head tensors for another number of classes; they are in `Changes.new`.
      label_offset: rows of the file's heads before the first class (1 for a background class).

    Raises:
      ConversionError: the weights are not those of the architecture; the message says what they resemble.
    """
    changes = Changes()
    shapes = architecture.shapes()
    weights = _rename(weights, shapes, changes)
    fitting = {key: value for key, value in weights.items() if key in shapes}
    _drop_switched_off(architecture, weights.keys() - shapes.keys(), changes)
    wrong = [key for key, value in fitting.items() if value.shape != shapes[key]]
    # With a tensor missing it is another network: what follows what does not matter.
    plausible = bool(wrong) and len(fitting) == len(shapes)
    model = architecture.build()
    heads = architecture.following_classes(shapes) if plausible else set()
    stems = architecture.following_channels(shapes) if plausible else set()
    for key in wrong:
        value, shape = fitting[key], shapes[key]
        if key in heads and value.shape[1:] == shape[1:]:
            if label_offset and len(value) == shape[0] + label_offset:
                fitting[key] = value[label_offset:]
                changes.adapted[key] = f'without the first {label_offset} of {len(value)} rows, which are no class'
            elif replace_head:
                del fitting[key]
                changes.new[key] = f'initialised for {shape[0]} classes, the file has {len(value)}: train it'
        elif key in stems and value.shape[1] == 3 and value.ndim == 4 and value.shape[2:] == shape[2:]:
            fitting[key] = adapt_channels(value, shape[1])
            changes.adapted[key] = f'from 3 to {shape[1]} input channels'
        elif (resized := model.resized(key, value, shape)) is not None:
            fitting[key] = resized
            changes.adapted[key] = f'resized from {value.shape} to {shape}'
    _check(architecture, weights, fitting, shapes, heads, changes)
    return fitting, changes


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """The kernel (O, 3, H, W) of a first convolution for images of `channels` channels, as timm does it.

    One channel: the sum over the three, so that a grey image gives what it gave as three equal channels. Others: the
    three repeated in turn, scaled by 3 / channels so that activations keep their size.
    """
    if channels == 1:
        return kernel.astype(np.float32).sum(axis=1, keepdims=True)
    repeated = np.tile(kernel.astype(np.float32), (1, math.ceil(channels / 3), 1, 1))
    return repeated[:, :channels] * np.float32(3 / channels)


def initialise(architecture: Architecture, keys: Mapping[str, Any], rng: jax.Array) -> dict[str, np.ndarray]:
    """The named leaves as `model.init(rng, image)` makes them, in torch's layout; no others are computed."""
    model, image = architecture.build(), architecture.image()

    @jax.jit  # which leaves out what the result does not need
    def leaves(rng: jax.Array) -> dict:
        named = torch_names(model.init(rng, jnp.zeros(image)))
        return unflatten_dict({path: leaf for key, (path, leaf) in named.items() if key in keys})

    return to_torch(leaves(rng))


def _rename(weights: Mapping[str, np.ndarray], shapes: Shapes, changes: Changes) -> dict[str, np.ndarray]:
    """The weights without counters, under the names that the network has now."""
    result = {}
    for key, value in weights.items():
        if key.split('.')[-1] in IGNORED:
            continue
        name = key
        for pattern, replacement in LEGACY:
            if key not in shapes and pattern.fullmatch(key):
                name = pattern.sub(replacement, key)
                changes.renamed[key] = name
        result[name] = value
    return result


def _drop_switched_off(architecture: Architecture, extra: set[str], changes: Changes) -> None:
    """Notes tensors of the file that the network would have without the fields that were asked for."""
    if not extra:
        return
    asked = {key: value for key, value in architecture.fields.items() if key != 'num_classes' or value == 0}
    if asked:
        standard = Architecture(architecture.name, {}, architecture.in_channels).shapes()
        words = ', '.join(f'{key}={value!r}' for key, value in asked.items())
        changes.dropped |= dict.fromkeys(sorted(extra & standard.keys()), f'the network has no such part with {words}')


def _check(
    architecture: Architecture,
    weights: Mapping[str, np.ndarray],
    fitting: Mapping[str, np.ndarray],
    shapes: Shapes,
    heads: set[str],
    changes: Changes,
) -> None:
    """Raises if not every leaf is filled once and every tensor used once."""
    problems = [f'- {key}' for key in shapes if key not in fitting and key not in changes.new]
    problems += [f'+ {key}' for key in weights if key not in shapes and key not in changes.dropped]
    wrong = {key: value.shape for key, value in fitting.items() if value.shape != shapes[key]}
    problems += [f'! {key}: shape {shape}, expected {shapes[key]}' for key, shape in wrong.items()]
    if not problems:
        return
    if len(problems) == len(wrong) and wrong.keys() <= heads:
        classes = next(iter(wrong.values()))[0]
        hint = f'The file is for {classes} classes. Keep its head by num_classes={classes}'
        expected = next(iter(shapes[key][0] for key in wrong))
        if 'num_classes' not in architecture.fields:
            hint += f', or replace it by num_classes={expected}'
    else:
        hint = explain(architecture.name, {key: value.shape for key, value in weights.items()}, shapes)
    shown = [*sorted(problems)[:12], *([f'... and {len(problems) - 12} more'] if len(problems) > 12 else [])]
    listed = '\n  '.join(shown)
    raise ConversionError(
        f'the weights do not fit {architecture.name}. {hint}.\n'
        f'(- missing, + extra, ! wrong shape; {len(problems)} in all):\n  {listed}'
    )
