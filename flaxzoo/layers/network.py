"""`Network`: what every network is told and can do, and how a module finds the network that it is part of."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxzoo.layers.naming import Builder, Layer, current_recorder, is_module, run, sequential, tap, unrecorded


class Network(nn.Module, kw_only=True):
    """The base of all networks. Call one on `x: (N, H, W, C)` of any floating dtype.

    A family says what its network is: blocks, widths, which normalisation with which epsilon. A run says the rest here,
    in the same words for every network: see `flaxzoo.with_policy`.

    Attributes:
      num_classes: width of the head; 0 for no head, then the result is the features before it, (N, C).
      image_size: the size in pixels that the network was designed for; it takes others.
      remat: recompute the blocks in the backward pass instead of storing what is inside them.
      axis_name: a mapped axis (of `pmap` or `shard_map`) over which BatchNorm shares its training statistics.
      freeze_batch_norm: BatchNorm uses its running statistics in training too, and leaves them as they are.
      variant: the registered name that it was created by. Does not count in comparisons.
      preset: the preparation of images that its weights were released with, or None. Does not count in comparisons.
    """

    num_classes: int = 1000
    image_size: int = 224
    remat: bool = False
    axis_name: str | None = None
    freeze_batch_norm: bool = False
    variant: str = dataclasses.field(default='', compare=False)
    preset: Any = dataclasses.field(default=None, compare=False)

    aux_logits: ClassVar[bool] = False  # a field of the networks that have auxiliary heads
    aux_weight: ClassVar[float] = 0.0  # of each auxiliary loss
    # Names of the feature maps that a detector or a segmenter would take, from fine to coarse; see feature_maps.py.
    stages: ClassVar[tuple[str, ...]] = ()
    # Last names of torch's buffers that the network computes itself: its variables do not have them.
    ignored: ClassVar[frozenset[str]] = frozenset()
    # Whether it takes images of `image_size` alone. Weights of a release are then loaded for the release's size.
    fixed_size: ClassVar[bool] = False
    # Wildcards of the torch names of parameters, besides norms and biases, that training should not decay.
    no_weight_decay: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name, None)
            if isinstance(value, list):  # lists have no hash, and a network is a static argument of jit
                object.__setattr__(self, field.name, tuple(value))
        if not isinstance(getattr(self, 'norm_layer', Builder()), Builder):
            raise TypeError(
                f'norm_layer takes a flaxzoo.layers.Norm, for example Norm(eps=1e-3), got {self.norm_layer!r}; whether '
                'BatchNorm is shared over devices or frozen is said by flaxzoo.with_policy(model, axis_name=..., '
                'freeze_batch_norm=...)'
            )
        super().__post_init__()

    @property
    def has_aux(self) -> bool:
        """Whether training returns the logits of auxiliary heads too. Without a head there are none either."""
        return self.aux_logits and self.num_classes > 0

    def buffers(self) -> dict[str, np.ndarray]:
        """The buffers of torch's that the network computes itself, by torch's names."""
        return {}

    def check_buffer(self, key: str, value: np.ndarray) -> str | None:
        """What is wrong with the value that a file has for an `ignored` buffer, in words; None if it is as computed."""
        return None

    def resized(self, name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """The tensor `value` that a file has under torch's `name`, in the shape that this network takes.

        For tensors whose shape follows the size of the images or of a window. None: it cannot be resized.
        """
        return None

    def run_block(self, layer: Layer, x: jax.Array | tuple[jax.Array, ...], train: bool) -> jax.Array:
        """`x` through a part of the network that `remat` recomputes as a whole.

        Args:
          layer: a partial that builds a module, with its `name`; or a function of (network, x, train).
          x: an array, or a tuple of them if the layer takes one.
        """

        def forward(network: Network, x: jax.Array, train: bool) -> jax.Array:
            return run(layer, x, train) if is_module(layer) else layer(network, x, train)

        def hidden(network: Network, x: jax.Array, train: bool) -> jax.Array:
            with unrecorded():
                return forward(network, x, train)

        name = layer.keywords['name'] if is_module(layer) else None
        recorder = current_recorder()
        # Initialisation has nothing to recompute. What a recorder wants from inside a block must not stay inside.
        if not self.remat or self.is_initializing() or (recorder and recorder.looks_into(self, name)):
            return forward(self, x, train)
        x = nn.remat(hidden, static_argnums=(2,))(self, x, train)
        return tap(self, name, x) if name else x

    def sequential_blocks(
        self, x: jax.Array, train: bool, name: str, parts: Sequence[Sequence[Layer | None]]
    ) -> jax.Array:
        """`x` through torch's Sequential `name`, whose members are given in parts: each part is a block."""
        start = 0
        for part in parts:
            x = self.run_block(partial(sequential, name=name, layers=part, start=start), x, train)
            start += len(part)
        return x

    def auxiliary(
        self, head: Callable[[], nn.Module], x: jax.Array, train: bool, size: tuple[int, int]
    ) -> jax.Array | None:
        """The logits that the module built by `head` makes of `x` in training, else None.

        `init` makes its parameters in any mode, on maps of `size`: they depend on the channels alone, and images may be
        too small for the head.
        """
        if self.has_aux and train:
            return head()(x, train)
        if self.has_aux and self.is_initializing():
            head()(jnp.zeros((1, *size, x.shape[-1]), x.dtype), train)
        return None


def enclosing_network(module: nn.Module) -> Network | None:
    """The network that a bound module is part of, or None."""
    while isinstance(module, nn.Module):
        if isinstance(module, Network):
            return module
        module = module.parent
    return None


def with_policy(model: Network, **policy: Any) -> Network:
    """The same network for another kind of run; its variables are the same.

        model = flaxzoo.with_policy(model, axis_name='batch')  # BatchNorm's statistics shared over devices
        model = flaxzoo.with_policy(model, freeze_batch_norm=True, remat=True)

    Args:
      model: a network of `flaxzoo.create`. If it has no BatchNorm, what is said of it changes nothing. In a compact
        method give `create` these fields instead: the clone is no part of the module that `model` is built in.
      **policy: `axis_name`, `freeze_batch_norm` and `remat`, as `Network` has them; others stay as they are.

    Raises:
      TypeError: `model` is no network of flaxzoo, or a field is none of these three, or of the wrong type.
    """
    if not isinstance(model, Network):
        raise TypeError(f'expected a network of flaxzoo.create, got {type(model).__name__}')
    kinds = {'axis_name': (str, type(None)), 'freeze_batch_norm': (bool,), 'remat': (bool,)}
    for field, value in policy.items():
        if field not in kinds:
            raise TypeError(f'with_policy takes {", ".join(kinds)}, not {field!r}')
        if not isinstance(value, kinds[field]):
            expected = ' or '.join(kind.__name__ for kind in kinds[field])
            raise TypeError(f'{field} must be a {expected}, got {value!r}')
    return model.clone(**policy)
