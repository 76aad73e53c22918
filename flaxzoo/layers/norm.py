"""Normalisation with torch's conventions."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flaxzoo.layers.naming import Builder
from flaxzoo.layers.network import enclosing_network
from flaxzoo.ops.lowering import surely_less
from flaxzoo.ops.norm import batch_moments


class BatchNorm(nn.Module):
    """`torch.nn.BatchNorm2d` (and 1d): normalises `x: (..., C)` over all axes but the last.

    Torch's conventions: `momentum` is the weight of the new value (0.1, flax would say 0.9), the running variance is
    the unbiased one (n / (n - 1)), the batch is normalised with the biased one. Statistics are computed in float32,
    or wider if `x` is; the result has the dtype of `x`.

    In a Network the network's `axis_name` and `freeze_batch_norm` hold for it too, so that nobody passes them down.

    Attributes:
      eps: added to the variance.
      momentum: running = (1 - momentum) * running + momentum * batch.
      affine: learn `scale` and `bias`.
      axis_name: a mapped axis (of `pmap` or `shard_map`) over which training statistics are shared, torch's
        SyncBatchNorm. None: every device uses its own part of the batch.
      scale_init: initialiser of `scale`.
      frozen: use the running statistics also when `train=True` and leave them as they are; `scale` and `bias`
        still get gradients.

    Raises:
      ValueError: in training, if there is only one value a channel (torch refuses it too).
    """

    eps: float = 1e-5
    momentum: float = 0.1
    affine: bool = True
    axis_name: str | None = None
    frozen: bool = False
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        axis_name, frozen = self._policy()
        if self.has_variable('params', 'folded_bias'):
            if train and not frozen:
                raise ValueError(
                    f'{".".join(self.path)}: the variables are folded for inference (flaxzoo.fold_batch_norm) '
                    'and cannot be trained; train the original ones'
                )
            return (x + self.get_variable('params', 'folded_bias')).astype(x.dtype)
        if not self.is_initializing() and not self.has_variable('batch_stats', 'mean'):
            raise ValueError(
                f'{".".join(self.path)}: there are no running statistics; give apply all variables that init or load '
                "gave, {'params': ..., 'batch_stats': ...}"
            )
        shape = x.shape[-1:]
        mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32)
        var = self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32)
        stats_dtype = jnp.promote_types(x.dtype, jnp.float32)
        wide = x.astype(stats_dtype)

        if train and not frozen:
            m, v, count = self._batch_statistics(wide, axis_name)
            if not self.is_initializing():
                self._check_mutable()
                self._update(mean, m)
                self._update(var, v * (count / (count - 1)))
        else:
            m, v = mean.value.astype(stats_dtype), var.value.astype(stats_dtype)

        factor, bias = lax.rsqrt(v + self.eps), 0.0
        if self.affine:
            factor = factor * self.param('scale', self.scale_init, shape, jnp.float32)
            bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
        return (wide * factor + (bias - m * factor)).astype(x.dtype)

    def _policy(self) -> tuple[str | None, bool]:
        """`axis_name` and `frozen`: the layer's own, or those of the network that it is part of."""
        network = enclosing_network(self)
        if network is None:
            return self.axis_name, self.frozen
        return self.axis_name or network.axis_name, self.frozen or network.freeze_batch_norm

    def _batch_statistics(self, x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array, int]:
        """Mean, biased variance and number of values a channel, over all devices of `axis_name`."""
        if self.is_initializing():
            axis_name = None  # there is no mapped axis to share over, and the values do not matter
        count = math.prod(x.shape[:-1]) * (lax.axis_size(axis_name) if axis_name else 1)
        if surely_less(count, 2):
            raise ValueError(
                f'{".".join(self.path)}: batch statistics need more than one value a channel in training, '
                f'got x of shape {x.shape}; use a larger batch or image, or freeze the batch norms'
            )
        return *batch_moments(x, axis_name), count

    def _check_mutable(self) -> None:
        if not self.is_mutable_collection('batch_stats'):
            raise ValueError(
                f'{".".join(self.path)}: training changes the running statistics; take them as the second result, '
                "y, changed = model.apply(variables, x, train=True, mutable=['batch_stats']), or freeze them, "
                'flaxzoo.with_policy(model, freeze_batch_norm=True)'
            )

    def _update(self, running: nn.Variable, batch: jax.Array) -> None:
        batch = lax.stop_gradient(batch).astype(running.value.dtype)
        running.value = (1 - self.momentum) * running.value + self.momentum * batch


class LayerNorm(nn.Module):
    """`torch.nn.LayerNorm` over the last axis of `x: (..., C)`, and torchvision's LayerNorm2d on NHWC images.

    Computed in float32, or wider if `x` is; the result has the dtype of `x`.

    Attributes:
      eps: added to the variance; torch's default. Flax's is 1e-6.
      scale_init: initialiser of `scale`.
    """

    eps: float = 1e-5
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        # `train` changes nothing: it is there so that a `Norm` of any kind is called alike.
        shape = x.shape[-1:]
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = wide.mean(-1, keepdims=True)
        variance = jnp.square(wide - mean).mean(-1, keepdims=True)
        scale = self.param('scale', self.scale_init, shape, jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
        return ((wide - mean) * lax.rsqrt(variance + self.eps) * scale + bias).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Norm(Builder):
    """Which normalisation a network has: part of its architecture. `norm(name='bn1')` builds the layer.

    What a run does with it, sharing statistics or freezing them, is said by `flaxzoo.with_policy`.

    Attributes:
      kind: the layer's class: BatchNorm, LayerNorm, or a module of yours that is called on (x, train) and has a field
        `eps`; for ResNet's blocks a field `scale_init` too.
      eps: added to the variance.
      momentum: weight of the new value in running statistics, as torch counts; for layers that have any.
    """

    kind: type[nn.Module] = BatchNorm
    eps: float = 1e-5
    momentum: float = 0.1

    def __call__(self, **fields: Any) -> nn.Module:
        """The layer; `fields` are further fields of it."""
        has_momentum = any(field.name == 'momentum' for field in dataclasses.fields(self.kind))
        return self.kind(eps=self.eps, **({'momentum': self.momentum} if has_momentum else {}), **fields)
