"""Small compositions that several families share."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax

from flaxzoo.layers.conv import AveragedConv2d, Conv2d, Linear, torch_uniform
from flaxzoo.layers.naming import Layer
from flaxzoo.layers.norm import Norm
from flaxzoo.layers.regularize import Dropout
from flaxzoo.ops.pairs import IntOrPair, pair


class ConvNormAct(nn.Module):
    """A convolution without bias, its normalisation and an activation: (N, H, W, C) -> (N, H', W', O).

    The `BasicConv2d` of torchvision's and timm's Inception families, whose parts are called `conv` and `bn`.

    Attributes:
      conv: the convolution's class, or a partial of it.
      norm_layer: the normalisation, or None.
      activation: applied last, or None.
    """

    out_channels: int
    kernel_size: IntOrPair
    stride: IntOrPair = 1
    padding: IntOrPair | None = 0
    dilation: IntOrPair = 1
    groups: int = 1
    norm_layer: Norm | None = Norm()
    activation: Callable[[jax.Array], jax.Array] | None = nn.relu
    kernel_init: Callable = torch_uniform
    conv: Callable[..., Conv2d] = Conv2d

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv, norm = self.names()
        x = self.conv(
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.same_padding() if self.padding is None else self.padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=self.norm_layer is None,
            kernel_init=self.kernel_init,
            name=conv,
        )(x)
        if self.norm_layer:
            x = self.norm_layer(name=norm)(x, train)
        return self.activation(x) if self.activation else x

    def names(self) -> tuple[str, str]:
        """What the convolution and the norm are called."""
        return 'conv', 'bn'

    def same_padding(self) -> tuple[int, int]:
        """The padding that keeps the size at stride 1; kernels are odd."""
        kernel, dilation = pair(self.kernel_size, 'kernel_size'), pair(self.dilation, 'dilation')
        return tuple((k - 1) // 2 * d for k, d in zip(kernel, dilation, strict=True))


class Conv2dNormActivation(ConvNormAct):
    """`torchvision.ops.Conv2dNormActivation`, a Sequential of `0` and `1`, padded to keep the size."""

    padding: IntOrPair | None = None

    def names(self) -> tuple[str, str]:
        return '0', '1'


def averaged(average: Callable[[jax.Array], jax.Array], layer: partial) -> tuple[None, partial]:
    """An average pool and the 1x1 ConvNormAct that `layer` builds, as members of a Sequential.

    The second computes both, in the faster order: the first has a number and no result.
    """
    return None, partial(layer, conv=partial(AveragedConv2d, average=average))


def mlp(hidden: int, out: int, dropout: float, linear: Callable[..., Linear] = Linear) -> Sequence[Layer]:
    """The members of `torchvision.ops.MLP` with one hidden layer and the exact GELU, for `sequential`.

    `linear` is the layers' class, or a partial of it.
    """
    drop = partial(Dropout, dropout)
    return partial(linear, hidden), partial(nn.gelu, approximate=False), drop, partial(linear, out), drop


class SqueezeExcite(nn.Module):
    """Scales the channels of `x: (N, H, W, C)` by a gate computed from their means (https://arxiv.org/abs/1709.01507).

    The two 1x1 convolutions with a bias are called fc1 and fc2, as in torchvision and timm.
    """

    squeeze_channels: int
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    gate: Callable[[jax.Array], jax.Array] = nn.sigmoid
    kernel_init: Callable = torch_uniform
    bias_init: Callable | None = None  # None: torch's default, which depends on the fan-in

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(Conv2d, kernel_size=1, kernel_init=self.kernel_init, bias_init=self.bias_init)
        s = x.mean((1, 2), keepdims=True)
        s = self.activation(conv(self.squeeze_channels, name='fc1')(s))
        return x * self.gate(conv(x.shape[-1], name='fc2')(s))
