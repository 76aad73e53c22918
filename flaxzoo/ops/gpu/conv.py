"""The lowerings of the convolution and its gradients for NVIDIA GPUs; the tables here alone choose
between them.

cuDNN is fast at most of what these networks are made of, grouped convolutions and their gradients included, but not at
an image's three channels. `python -m benchmarks.levers` prints what the choice is worth. The input gradients of 1x1
convolutions in half precision are an exception: alone a product is about as fast as cuDNN, in a network it is faster.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from flaxzoo.ops.convolution import Convolution, Lowering, always, choose
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
    return choose(FORWARD, Convolution.of(x, kernel, geometry)).compute(x, kernel, geometry=geometry)


def input_gradient(
    cotangent: jax.Array, kernel: jax.Array, *, aval: jax.ShapeDtypeStruct, geometry: Geometry
) -> jax.Array:
    """Its gradient with respect to x for GPUs."""
    gradient = choose(INPUT_GRADIENT, Convolution.of(aval, kernel, geometry)).compute
    return gradient(cotangent, kernel, aval=aval, geometry=geometry)


def kernel_gradient(x: jax.Array, cotangent: jax.Array, *, aval: jax.ShapeDtypeStruct, geometry: Geometry) -> jax.Array:
    """Its gradient with respect to the kernel for GPUs."""
    gradient = choose(KERNEL_GRADIENT, Convolution.of(x, aval, geometry)).compute
    return gradient(x, cotangent, aval=aval, geometry=geometry)


def pointwise_input_gradient(
    cotangent: jax.Array, kernel: jax.Array, *, aval: jax.ShapeDtypeStruct, geometry: Geometry
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


def is_thin(c: Convolution) -> bool:
    """Whether it is a dense one over few channels, in half precision."""
    few = c.inputs <= CHANNELS // 2
    return few and c.dtype.itemsize == 2 and c.geometry.groups == 1 and c.geometry.dilation == (1, 1)


FORWARD = (Lowering(is_thin, thin_conv), Lowering(always, native_conv))

INPUT_GRADIENT = (
    Lowering(lambda c: c.pointwise and not c.strided and c.dtype.itemsize == 2, pointwise_input_gradient),
    Lowering(always, native_input_gradient),
)

KERNEL_GRADIENT = (
    Lowering(is_thin, partial(kernel_gradient_of, thin_conv)),
    Lowering(always, native_kernel_gradient),
)
