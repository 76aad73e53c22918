"""One convolution and its gradients, several lowerings of the same mathematics; this file alone chooses between them.

`conv_primitive.py` gives GPUs and TPUs XLA's native convolution, and the CPU what is chosen here: XLA's CPU backend
lowers the kernel gradient of a grouped convolution to a dense convolution that multiplies zeros, is faster at matrix
products than at 1x1 convolutions, and slow at kernel gradients over large images. `python -m benchmarks.grouped_conv`
and `python -m benchmarks.levers` print what the choices are worth.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxzoo.layers.taps import Pair, taps


class Geometry(NamedTuple):
    """What torch's convolution is told besides its arrays; padding is symmetric."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1


# Channels of one dense block when narrow groups are merged for the CPU. 16 was the fastest of 8, 16, 32 and 64 over
# the four stages of ResNeXt-50 (forward plus backward; `python -m benchmarks.grouped_conv --widths`).
MERGED_CHANNELS = 16

# Each block is a convolution to compile, three with the gradients, and a loop over them is ten times slower. With at
# most 16 a training step of ResNeXt-50 compiles in about half the time that it takes with 32.
MAX_BLOCKS = 16


def native_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=geometry.stride,
        padding=[(p, p) for p in geometry.padding],
        rhs_dilation=geometry.dilation,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=geometry.groups,
    )


def native_input_gradient(
    cotangent: jax.Array, kernel: jax.Array, *, like: jax.core.ShapedArray, geometry: Geometry
) -> jax.Array:
    """The gradient with respect to an x that is like `like`."""
    return _input_gradient_of(native_conv, cotangent, kernel, like, geometry)


def native_kernel_gradient(
    x: jax.Array, cotangent: jax.Array, *, like: jax.core.ShapedArray, geometry: Geometry
) -> jax.Array:
    """The gradient with respect to a kernel that is like `like`."""
    return _kernel_gradient_of(native_conv, x, cotangent, like, geometry)


def conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """The convolution for the CPU."""
    return _forward(kernel.shape, geometry)(x, kernel, geometry=geometry)


def input_gradient(
    cotangent: jax.Array, kernel: jax.Array, *, like: jax.core.ShapedArray, geometry: Geometry
) -> jax.Array:
    """Its gradient with respect to x for the CPU."""
    forward = _forward(kernel.shape, geometry)
    if forward is native_conv and cotangent.dtype == jnp.float64:
        forward = tap_conv  # XLA's float64 loops took 6 to 50 times longer unless 'same' with stride 1
    return _input_gradient_of(forward, cotangent, kernel, like, geometry)


def kernel_gradient(x: jax.Array, cotangent: jax.Array, *, like: jax.core.ShapedArray, geometry: Geometry) -> jax.Array:
    """Its gradient with respect to the kernel for the CPU."""
    forward = _forward(like.shape, geometry)
    # The products over a batch of explicit sharding would need to be told where to sum; that is left to jax.
    sharded = any(jax.typeof(x).sharding.spec)
    dense = forward is native_conv and _taps_are_faster(like.shape, cotangent.shape, geometry)
    if not sharded and (forward is pointwise_conv or dense):
        return tap_kernel_gradient(x, cotangent, like=like, geometry=geometry)
    return _kernel_gradient_of(forward, x, cotangent, like, geometry)


def pointwise_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A 1x1 convolution without padding as a matrix product."""
    return x[:, :: geometry.stride[0], :: geometry.stride[1]] @ kernel[0, 0]


def depthwise_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A depthwise convolution as a sum of shifted products, one a tap."""
    weights = kernel.reshape(-1, kernel.shape[-1])
    return sum(pixels * weight for pixels, weight in zip(_taps(x, kernel.shape, geometry), weights, strict=True))


