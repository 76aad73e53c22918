"""Regularisers that drop things in training. Randomness comes from the `dropout` rng, as in `flax.linen.Dropout`."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class StochasticDepth(nn.Module):
    """`torchvision.ops.StochasticDepth`: zeroes a residual branch `x: (N, ...)` with probability `p` in training.

    What survives is divided by 1 - p. `mode='row'` draws for each image, `'batch'` once for all.
    """

    p: float
    mode: str = 'row'

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f'p must lie in [0, 1], got {self.p}')
        if self.mode not in ('row', 'batch'):
            raise ValueError(f"mode must be 'row' or 'batch', got {self.mode!r}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if not train or self.p == 0:
            return x
        if self.p == 1:
            return jnp.zeros_like(x)
        shape = (x.shape[0] if self.mode == 'row' else 1,) + (1,) * (x.ndim - 1)
        keep = jax.random.bernoulli(self.make_rng('dropout'), 1 - self.p, shape)
        return jnp.where(keep, x / (1 - self.p), 0)


class Dropout(nn.Module):
    """`torch.nn.Dropout`: zeroes elements of `x` with probability `p` in training, divides the rest by 1 - p."""

    p: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dropout(self.p)(x, deterministic=not train)
