"""What a convolution is, as far as the choice of its lowering needs to know, and the tables that choose."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxzoo.ops.native import Geometry
from flaxzoo.ops.pairs import Pair


@dataclass(frozen=True)
class Convolution:
    """A convolution of an image (N, H, W, C) with a kernel (kh, kw, C // groups, O)."""

    image: tuple[int, int, int, int]
    kernel: tuple[int, int, int, int]
    dtype: jnp.dtype
    geometry: Geometry

    @classmethod
    def of(cls, x: jax.ShapeDtypeStruct, kernel: jax.ShapeDtypeStruct, geometry: Geometry) -> 'Convolution':
        """That of two arrays, or of what has their shapes and dtypes."""
        return cls(x.shape, kernel.shape, kernel.dtype, geometry)

    @property
    def taps(self) -> Pair:
        return self.kernel[:2]

    @property
    def inputs(self) -> int:
        """Channels of one group of the image."""
        return self.kernel[2]

    @property
    def outputs(self) -> int:
        return self.kernel[3]

    @property
    def sizes(self) -> Pair:
        """Height and width of the result."""
        axes = zip(self.image[1:3], self.taps, *self.geometry[:3], strict=True)
        return tuple((n + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for n, k, stride, pad, dilation in axes)

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole batch. Each gradient takes as many."""
        return self.image[0] * math.prod(self.sizes) * math.prod(self.kernel)

    @property
    def float32(self) -> bool:
        return self.dtype == jnp.float32

    @property
    def depthwise(self) -> bool:
        """Whether every channel is convolved by itself into one channel."""
        return self.inputs == 1 and self.outputs == self.geometry.groups > 1

    @property
    def grouped(self) -> bool:
        """Whether it has groups, but not as many as channels."""
        return self.geometry.groups > 1 and not self.depthwise

    @property
    def strided(self) -> bool:
        return self.geometry.stride != (1, 1)

    @property
    def pointwise(self) -> bool:
        """Whether it is a matrix product, perhaps of every second pixel."""
        return self.taps == (1, 1) and self.geometry.padding == (0, 0) and self.geometry.groups == 1


class Lowering(NamedTuple):
    """A row of a table: `compute` is how a platform computes the convolutions, or gradients, that `applies` is true of.

    `flipped`, in a table of convolutions, computes that with a gradient's kernel: flipped, and if dense (kh, kw, O, C).
    """

    applies: Callable[[Convolution], bool]
    compute: Callable[..., jax.Array]
    flipped: Callable[..., jax.Array] | None = None


def choose(table: Sequence[Lowering], convolution: Convolution) -> Lowering:
    """The first row of a table that applies."""
    return next(row for row in table if row.applies(convolution))


def always(convolution: Convolution) -> bool:
    return True