def merged_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry, channels: int = MERGED_CHANNELS) -> jax.Array:
    """A grouped convolution as dense ones over blocks of groups that together have about `channels` channels.

    The kernel of a block is block-diagonal: one block of the diagonal a group, zeros elsewhere.
    """
    groups = geometry.groups
    merge = _groups_a_block(groups, kernel.shape[2], channels)
    blocks = groups // merge
    height, width, inputs, outputs = kernel.shape
    # (kh, kw, I, O) -> (blocks, kh, kw, merge * I, merge * O / groups), zero off the diagonal of (merge, merge).
    split = kernel.reshape(height, width, inputs, blocks, merge, outputs // groups)
    eye = jnp.eye(merge, dtype=kernel.dtype)
    dense = jnp.einsum('hwibmo,nm->bhwnimo', split, eye)
    dense = dense.reshape(blocks, height, width, merge * inputs, merge * outputs // groups)
    dense_geometry = geometry._replace(groups=1)
    parts = [native_conv(part, dense[b], geometry=dense_geometry) for b, part in enumerate(jnp.split(x, blocks, -1))]
    return jnp.concatenate(parts, -1)


def tap_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A dense convolution as a sum of matrix products, one a tap."""
    weights = kernel.reshape(-1, *kernel.shape[2:])
    return sum(pixels @ weight for pixels, weight in zip(_taps(x, kernel.shape, geometry), weights, strict=True))


def tap_kernel_gradient(
    x: jax.Array, cotangent: jax.Array, *, like: jax.core.ShapedArray, geometry: Geometry
) -> jax.Array:
    """The kernel gradient of a dense convolution as matrix products, one a tap, summed over all pixels."""
    shape = like.shape
    y = cotangent.reshape(-1, shape[3])
    products = []
    for pixels in _taps(x, shape, geometry):
        rows = pixels.reshape(-1, shape[2])
        # The first factor gets transposed in memory, so it is the narrower one.
        products.append(rows.T @ y if shape[2] <= shape[3] else (y.T @ rows).T)
    return jnp.stack(products).reshape(shape)


def _forward(kernel_shape: tuple[int, ...], geometry: Geometry):
    """The function of this module that computes such a convolution fastest on the CPU."""
    groups = geometry.groups
    if groups == 1:
        return pointwise_conv if kernel_shape[:2] == (1, 1) and geometry.padding == (0, 0) else native_conv
    return depthwise_conv if kernel_shape[2] == 1 and kernel_shape[3] == groups else merged_conv


def _taps_are_faster(kernel_shape: tuple[int, ...], cotangent_shape: tuple[int, ...], geometry: Geometry) -> bool:
    """As `benchmarks.levers` shows: up to 3 times over large images, no gain over 14x14 unless strided.

    A loss for the many taps of 5x5 and 7x7.
    """
    large = cotangent_shape[1] * cotangent_shape[2] >= 200
    return kernel_shape[0] * kernel_shape[1] <= 9 and (large or geometry.stride != (1, 1))


def _input_gradient_of(forward, cotangent, kernel, like, geometry):
    return jax.linear_transpose(lambda x: forward(x, kernel, geometry=geometry), like)(cotangent)[0]


def _kernel_gradient_of(forward, x, cotangent, like, geometry):
    return jax.linear_transpose(lambda kernel: forward(x, kernel, geometry=geometry), like)(cotangent)[0]


def _taps(x: jax.Array, kernel_shape: tuple[int, ...], geometry: Geometry) -> list[jax.Array]:
    padding = tuple((p, p) for p in geometry.padding)
    return taps(x, kernel_shape[:2], geometry.stride, padding, geometry.dilation)


def _groups_a_block(groups: int, inputs: int, channels: int) -> int:
    """The smallest divisor of `groups` that gives at most MAX_BLOCKS blocks of at least `channels` channels."""
    divisors = [m for m in range(1, groups + 1) if groups % m == 0]
    return next((m for m in divisors if m * inputs >= channels and groups // m <= MAX_BLOCKS), groups)
