"""Regularisers that drop things in training. Randomness comes from the `dropout` rng, as in `flax.linen.Dropout`."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dropout(nn.Module):
    """`torch.nn.Dropout`: zeroes elements of `x` with probability `p` in training, divides the rest by 1 - p."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f'p must lie in [0, 1], got {self.p}')
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return _dropped(self, x, x.shape) if train else x


class StochasticDepth(Dropout):
    """`torchvision.ops.StochasticDepth`: zeroes a residual branch `x: (N, ...)` with probability `p` in training.

    What survives is divided by 1 - p. `mode='row'` draws for each image, `'batch'` once for all.
    """

    mode: str = 'row'

    def __post_init__(self) -> None:
        if self.mode not in ('row', 'batch'):
            raise ValueError(f"mode must be 'row' or 'batch', got {self.mode!r}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        shape = (x.shape[0] if self.mode == 'row' else 1,) + (1,) * (x.ndim - 1)
        return _dropped(self, x, shape) if train else x


def _dropped(module: Dropout, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`x` with the elements of a mask of `shape` zeroed."""
    if module.p == 0:
        return x
    if module.p == 1:
        return jnp.zeros_like(x)
    if not (module.has_rng('dropout') or module.has_rng('params')):  # flax falls back on the latter
        raise ValueError(
            f'{".".join(module.path)} draws at random in training: model.apply(..., train=True, '
            "rngs={'dropout': jax.random.key(0)}), with another key in each step"
        )
    keep = jax.random.bernoulli(module.make_rng('dropout'), 1 - module.p, shape)
    return jnp.where(keep, x / (1 - module.p), 0)
