"""The input gradient of a strided convolution as convolutions of stride 1, one for each phase of the stride.

Pixels that are a stride apart meet the same taps of the kernel.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from flaxzoo.ops.kept import kept
from flaxzoo.ops.native import Geometry
from flaxzoo.ops.pairs import Pair


def phase_input_gradient(
    cotangent: jax.Array,
    kernel: jax.Array,
    *,
    aval: jax.ShapeDtypeStruct,
    geometry: Geometry,
    flipped_conv: Callable,
) -> jax.Array:
    """The input gradient of a dense or depthwise convolution, a strided axis of which is not dilated.

    `flipped_conv` convolves the cotangent with the flipped taps of a phase, given as (kh, kw, C, O).
    """
    down, right = geometry.stride
    rows = []
    for row in range(down):
        phases = [
            kept(_phase_gradient(cotangent, kernel, aval, geometry, (row, column), flipped_conv))
            for column in range(right)  # kept, or XLA would make one function of all, which LLVM takes long for
        ]
        rows.append(jnp.stack(phases, 3))
    x = jnp.stack(rows, 2)  # (N, rows, down, columns, right, C)
    x = x.reshape(len(x), x.shape[1] * down, x.shape[3] * right, -1)
    return x[:, : aval.shape[1], : aval.shape[2]]


def _phase_gradient(
    cotangent: jax.Array,
    kernel: jax.Array,
    aval: jax.ShapeDtypeStruct,
    geometry: Geometry,
    phase: Pair,
    flipped_conv: Callable,
) -> jax.Array:
    """The gradient of the pixels `phase + i * stride`: (N, ceil(H / stride), ceil(W / stride), C)."""
    axes = zip(phase, *geometry[:3], kernel.shape, aval.shape[1:3], cotangent.shape[1:3], strict=False)
    meeting, pads, counts = [], [], []
    for first, stride, padding, dilation, length, size, outputs in axes:
        begin, tap = divmod(first + padding, stride)  # these pixels meet the taps tap, tap + stride, ...
        count = len(range(tap, length, stride))
        reach, pixels = dilation * (count - 1), -(-size // stride)
        meeting.append(slice(tap, length, stride))
        pads.append((reach - begin, pixels + begin - outputs))
        counts.append(pixels)
    kernel = kernel[tuple(meeting)]
    if not kernel.size:
        return jnp.zeros((len(cotangent), *counts, aval.shape[3]), cotangent.dtype)
    geometry = Geometry(dilation=geometry.dilation, groups=geometry.groups)
    if all(low == high >= 0 for low, high in pads):
        geometry = geometry._replace(padding=tuple(low for low, _ in pads))
    else:
        cotangent = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), ((0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)))
    return flipped_conv(cotangent, kernel, geometry=geometry)
