"""Small compositions that several families share."""

from collections.abc import Callable

import flax.linen as nn
import jax

from flaxzoo.layers.conv import Conv2d, torch_uniform
from flaxzoo.layers.norm import BatchNorm
from flaxzoo.ops.pairs import IntOrPair

NormLayer = Callable[..., nn.Module]


def remat(block: type[nn.Module], enabled: bool) -> type[nn.Module]:
    """`block` recomputed in the backward pass instead of stored, if `enabled`. Its call is `block(x, train)`."""
    # Argument 0 is the module itself, 1 is x, 2 is train, which must stay a Python bool.
    return nn.remat(block, static_argnums=(2,)) if enabled else block


class ConvNormAct(nn.Module):
    """A convolution without bias `conv`, its normalisation `bn` and an activation: (N, H, W, C) -> (N, H', W', O).

    Torchvision's and timm's `BasicConv2d` of the Inception families. `average` is Conv2d's.
    """

    out_channels: int
    kernel_size: IntOrPair
    stride: IntOrPair = 1
    padding: IntOrPair = 0
    average: Callable[[jax.Array], jax.Array] | None = None
    norm_layer: NormLayer = BatchNorm
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    kernel_init: Callable = torch_uniform

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = Conv2d(
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            average=self.average,
            bias=False,
            kernel_init=self.kernel_init,
            name='conv',
        )(x)
        return self.activation(self.norm_layer(name='bn')(x, train))


class SqueezeExcite(nn.Module):
    """Scales the channels of `x: (N, H, W, C)` by a gate computed from their means (https://arxiv.org/abs/1709.01507).

    The two 1x1 convolutions with a bias are called fc1 and fc2, as in torchvision and timm.
    """

    squeeze_channels: int
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    gate: Callable[[jax.Array], jax.Array] = nn.sigmoid
    kernel_init: Callable = torch_uniform

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        s = x.mean((1, 2), keepdims=True)
        s = self.activation(Conv2d(self.squeeze_channels, 1, kernel_init=self.kernel_init, name='fc1')(s))
        return x * self.gate(Conv2d(x.shape[-1], 1, kernel_init=self.kernel_init, name='fc2')(s))
