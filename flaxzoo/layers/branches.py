"""Inception modules written as data: parallel branches of convolutions and pools, concatenated."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxzoo.layers.blocks import ConvNormAct, NormLayer
from flaxzoo.layers.norm import BatchNorm
from flaxzoo.ops.pairs import IntOrPair, pair

# A function of x, such as a pool, or a partial that builds a module called with (x, train).
Layer = Callable | partial


class Branches(nn.Module):
    """Runs every branch on `x: (N, H, W, C)` and concatenates the results: (N, H', W', sum of their channels).

    Attributes:
      branches: {name: layers}, the layers of a branch one after another. A module is called `name.i` by its place in
        the branch, as in a torch Sequential, or just `name` if it is alone. Kept as pairs: flax hands a mapping on
        with its keys sorted under `nn.remat`, and the order of the branches is the order of the channels.
      norm_layer: given to every module.
    """

    branches: Mapping[str, Sequence[Layer]] | Sequence[tuple[str, Sequence[Layer]]]
    norm_layer: NormLayer = BatchNorm

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
        for i, layer in enumerate(layers):
            if isinstance(layer, partial):
                name = f'{branch}.{i}' if len(layers) > 1 else branch
                x = layer(norm_layer=self.norm_layer, name=name)(x, train)
            else:
                x = layer(x)
        return x


def same(out_channels: int, kernel_size: IntOrPair = 1, average: Callable | None = None) -> partial:
    """A ConvNormAct that keeps the image's size; the kernel is odd."""
    height, width = pair(kernel_size, 'kernel_size')
    return partial(ConvNormAct, out_channels, kernel_size, padding=(height // 2, width // 2), average=average)


def valid(out_channels: int, kernel_size: IntOrPair, stride: IntOrPair = 1) -> partial:
    """A ConvNormAct without padding."""
    return partial(ConvNormAct, out_channels, kernel_size, stride=stride)
