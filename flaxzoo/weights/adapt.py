"""Makes a state dict fit a network that differs from the one it was saved from, and says what was done.

The names may be another package's, numbered or under a prefix (`dialects.py`). Three differences are adapted to, each
only when asked for: another number of classes (the head is initialised anew), another number of image channels (the
first convolution is summed or repeated), and a part of the network that a field switches off (its tensors are left
out). Which leaves belong to the head or to the first convolution is not written down anywhere: they are those whose
shape follows `num_classes` or the image's channels.
"""

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import numpy as np

from flaxzoo.layers.network import Network
from flaxzoo.weights.architecture import Architecture, Shapes, initialise
from flaxzoo.weights.convert import buffer_problems, is_buffer
from flaxzoo.weights.diagnose import Misfit
from flaxzoo.weights.dialects import Reading, dialects, find, own_heads, readings, unwrap

__all__ = ['Architecture', 'Changes', 'adapt', 'adapt_channels', 'fitness', 'initialise']


@dataclass
class Changes:
    """What was done to a state dict, each in words by the tensor's name.

    Attributes:
      new: tensors that the file does not have; they are initialised.
      adapted: tensors of another shape in the file.
      dropped: tensors of the file that the network does not have.
      renamed: {name in the file: torch's name}.
      reading: whose names the file has, and under which prefix.
    """

    new: dict[str, str] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    reading: str = ''

    def __str__(self) -> str:
        done = {'new': self.new, 'adapted': self.adapted, 'dropped': self.dropped}
        lines = [f'{kind} {key}: {words}' for kind, keys in done.items() for key, words in keys.items()]
        if self.renamed:
            lines.append(f'renamed {len(self.renamed)} tensors: the file has {self.reading}')
        return '\n'.join(lines) or 'everything is as in the file'


def adapt(
    architecture: Architecture,
    weights: Mapping[str, np.ndarray],
    *,
    replace_head: bool = False,
    label_offset: int = 0,
    prefix: str | None = None,
) -> tuple[dict[str, np.ndarray], Changes]:
    """The tensors of `weights` that `architecture` takes, in its shapes, and what was done.

    Args:
      architecture: the network to fit.
      weights: {name: array} of a file.
      replace_head: leave out head tensors for another number of classes; they are in `Changes.new`.
      label_offset: rows of the file's heads before the first class (1 for a background class).
      prefix: where the network is if the file has several ('encoder_q.'); found if None.

    Raises:
      ConversionError: the weights are not those of the architecture; the message says what they resemble.
    """
    model, shapes, changes = architecture.build(), architecture.shapes(), Changes()
    weights = _named(architecture, unwrap(weights), changes, prefix)
    buffers = {key: weights.pop(key) for key in list(weights) if is_buffer(model, key)}
    extra = weights.keys() - shapes.keys()
    fitting = {key: value for key, value in weights.items() if key in shapes}
    _drop_switched_off(architecture, extra, changes)
    heads: Set[str] = frozenset()
    if len(fitting) < len(shapes) or any(value.shape != shapes[key] for key, value in fitting.items()) or extra:
        heads = architecture.heads().keys()
        # With a tensor of the trunk missing it is another network: what follows what does not matter.
        if shapes.keys() - heads <= fitting.keys():
            _adapt_stems(fitting, shapes, architecture.stems(), changes)
            _adapt_sizes(fitting, shapes, model, changes)
            _adapt_heads(fitting, shapes, heads & shapes.keys(), label_offset, replace_head, changes)
            if replace_head and (changes.new or not architecture.classes()):
                mine = own_heads(extra - changes.dropped.keys(), shapes, heads)
                changes.dropped |= dict.fromkeys(sorted(mine), "a head of the file's own")
    misfit = Misfit(
        architecture,
        {key: value.shape for key, value in weights.items()},
        shapes,
        heads,
        missing=shapes.keys() - fitting.keys() - changes.new.keys(),
        extra=extra - changes.dropped.keys(),
        wrong={key: value.shape for key, value in fitting.items() if value.shape != shapes[key]},
        buffers=buffer_problems(model, buffers),
    )
    misfit.check()
    return fitting, changes


