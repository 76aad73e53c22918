"""The lowerings of the convolution and its gradients for NVIDIA GPUs; this file alone chooses between them.

cuDNN is fast at most of what these networks are made of, grouped convolutions and their gradients included, but not at
an image's three channels. `python -m benchmarks.levers` prints what the choice is worth. The input gradients of 1x1
convolutions in half precision are an exception: alone a product is about as fast as cuDNN, in a network it is faster.
"""

import jax
import jax.numpy as jnp
from jax import lax

from flaxzoo.ops.native import (
    Geometry,
    kernel_gradient_of,
    native_conv,
    native_input_gradient,
    native_kernel_gradient,
)
from flaxzoo.ops.space_to_depth import to_blocks

# Tensor cores take half-precision channels by eights.
CHANNELS = 8


def conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """The convolution for GPUs."""
    return (thin_conv if _is_thin(kernel, geometry) else native_conv)(x, kernel, geometry=geometry)


def input_gradient(
    cotangent: jax.Array, kernel: jax.Array, *, like: jax.core.ShapedArray, geometry: Geometry
) -> jax.Array:
    """Its gradient with respect to x for GPUs."""
    pointwise = kernel.shape[:2] == (1, 1) and kernel.dtype.itemsize == 2 and geometry == Geometry()
    gradient = pointwise_input_gradient if pointwise else native_input_gradient
    return gradient(cotangent, kernel, like=like, geometry=geometry)


def kernel_gradient(x: jax.Array, cotangent: jax.Array, *, like: jax.core.ShapedArray, geometry: Geometry) -> jax.Array:
    """Its gradient with respect to the kernel for GPUs."""
    if _is_thin(like, geometry):
        return kernel_gradient_of(thin_conv, x, cotangent, like, geometry)
    return native_kernel_gradient(x, cotangent, like=like, geometry=geometry)


def pointwise_input_gradient(
    cotangent: jax.Array, kernel: jax.Array, *, like: jax.core.ShapedArray, geometry: Geometry
) -> jax.Array:
    """The input gradient of a 1x1 convolution of stride 1 as a matrix product, which XLA need not give to cuDNN."""
    return lax.dot_general(cotangent, kernel[0, 0], (((3,), (1,)), ((), ())))


def thin_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A convolution over few channels: over blocks of pixels if strided, with zeros up to a multiple of 8 channels."""
    if geometry.stride != (1, 1):
        x, kernel = to_blocks(x, kernel, geometry)
        geometry = Geometry()
    more = -kernel.shape[2] % CHANNELS
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more)))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, more), (0, 0)))
    return native_conv(x, kernel, geometry=geometry)


def _is_thin(kernel: jax.Array | jax.core.ShapedArray, geometry: Geometry) -> bool:
    few = kernel.shape[2] <= CHANNELS // 2
    return few and kernel.dtype.itemsize == 2 and geometry.groups == 1 and geometry.dilation == (1, 1)
