"""Sums that normalisation needs, and the local response normalisation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxzoo.ops.lowering import native_only


def batch_moments(x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance, (C,), of `x: (..., C)` over all axes but the last, and the devices of `axis_name`."""
    if native_only(x):
        axes = tuple(range(x.ndim - 1))
        mean = _over_devices(x.mean(axes), axis_name)
        return mean, _over_devices(jnp.square(x - mean).mean(axes), axis_name)
    return _one_pass_moments(x, axis_name)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _one_pass_moments(x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """The same without an array x - mean in memory, for the derivatives too, which the CPU would write and read again.

    The variance is taken about the mean of the first image and corrected for its distance from that of the batch
    (`python -m benchmarks.levers 'batch norm*'`). About zero a large mean would cancel every digit.
    """
    axes = tuple(range(x.ndim - 1))
    near, local = x[0].mean(axes[:-1]), x.mean(axes)
    mean = _over_devices(local, axis_name)
    variance = jnp.square(x - near).mean(axes) - (mean - near) * (2 * local - mean - near)
    return mean, jnp.maximum(_over_devices(variance, axis_name), 0)


@_one_pass_moments.defjvp
def _one_pass_moments_jvp(axis_name: str | None, primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (x,), (tangent,) = primals, tangents
    axes = tuple(range(x.ndim - 1))
    mean, variance = _one_pass_moments(x, axis_name)
    of_mean = _over_devices(tangent.mean(axes), axis_name)
    of_variance = 2 * (_over_devices((x * tangent).mean(axes), axis_name) - mean * of_mean)
    return (mean, variance), (of_mean, of_variance)


def _over_devices(values: jax.Array, axis_name: str | None) -> jax.Array:
    return lax.pmean(values, axis_name) if axis_name else values


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
