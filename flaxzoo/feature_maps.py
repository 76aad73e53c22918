"""What a network computes on the way, by torch's names: `features`, `FeatureExtractor` and `feature_info`.

The names are those of torchvision's `create_feature_extractor`: of modules ('layer1.0.conv2'), of members of a
Sequential ('features.3', a ReLU has one too), and of stages ('layer1', which is what its last block gives).
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxzoo.layers.naming import Finished, Recorder
from flaxzoo.layers.network import Network
from flaxzoo.registry import create, suggest


class FeatureExtractor(nn.Module):
    """A network as a backbone within another linen module: (N, H, W, C) -> {name: feature map}.

        class Detector(nn.Module):
            @nn.compact
            def __call__(self, x, train=False):
                network = flaxzoo.create('resnet50')
                maps = flaxzoo.FeatureExtractor(network, ('layer2', 'layer4'), name='backbone')(x, train)

    Its variables are the network's, without a level between, so that `variables['params']['backbone']` can be replaced
    by what `flaxzoo.load` gives. What comes after the last name is not computed, and `init` makes no parameters for it.

    Attributes:
      network: a network of `flaxzoo.create`.
      names: names of feature maps, see `feature_names`; the stages of `feature_info` by default.
    """

    network: Network
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check(self.network)
        if isinstance(self.names, str):
            raise TypeError(f'names is a sequence of names, not one: ({self.names!r},)')
        # A network that was built within another module would become that module's child.
        self.network = self.network.clone(parent=None, name=None)
        self.names = tuple(self.names) or tuple(self.network.stages)
        super().__post_init__()

    def setup(self) -> None:
        nn.share_scope(self, self.network)

    def __call__(self, x: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        full = _full_names(self.network.clone(parent=None, name=None), self.names)
        recorder = Recorder(full.values(), self.path)
        with recorder.active(), contextlib.suppress(Finished):
            self.network(x, train)
        missing = [name for name in self.names if full[name] not in recorder.values]
        if missing:
            raise ValueError(f'{", ".join(missing)}: computed in training alone; call it with train=True')
        return {name: recorder.values[full[name]] for name in self.names}


class Feature(NamedTuple):
    """A feature map: its name, its channels, and how many pixels of the image one of its own is away from the next."""

    name: str
    channels: int
    stride: int


def features(
    model: Network,
    variables: Mapping[str, Any],
    x: jax.Array,
    names: Sequence[str] = (),
    *,
    train: bool = False,
    **kwargs,
) -> Any:
    """The feature maps `names` of the images `x: (N, H, W, C)`, as {name: array}; nothing after the last is computed.

        maps = flaxzoo.features(model, variables, x, ['layer2', 'layer4'])

    Args:
      model: a network of `flaxzoo.create`.
      variables: its variables.
      x: the images, normalised and floating.
      names: torch's names, see `feature_names`; the stages of `feature_info` by default.
      train: as when the network is called. With `mutable=['batch_stats']` the result is (maps, updated statistics);
        statistics of what is not computed stay as they are.
      **kwargs: for `apply`: `mutable`, `rngs`.

    Raises:
      ValueError: a name that the network does not have.
    """
    return FeatureExtractor(model, names).apply(variables, x, train, **kwargs)


def feature_names(model: Network | str) -> list[str]:
    """Every name that `features` takes, in the order of computation; beside them 'layer1' is what 'layer1.2' is."""
    return list(_names(_network(model)))


def feature_info(model: Network | str) -> tuple[Feature, ...]:
    """The network's stages, from fine to coarse: what detectors and segmenters build on.

    Args:
      model: a network, or the name of one.
    """
    network = _network(model)
    size, more = network.image_size, 448  # a multiple of every stride, so that the difference is exact
    one = _shapes(network, size)
    two = {} if network.fixed_size else _shapes(network, size + more)
    found = []
    for name in network.stages:  # shapes come back sorted by name
        shape = one[name]
        if len(shape) == 4:
            found.append(Feature(name, shape[3], more // (two[name][1] - shape[1])))
        else:  # tokens (N, L, C) of square patches
            found.append(Feature(name, shape[-1], size // math.isqrt(shape[1])))
    return tuple(found)


def _shapes(network: Network, pixels: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the stages for one image of so many pixels a side."""
    x = jax.ShapeDtypeStruct((1, pixels, pixels, 3), jnp.float32)
    maps, _ = jax.eval_shape(FeatureExtractor(network).init_with_output, jax.random.key(0), x)
    return {name: value.shape for name, value in maps.items()}


def _network(model: Network | str) -> Network:
    network = create(model) if isinstance(model, str) else model
    _check(network)
    return network


def _check(network: object) -> None:
    if not isinstance(network, Network):
        raise TypeError(f'expected a network of flaxzoo.create, got {type(network).__name__}')


@lru_cache
def _names(network: Network) -> tuple[str, ...]:
    recorder = Recorder(None)
    with recorder.active():
        x = jax.ShapeDtypeStruct((1, network.image_size, network.image_size, 3), jnp.float32)
        jax.eval_shape(network.init, jax.random.key(0), x)
    return tuple(recorder.values)


@lru_cache
def _full_names(network: Network, names: tuple[str, ...]) -> dict[str, str]:
    """{name: the name under which it is recorded}: of a stage or a Sequential that of its last member."""
    known = _names(network)
    full = {}
    for name in names:
        inside = [other for other in known if other.startswith(f'{name}.')]
        if name not in known and not inside:
            near = suggest(name, [*known, *(other.rpartition('.')[0] for other in known)])
            raise ValueError(
                f'{network.variant or type(network).__name__} has no feature map {name!r}{near}; '
                'flaxzoo.feature_names(model) lists all'
            )
        full[name] = name if name in known else inside[-1]
    return full
