"""Inception modules written as data: parallel branches of convolutions and pools, concatenated."""

from collections.abc import Mapping, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxzoo.layers.naming import Layer, is_module, run, sequential


class Branches(nn.Module):
    """Runs every branch on `x: (N, H, W, C)` and concatenates the results: (N, H', W', sum of their channels).

    Attributes:
      branches: {name: layers}, the layers of a branch one after another. A module is called `name.i` by its place in
        the branch, as in a torch Sequential, or just `name` if it is alone. Kept as pairs: flax hands a mapping on
        with its keys sorted under `nn.remat`, and the order of the branches is the order of the channels.
    """

    branches: Mapping[str, Sequence[Layer]] | Sequence[tuple[str, Sequence[Layer]]]

    def __post_init__(self) -> None:
        if isinstance(self.branches, Mapping):
            self.branches = tuple(self.branches.items())
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.concatenate(x, train)

    def concatenate(self, x: jax.Array, train: bool) -> jax.Array:
        """The branches of `x` side by side, for blocks that do more with them."""
        return jnp.concatenate([self._run(name, layers, x, train) for name, layers in self.branches], axis=-1)

    def _run(self, branch: str, layers: Sequence[Layer], x: jax.Array, train: bool) -> jax.Array:
        if len(layers) == 1 and is_module(layers[0]):
            return run(partial(layers[0], name=branch), x, train)
        return sequential(self, x, train, branch, layers)
