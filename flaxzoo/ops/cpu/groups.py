"""Grouped and depthwise convolutions, of which XLA's CPU backend computes the gradients as dense ones full of zeros."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from flaxzoo.ops.convolution import Convolution
from flaxzoo.ops.cpu.dense import cut
from flaxzoo.ops.kept import kept
from flaxzoo.ops.native import Geometry, native_conv
from flaxzoo.ops.taps import taps_of

# Channels of one dense block when narrow groups are merged, and the most blocks: each is a convolution to compile, and
# a loop over them is ten times slower. `python -m benchmarks.grouped_conv --widths` has others.
MERGED_CHANNELS = 16
MAX_BLOCKS = 16

# Rows of a product that the kernel gradient of a depthwise convolution sums at once. Of 4 and 8 each was the faster at
# some shapes; sums along whole rows took about twice as long.
ROWS_A_SUM = 4


def depthwise_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    """A depthwise convolution as a sum of shifted products, one a tap."""
    weights = kernel.reshape(-1, kernel.shape[-1])
    return sum(pixels * weight for pixels, weight in zip(taps_of(x, kernel.shape, geometry), weights, strict=True))


def flipped_depthwise_conv(x: jax.Array, kernel: jax.Array, *, geometry: Geometry) -> jax.Array:
    return depthwise_conv(x, kernel[::-1, ::-1], geometry=geometry)


def depthwise_kernel_gradient(
    x: jax.Array, cotangent: jax.Array, *, aval: jax.ShapeDtypeStruct, geometry: Geometry
) -> jax.Array:
    """The kernel gradient of a depthwise convolution: all taps in one pass over the pixels, four rows at a time.

    A sum over so few LLVM unrolls, and then computes many channels at once; a longer one it leaves a loop, for one
    channel after the other.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    images, height, width, channels = cotangent.shape
    rows = -(-height // ROWS_A_SUM)
    cotangent = cotangent.astype(wide)
    products = [pixels.astype(wide) * cotangent for pixels in taps_of(x, aval.shape, geometry)]
    products = [jnp.pad(p, ((0, 0), (0, rows * ROWS_A_SUM - height), (0, 0), (0, 0))) for p in products]
    products = [p.reshape(images, rows, ROWS_A_SUM, width, channels) for p in products]
    zeros = [jnp.zeros((), wide)] * len(products)
    sums = lax.reduce(products, zeros, lambda a, b: [i + j for i, j in zip(a, b, strict=True)], (2,))
    return jnp.stack([s.sum((0, 1, 2)) for s in sums]).reshape(aval.shape).astype(aval.dtype)


def merged_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    geometry: Geometry,
    channels: int = MERGED_CHANNELS,
    limit: int = MAX_BLOCKS,
    block: Callable = native_conv,
) -> jax.Array:
    """A grouped convolution as at most `limit` dense ones over groups that together have about `channels` channels.

    The kernel of a block is block-diagonal: one block of the diagonal a group, zeros elsewhere. What `block` computes
    may have rows and columns too many at the end. The pieces of the image are kept, because the kernel gradient
    transposes them.
    """
    groups = geometry.groups
    merge = groups_a_block(Convolution.of(x, kernel, geometry), channels, limit)
    blocks = groups // merge
    height, width, inputs, outputs = kernel.shape
    # (kh, kw, I, O) -> (blocks, kh, kw, merge * I, merge * O / groups), zero off the diagonal of (merge, merge).
    split = kernel.reshape(height, width, inputs, blocks, merge, outputs // groups)
    eye = jnp.eye(merge, dtype=kernel.dtype)
    dense = jnp.einsum('hwibmo,nm->bhwnimo', split, eye)
    dense = dense.reshape(blocks, height, width, merge * inputs, merge * outputs // groups)
    dense_geometry = geometry._replace(groups=1)
    parts = [block(kept(part), dense[b], geometry=dense_geometry) for b, part in enumerate(jnp.split(x, blocks, -1))]
    return cut(jnp.concatenate(parts, -1), x, kernel, geometry)


def groups_a_block(convolution: Convolution, channels: int, limit: int) -> int:
    """The smallest divisor of the groups that gives at most `limit` blocks of at least `channels` input channels."""
    groups = convolution.geometry.groups
    divisors = [m for m in range(1, groups + 1) if groups % m == 0]
    return next((m for m in divisors if m * convolution.inputs >= channels and groups // m <= limit), groups)
