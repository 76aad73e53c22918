"""Small compositions that several families share."""

from collections.abc import Callable

import flax.linen as nn
import jax

from flaxzoo.layers.conv import Conv2d

NormLayer = Callable[..., nn.Module]


def remat(block: type[nn.Module], enabled: bool) -> type[nn.Module]:
    """`block` recomputed in the backward pass instead of stored, if `enabled`. Its call is `block(x, train)`."""
    # Argument 0 is the module itself, 1 is x, 2 is train, which must stay a Python bool.
    return nn.remat(block, static_argnums=(2,)) if enabled else block


class SqueezeExcite(nn.Module):
    """Scales the channels of `x: (N, H, W, C)` by a gate computed from their means (https://arxiv.org/abs/1709.01507).

    The two 1x1 convolutions with a bias are called fc1 and fc2, as in torchvision and timm.
    """

    squeeze_channels: int
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    gate: Callable[[jax.Array], jax.Array] = nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        s = x.mean((1, 2), keepdims=True)
        s = self.activation(Conv2d(self.squeeze_channels, 1, name='fc1')(s))
        return x * self.gate(Conv2d(x.shape[-1], 1, name='fc2')(s))
