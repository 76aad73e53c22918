"""A strided convolution over few channels as one of stride 1 over blocks of pixels, exactly."""

import jax
import jax.numpy as jnp
from jax import lax

from flaxzoo.ops.native import Geometry


def to_blocks(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> tuple[jax.Array, jax.Array]:
    """An image and a kernel whose convolution of stride 1 without padding is that of `x` and `kernel`.

    A block of stride x stride pixels becomes one pixel with all their channels. A 7x7 kernel of stride 2 over 3
    channels becomes 4x4 over 12, the 15 of 64 taps that are new being zero. Groups and dilation must be 1.
    """
    inputs, outputs = kernel.shape[2:]
    blocks, sizes, pads = [], [], []  # of each axis: the kernel's and the image's blocks, and the padding of the image
    for size, taps, stride, pad in zip(x.shape[1:3], kernel.shape, geometry.stride, geometry.padding, strict=False):
        blocks.append(-(-taps // stride))
        sizes.append((size + 2 * pad - taps) // stride + blocks[-1])
        pads.append((pad, sizes[-1] * stride - size - pad, 0))
    down, right = geometry.stride
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    x = x.reshape(len(x), sizes[0], down, sizes[1], right, inputs).transpose(0, 1, 3, 2, 4, 5)
    rows, columns = blocks[0] * down - kernel.shape[0], blocks[1] * right - kernel.shape[1]
    kernel = jnp.pad(kernel, ((0, rows), (0, columns), (0, 0), (0, 0)))
    kernel = kernel.reshape(blocks[0], down, blocks[1], right, inputs, outputs).transpose(0, 2, 1, 3, 4, 5)
    channels = down * right * inputs
    return x.reshape(*x.shape[:3], channels), kernel.reshape(*blocks, channels, outputs)
