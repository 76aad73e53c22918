"""`Architecture`: a network by its name and fields, and which of its tensors follow the classes or the channels."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from flaxzoo.registry import create
from flaxzoo.weights.convert import template, to_torch, torch_names, torch_shape

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

    def build(self) -> nn.Module:
        """The network."""
        return create(self.name, **self.fields)

    def shapes(self) -> Shapes:
        """{torch name: torch's shape} of what the network has."""
        return dict(_shapes(self.build(), self.image()))

    def but(self, **fields: Any) -> 'Architecture':
        """The same with other fields."""
        return dataclasses.replace(self, fields={**self.fields, **fields})

    def classes(self) -> int:
        """The number of classes; 0 for no head."""
        return getattr(self.build(), 'num_classes', 0)

    def heads(self) -> Shapes:
        """The heads: the tensors whose shape follows `num_classes`, also of a network that was built without."""
        classes = self.classes() or 1000
        one, other = (self.but(num_classes=number).shapes() for number in (classes, classes + 1))
        return {key: shape for key, shape in one.items() if other.get(key) != shape}

    def stems(self) -> set[str]:
        """The kernels that see the image: those whose shape follows its channels."""
        other = dataclasses.replace(self, in_channels=self.in_channels + 1).shapes()
        return {key for key, shape in self.shapes().items() if other[key] != shape}


@lru_cache(maxsize=64)  # adapting asks for the same network several times, and tracing it takes a fraction of a second
def _shapes(model: nn.Module, image: tuple[int, ...]) -> Shapes:
    leaves = torch_names(template(model, image))
    return {key: torch_shape(path, leaf.shape) for key, (path, leaf) in leaves.items()}


def initialise(architecture: Architecture, keys: Mapping[str, Any], rng: jax.Array) -> dict[str, np.ndarray]:
    """The named leaves as `model.init(rng, image)` makes them, in torch's layout; no others are computed."""
    model, image = architecture.build(), architecture.image()

    @jax.jit  # which leaves out what the result does not need
    def leaves(rng: jax.Array) -> dict:
        named = torch_names(model.init(rng, jnp.zeros(image)))
        return unflatten_dict({path: leaf for key, (path, leaf) in named.items() if key in keys})

    return to_torch(leaves(rng))