def fitness(architecture: Architecture, weights: Mapping[str, np.ndarray]) -> float:
    """How well `weights` fit, from 0 to 1: the share of the network's tensors that they have by name and shape.

    Heads do not count, further tensors within the trunk lower it, and names are understood as `adapt` does. Of the
    arrays only `shape` is used.

    Raises:
      ConversionError: the names are those of two dialects at once.
    """
    known, model = dialects(architecture.name), architecture.build()
    given = {key: tuple(value.shape) for key, value in unwrap(weights).items() if not is_buffer(model, key)}
    return max(share for share, _ in readings(given, architecture.shapes(), architecture.heads().keys(), known))


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """The kernel (O, 3, H, W) of a first convolution for images of `channels` channels, as timm does it.

    One channel: the sum over the three, so that a grey image gives what it gave as three equal channels. Others: the
    three repeated in turn, scaled by 3 / channels so that activations keep their size.
    """
    if channels == 1:
        return kernel.astype(np.float32).sum(axis=1, keepdims=True)
    repeated = np.tile(kernel.astype(np.float32), (1, math.ceil(channels / 3), 1, 1))
    return repeated[:, :channels] * np.float32(3 / channels)


def _named(
    architecture: Architecture, weights: Mapping[str, np.ndarray], changes: Changes, prefix: str | None
) -> dict[str, np.ndarray]:
    """The weights under the network's names and, where the dialect says so, in its shapes."""
    model, shapes = architecture.build(), architecture.shapes()
    given = {key: tuple(value.shape) for key, value in weights.items() if not is_buffer(model, key)}
    reading = Reading()
    if given.keys() != shapes.keys():
        reading = find(given, shapes, architecture.heads().keys(), dialects(architecture.name), prefix)
    names = reading.names(weights)
    outside = weights.keys() - set(names.values())
    words = f"outside the network, whose names begin with '{reading.prefix}'"
    changes.dropped |= {key: words for key in sorted(outside) if not is_buffer(model, key)}
    changes.renamed |= {key: name for name, key in names.items() if key != name}
    changes.reading = str(reading)
    result = {name: weights[key] for name, key in names.items()}
    for name, value in result.items():
        shape = shapes.get(name, value.shape)
        if value.shape != shape and reading.fits(name, tuple(value.shape), shape):
            result[name] = value.reshape(shape)
    return result


def _drop_switched_off(architecture: Architecture, extra: Set[str], changes: Changes) -> None:
    """Notes tensors of the file that the network would have without the fields that were asked for."""
    if not extra:
        return
    asked = {key: value for key, value in architecture.fields.items() if key != 'num_classes' or value == 0}
    if asked:
        standard = Architecture(architecture.name, {}, architecture.in_channels).shapes()
        words = ', '.join(f'{key}={value!r}' for key, value in asked.items())
        changes.dropped |= dict.fromkeys(sorted(extra & standard.keys()), f'the network has no such part with {words}')


def _adapt_stems(fitting: dict[str, np.ndarray], shapes: Shapes, stems: Set[str], changes: Changes) -> None:
    """Converts first convolutions of three channels to the network's."""
    for key in stems:
        value, shape = fitting[key], shapes[key]
        if value.shape != shape and value.shape == (shape[0], 3, *shape[2:]):
            fitting[key] = adapt_channels(value, shape[1])
            changes.adapted[key] = f'from 3 to {shape[1]} input channels'


def _adapt_sizes(fitting: dict[str, np.ndarray], shapes: Shapes, model: Network, changes: Changes) -> None:
    """Resizes what follows the size of the images, such as position tables, as the network says."""
    for key, value in fitting.items():
        if value.shape != shapes[key] and (resized := model.resized(key, value, shapes[key])) is not None:
            fitting[key] = resized
            changes.adapted[key] = f'resized from {value.shape} to {shapes[key]}'


def _adapt_heads(
    fitting: dict[str, np.ndarray],
    shapes: Shapes,
    heads: Set[str],
    label_offset: int,
    replace: bool,
    changes: Changes,
) -> None:
    """Cuts the rows that are no class off the heads; notes as new, whole, those that still do not fit."""
    for key in sorted(heads & fitting.keys()):
        value, shape = fitting[key], shapes[key]
        if label_offset and value.shape == (shape[0] + label_offset, *shape[1:]):
            fitting[key] = value[label_offset:]
            changes.adapted[key] = f'without the first {label_offset} of {len(value)} rows, which are no class'
    if not replace:
        return
    for module in sorted({_module(key) for key in heads}):
        keys = sorted((key for key in heads if _module(key) == module), reverse=True)  # weight, bias
        if all(key in fitting and fitting[key].shape == shapes[key] for key in keys):
            continue
        for key in keys:
            value = fitting.pop(key, None)
            has = 'none of this name' if value is None else len(value) if value.ndim else 'a number'
            changes.new[key] = f'initialised for {shapes[key][0]} classes, the file has {has}: train it'
            changes.adapted.pop(key, None)


def _module(key: str) -> str:
    return key.rpartition('.')[0]
