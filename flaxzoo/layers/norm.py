"""Normalisation with torch's conventions."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def batch_moments(x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of `x: (..., C)` over all axes but the last, and over the devices of `axis_name`: (C,).

    Neither they nor their derivatives need an array x - mean in memory, which the CPU would write and read again
    (`python -m benchmarks.levers 'batch norm*'`): the variance is taken about the mean of the first image and corrected
    for its distance from that of the batch. About zero a large mean would cancel every digit.
    """
    axes = tuple(range(x.ndim - 1))
    near, local = x[0].mean(axes[:-1]), x.mean(axes)
    mean = _over_devices(local, axis_name)
    variance = jnp.square(x - near).mean(axes) - (mean - near) * (2 * local - mean - near)
    return mean, jnp.maximum(_over_devices(variance, axis_name), 0)


@batch_moments.defjvp
def _batch_moments_jvp(axis_name: str | None, primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (x,), (tangent,) = primals, tangents
    axes = tuple(range(x.ndim - 1))
    mean, variance = batch_moments(x, axis_name)
    of_mean = _over_devices(tangent.mean(axes), axis_name)
    of_variance = 2 * (_over_devices((x * tangent).mean(axes), axis_name) - mean * of_mean)
    return (mean, variance), (of_mean, of_variance)


def _over_devices(values: jax.Array, axis_name: str | None) -> jax.Array:
    return lax.pmean(values, axis_name) if axis_name else values


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
        count = x.size // x.shape[-1] * (lax.axis_size(axis_name) if axis_name else 1)
        if count < 2:
            raise ValueError(
                f'{"/".join(self.path)}: batch statistics need more than one value a channel in training, '
                f'got x of shape {x.shape}; use a larger batch or image, or BatchNorm(frozen=True)'
            )
        return *batch_moments(x, axis_name), count

    def _update(self, running: nn.Variable, batch: jax.Array) -> None:
        batch = lax.stop_gradient(batch).astype(running.value.dtype)
        running.value = (1 - self.momentum) * running.value + self.momentum * batch


def local_response_norm(x: jax.Array, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> jax.Array:
    """`torch.nn.functional.local_response_norm` across the channels of `x: (..., C)`, and Caffe's LRN layer.

    Divides by (k + alpha * m) ** beta, where m is the mean of the squares of the `size` channels around each one;
    channels beyond the ends count as zeros. Computed in float32, or wider if `x` is.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    window = (1,) * (x.ndim - 1) + (size,)
    padding = [(0, 0)] * (x.ndim - 1) + [(size // 2, (size - 1) // 2)]
    zero = np.zeros((), wide.dtype)  # a constant also under jit: a traced zero would have no gradient
    total = lax.reduce_window(jnp.square(wide), zero, lax.add, window, (1,) * x.ndim, padding)
    return (wide / (k + alpha / size * total) ** beta).astype(x.dtype)
