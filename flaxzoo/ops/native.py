"""XLA's own convolution and its two gradients."""

from typing import NamedTuple

import jax
from jax import lax

from flaxzoo.ops.pairs import Pair


class Geometry(NamedTuple):
    """What torch's convolution is told besides its arrays; padding is symmetric."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1


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
    return input_gradient_of(native_conv, cotangent, kernel, like, geometry)


def native_kernel_gradient(
    x: jax.Array, cotangent: jax.Array, *, like: jax.core.ShapedArray, geometry: Geometry
) -> jax.Array:
    """The gradient with respect to a kernel that is like `like`."""
    return kernel_gradient_of(native_conv, x, cotangent, like, geometry)


def input_gradient_of(forward, cotangent, kernel, like, geometry):
    """The input gradient of a lowering `forward`, by transposing it."""
    return jax.linear_transpose(lambda x: forward(x, kernel, geometry=geometry), like)(cotangent)[0]


def kernel_gradient_of(forward, x, cotangent, like, geometry):
    """The kernel gradient of a lowering `forward`, by transposing it."""
    return jax.linear_transpose(lambda kernel: forward(x, kernel, geometry=geometry), like)(cotangent)[0]
