"""Convolution and linear layers with torch's arithmetic on NHWC arrays.

Kernels are cast to the input's dtype, so the compute dtype of a network is the dtype of its input. Parameters are
created in float32. Default initialisers are those of `torch.nn.Conv2d` and `torch.nn.Linear`.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxzoo.layers.initializers import uniform, variance_scaling
from flaxzoo.ops.conv import conv2d
from flaxzoo.ops.lowering import surely_less
from flaxzoo.ops.native import Geometry
from flaxzoo.ops.pairs import IntOrPair, pair
from flaxzoo.ops.space_to_depth import to_blocks

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch's kaiming_uniform_(a=sqrt(5)).
torch_uniform = variance_scaling(1 / 3, 'fan_in', 'uniform')
kaiming_normal_fan_out = variance_scaling(2.0, 'fan_out', 'normal')


def torch_bias(fan_in: int) -> Callable:
    """Initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch's default for the bias of Conv2d and Linear."""
    return uniform(fan_in**-0.5)


class Conv2d(nn.Module):
    """`torch.nn.Conv2d` on `x: (N, H, W, C)`, giving (N, H', W', out_channels).

    Fields are torch's. `padding` is numeric and symmetric, as in torch. The parameter `kernel` has shape
    (kernel height, kernel width, C // groups, out_channels); `bias` has shape (out_channels,).

    Raises:
      TypeError: `x` holds integers (an image that was not normalised).
      ValueError: `x` is not of rank 4, is smaller than the kernel, or its channels do not fit the kernel or the groups.
    """

    out_channels: int
    kernel_size: IntOrPair
    stride: IntOrPair = 1
    padding: IntOrPair = 0
    dilation: IntOrPair = 1
    groups: int = 1
    bias: bool = True
    kernel_init: Callable = torch_uniform
    bias_init: Callable | None = None  # None: torch's default, which depends on the fan-in

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel_size, dilation = pair(self.kernel_size, 'kernel_size'), pair(self.dilation, 'dilation')
        padding = pair(self.padding, 'padding')
        reach = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel_size, dilation, padding, strict=True)]
        self._check(x, reach)
        shape = (*kernel_size, x.shape[-1] // self.groups, self.out_channels)
        kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
        geometry = Geometry(pair(self.stride, 'stride'), padding, dilation, self.groups)
        y = self.convolve(x, kernel.astype(x.dtype), geometry)
        if self.bias:
            init = self.bias_init or torch_bias(shape[0] * shape[1] * shape[2])
            y = y + self.param('bias', init, (self.out_channels,), jnp.float32).astype(x.dtype)
        return y

    def convolve(self, x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
        """The convolution without the bias. A subclass may compute it in another way, or something linear before it."""
        return conv2d(x, kernel, geometry)

    def _check(self, x: jax.Array, reach: Sequence[int]) -> None:
        """Refuses an `x` that does not fit; `reach` is the smallest height and width that the kernel takes."""
        where = '.'.join(self.path) or type(self).__name__
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f'{where}: the image has dtype {x.dtype}; networks take normalised floating-point images. '
                'Convert it first, for example (x.astype(jnp.float32) / 255 - mean) / std.'
            )
        if x.ndim != 4:
            raise ValueError(f'{where}: expected x of shape (N, H, W, C), got {x.shape}')
        channels = x.shape[-1]
        if self.has_variable('params', 'kernel'):
            expected = self.get_variable('params', 'kernel').shape[2] * self.groups
            if channels != expected:
                raise ValueError(
                    f'{where}: the kernel takes {expected} channels and x of shape {x.shape} has {channels}; '
                    'images are (N, H, W, C), channels last'
                )
        if any(map(surely_less, x.shape[1:3], reach)):
            raise ValueError(
                f'{where}: x of shape {x.shape} is smaller than the kernel {self.kernel_size}; use a larger image'
            )
        if channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f'{where}: groups={self.groups} must divide the {channels} input channels and '
                f'the {self.out_channels} output channels'
            )


class SpaceToDepthConv2d(Conv2d):
    """A strided Conv2d computed as one of stride 1 over blocks of pixels: the same parameters and numbers.

    For hardware that is slow at few channels. (In half precision on NVIDIA GPUs every convolution over at most four
    channels is computed so without being told.) It takes no groups and no dilation.
    """

    def convolve(self, x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
        if geometry.groups != 1 or geometry.dilation != (1, 1):
            raise ValueError('SpaceToDepthConv2d takes groups=1 and dilation=1')
        return conv2d(*to_blocks(x, kernel, geometry), Geometry())


class AveragedConv2d(Conv2d):
    """A 1x1 Conv2d of an average pool's result.

    The two commute: the pool is applied to whichever has fewer channels, the convolution's input or its result.

    Attributes:
      average: the pool, of stride 1 and keeping the size.
    """

    average: Callable[[jax.Array], jax.Array] | None = None

    def convolve(self, x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
        if kernel.shape[:2] != (1, 1) or geometry != Geometry():
            raise ValueError('AveragedConv2d takes a 1x1 kernel, stride 1, no padding and no groups')
        if kernel.shape[3] < x.shape[-1]:
            return self.average(conv2d(x, kernel, geometry))
        return conv2d(self.average(x), kernel, geometry)


class Linear(nn.Module):
    """`torch.nn.Linear` on `x: (..., C)`, giving (..., out_features). `kernel` has shape (C, out_features).

    With `out_features=0` it is `torch.nn.Identity`, which is what `num_classes=0` makes of a network's head.
    """

    out_features: int
    bias: bool = True
    kernel_init: Callable = torch_uniform
    bias_init: Callable | None = None  # None: torch's default, which depends on the fan-in

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.out_features == 0:
            return x
        kernel = self.param('kernel', self.kernel_init, (x.shape[-1], self.out_features), jnp.float32)
        y = x @ kernel.astype(x.dtype)
        if self.bias:
            init = self.bias_init or torch_bias(x.shape[-1])
            y = self.add_bias(y, self.param('bias', init, (self.out_features,), jnp.float32).astype(x.dtype))
        return y

    def add_bias(self, y: jax.Array, bias: jax.Array) -> jax.Array:
        """The result with its bias. A subclass may leave a part of the bias out."""
        return y + bias
