"""Dense convolutions in the forms that XLA's CPU backend computes fastest."""

import jax
import jax.numpy as jnp
from jax import lax

from flaxzoo.ops.convolution import Convolution
from flaxzoo.ops.kept import kept
from flaxzoo.ops.native import Geometry
from flaxzoo.ops.taps import taps


def wide_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A dense convolution of stride 1 with padding added until the result is wider than the image, then cut off."""
    return cut(wider_conv(x, kernel, geometry=geometry), x, kernel, geometry)


def wider_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """`wide_conv` with the rows or columns that are to be cut off. YNNPACK cannot compute such a one."""
    reach = [d * (k - 1) - 2 * p for d, k, p in zip(geometry.dilation, kernel.shape, geometry.padding, strict=False)]
    more = [max(0, r + 1) for r in reach]
    axis = int(more[1] / x.shape[2] < more[0] / x.shape[1])  # of the two the one with less to add
    more[1 - axis] = 0
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=[(p, p + m) for p, m in zip(geometry.padding, more, strict=True)],
        rhs_dilation=geometry.dilation,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


def paired_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A dense convolution, undilated across, as one with twice the stride across and two columns' results as channels.

    The last column is to be cut off if there is one too many. For a convolution of few channels XLA's Eigen spends
    most of its time on copying what a window meets, of which two windows side by side share the greater part.
    """
    width, outputs = kernel.shape[1], kernel.shape[3]
    (down, right), (above, beside), (dilation, _), _ = geometry
    both = [jnp.pad(kernel, ((0, 0), (first, right - first), (0, 0), (0, 0))) for first in (0, right)]
    pairs = -(-Convolution.of(x, kernel, geometry).sizes[1] // 2)
    y = lax.conv_general_dilated(
        x,
        jnp.concatenate(both, -1),
        window_strides=(down, 2 * right),
        padding=[(above, above), (beside, 2 * right * (pairs - 1) + width + right - beside - x.shape[2])],
        rhs_dilation=(dilation, 1),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return y.reshape(*y.shape[:2], 2 * pairs, outputs)


def row_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A dense convolution as a one-dimensional one over rows, whose channels are the channels of all rows it meets."""
    height, width, inputs, outputs = kernel.shape
    (down, right), (above, beside), (dilation, across), _ = geometry
    met = taps(x, (height, 1), (down, 1), ((above, above), (0, 0)), (dilation, 1))
    # A sum of what does not overlap: XLA and LLVM make better code of it than of a concatenation. The kernel gradient
    # transposes the rows, from memory and not from what they are joined of.
    places = [(inputs * row, inputs * (height - 1 - row)) for row in range(height)]
    rows = kept(sum(jnp.pad(row, ((0, 0), (0, 0), (0, 0), place)) for row, place in zip(met, places, strict=True)))
    y = lax.conv_general_dilated(
        rows.reshape(-1, *rows.shape[2:]),
        kernel.transpose(1, 0, 2, 3).reshape(width, height * inputs, outputs),
        window_strides=(right,),
        padding=[(beside, beside)],
        rhs_dilation=(across,),
        dimension_numbers=('NWC', 'WIO', 'NWC'),
    )
    return y.reshape(*rows.shape[:2], *y.shape[1:])


def column_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A dense convolution whose kernel is a column, as that of a row with the image on its side."""
    turned = Geometry(*(pair[::-1] for pair in geometry[:3]))
    return row_conv(x.swapaxes(1, 2), kernel.swapaxes(0, 1), geometry=turned).swapaxes(1, 2)


def cut(y: jax.Array, x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """`y` without the rows and columns that are not the convolution's."""
    height, width = Convolution.of(x, kernel, geometry).sizes
    return y[:, :height, :width]
