"""Normalisation with torch's conventions."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flaxzoo.ops.lowering import surely_less
from flaxzoo.ops.norm import batch_moments


class BatchNorm(nn.Module):
    """`torch.nn.BatchNorm2d` (and 1d): normalises `x: (..., C)` over all axes but the last.

    Torch's conventions: `momentum` is the weight of the new value (0.1, flax would say 0.9), the running variance is
    the unbiased one (n / (n - 1)), the batch is normalised with the biased one. Statistics are computed in float32,
    or wider if `x` is; the result has the dtype of `x`.

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
        if self.has_variable('params', 'folded_bias'):
            if train and not self.frozen:
                raise ValueError(
                    f'{"/".join(self.path)}: the variables are folded for inference (flaxzoo.fold_batch_norm) '
                    'and cannot be trained; train the original ones'
                )
            return (x + self.get_variable('params', 'folded_bias')).astype(x.dtype)
        shape = x.shape[-1:]
        mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32)
        var = self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32)
        stats_dtype = jnp.promote_types(x.dtype, jnp.float32)
        wide = x.astype(stats_dtype)

        if train and not self.frozen:
            m, v, count = self._batch_statistics(wide)
            if not self.is_initializing():
                self._update(mean, m)
                self._update(var, v * (count / (count - 1)))
        else:
            m, v = mean.value.astype(stats_dtype), var.value.astype(stats_dtype)

        factor, bias = lax.rsqrt(v + self.eps), 0.0
        if self.affine:
            factor = factor * self.param('scale', self.scale_init, shape, jnp.float32)
            bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
        return (wide * factor + (bias - m * factor)).astype(x.dtype)

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        """Mean, biased variance and number of values a channel, over all devices of `axis_name`."""
        # At init there is no mapped axis to share over, and the values do not matter.
        axis_name = None if self.is_initializing() else self.axis_name
        count = math.prod(x.shape[:-1]) * (lax.axis_size(axis_name) if axis_name else 1)
        if surely_less(count, 2):
            raise ValueError(
                f'{"/".join(self.path)}: batch statistics need more than one value a channel in training, '
                f'got x of shape {x.shape}; use a larger batch or image, or BatchNorm(frozen=True)'
            )
        return *batch_moments(x, axis_name), count

    def _update(self, running: nn.Variable, batch: jax.Array) -> None:
        batch = lax.stop_gradient(batch).astype(running.value.dtype)
        running.value = (1 - self.momentum) * running.value + self.momentum * batch
