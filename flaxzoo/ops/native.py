"""XLA's own convolution and its two gradients."""

from collections.abc import Callable
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
    cotangent: jax.Array, kernel: jax.Array, *, aval: jax.ShapeDtypeStruct, geometry: Geometry
) -> jax.Array:
    """The gradient with respect to an x of the shape and dtype of `aval`."""
    return input_gradient_of(native_conv, cotangent, kernel, aval=aval, geometry=geometry)


def native_kernel_gradient(
    x: jax.Array, cotangent: jax.Array, *, aval: jax.ShapeDtypeStruct, geometry: Geometry
) -> jax.Array:
    """The gradient with respect to a kernel of the shape and dtype of `aval`."""
    return kernel_gradient_of(native_conv, x, cotangent, aval=aval, geometry=geometry)


def input_gradient_of(
    forward: Callable, cotangent: jax.Array, kernel: jax.Array, *, aval: jax.ShapeDtypeStruct, geometry: Geometry
) -> jax.Array:
    """The input gradient of a lowering `forward`, by transposing it."""
    return jax.linear_transpose(lambda x: forward(x, kernel, geometry=geometry), aval)(cotangent)[0]


def kernel_gradient_of(
    forward: Callable, x: jax.Array, cotangent: jax.Array, *, aval: jax.ShapeDtypeStruct, geometry: Geometry
) -> jax.Array:
    """The kernel gradient of a lowering `forward`, by transposing it."""
    return jax.linear_transpose(lambda kernel: forward(x, kernel, geometry=geometry), aval)(cotangent)[0]
