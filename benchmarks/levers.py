"""Each lowering that flaxzoo replaces on the CPU, against XLA's own: what `layers/conv_lowering.py` chooses from.

    python -m benchmarks.levers
    python -m benchmarks.levers 'max pool*'

Milliseconds, float32, batch 8, medians with the range of interleaved runs. Where the choice depends on the shape, a
shape at which XLA's lowering is kept is measured too. Grouped convolutions are in `benchmarks.grouped_conv`.
"""

import argparse
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import interleave, table
from flaxzoo.layers.conv_lowering import (
    Geometry,
    depthwise_conv,
    native_conv,
    pointwise_conv,
    tap_kernel_gradient,
)
from flaxzoo.layers.pool import Windows, native_max_pool, native_sum_pool, select_first_maximum, separable

BATCH = 8


class Lever(NamedTuple):
    """Two functions of the same arrays that give the same result."""

    name: str
    native: Callable
    flaxzoo: Callable
    shapes: tuple[tuple[int, ...], ...]


def forward(name: str, lowering: Callable, x: tuple, kernel: tuple, **fields) -> Lever:
    geometry = Geometry(**fields)
    functions = [partial(f, geometry=geometry) for f in (native_conv, lowering)]
    return Lever(name, *functions, ((BATCH, *x), kernel))


def kernel_gradient(name: str, x: tuple, kernel: tuple, **fields) -> Lever:
    """The gradient as autodiff gives it, against a matrix product a tap."""
    geometry = Geometry(**fields)
    x, like = (BATCH, *x), jax.core.ShapedArray(kernel, np.dtype('float32'))
    y = jax.eval_shape(partial(native_conv, geometry=geometry), jax.ShapeDtypeStruct(x, 'float32'), like)

    def native(x, cotangent):
        return jax.linear_transpose(lambda kernel: native_conv(x, kernel, geometry=geometry), like)(cotangent)[0]

    return Lever(name, native, partial(tap_kernel_gradient, like=like, geometry=geometry), (x, y.shape))


def depthwise_gradients(name: str, x: tuple, kernel: tuple, **fields) -> Lever:
    def gradients(conv, x, kernel):
        y, pull = jax.vjp(partial(conv, geometry=Geometry(**fields)), x, kernel)
        return pull(y)

    return Lever(name, partial(gradients, native_conv), partial(gradients, depthwise_conv), ((BATCH, *x), kernel))


def pool(name: str, native: Callable, x: tuple, windows: Windows) -> Lever:
    return Lever(name, partial(native, windows=windows), partial(separable, native, windows=windows), ((BATCH, *x),))


def max_pool_gradient(name: str, x: tuple, windows: Windows) -> Lever:
    def native(x):
        y, pull = jax.vjp(partial(native_max_pool, windows=windows), x)
        return pull(y)[0]

    def ours(x):
        y = native_max_pool(x, windows)
        return jax.linear_transpose(lambda t: select_first_maximum(t, x, y, windows), x)(y)[0]

    return Lever(name, native, ours, ((BATCH, *x),))


STEM_POOL = Windows((3, 3), (2, 2), ((1, 1), (1, 1)))
SAME_POOL = Windows((3, 3), (1, 1), ((1, 1), (1, 1)))
VGG_POOL = Windows((2, 2), (2, 2), ((0, 0), (0, 0)))
SAME = {'padding': (1, 1)}

LEVERS = (
    forward('1x1 as product, 64 -> 256 @56', pointwise_conv, (56, 56, 64), (1, 1, 64, 256)),
    forward('1x1 as product, 256 -> 64 @56', pointwise_conv, (56, 56, 256), (1, 1, 256, 64)),
    kernel_gradient('1x1 kernel gradient, 64 -> 256 @56', (56, 56, 64), (1, 1, 64, 256)),
    kernel_gradient('1x1 kernel gradient, 1024 -> 256 @14', (14, 14, 1024), (1, 1, 1024, 256)),
    kernel_gradient('3x3 kernel gradient, 64 -> 64 @112', (112, 112, 64), (3, 3, 64, 64), **SAME),
    kernel_gradient('3x3 kernel gradient, 256 -> 256 @56', (56, 56, 256), (3, 3, 256, 256), **SAME),
    kernel_gradient('3x3 kernel gradient, 128 -> 128 @28', (28, 28, 128), (3, 3, 128, 128), **SAME),
    kernel_gradient('3x3 kernel gradient, 256 -> 256 @14 (kept)', (14, 14, 256), (3, 3, 256, 256), **SAME),
    kernel_gradient('3x3 s2 kernel gradient, 512 -> 512 @14', (14, 14, 512), (3, 3, 512, 512), stride=(2, 2), **SAME),
    kernel_gradient('7x7 s2 kernel gradient, 3 -> 64 @224 (kept)', (224, 224, 3), (7, 7, 3, 64), stride=(2, 2)),
    forward('depthwise, 128 @56', depthwise_conv, (56, 56, 128), (3, 3, 1, 128), groups=128, **SAME),
    depthwise_gradients('depthwise gradients, 128 @56', (56, 56, 128), (3, 3, 1, 128), groups=128, **SAME),
    pool('average pool 3x3 s1, 192 @35', native_sum_pool, (35, 35, 192), SAME_POOL),
    pool('max pool 3x3 s1, 192 @35', native_max_pool, (35, 35, 192), SAME_POOL),
    pool('max pool 3x3 s2, 64 @112', native_max_pool, (112, 112, 64), STEM_POOL),
    max_pool_gradient('max pool 3x3 s2 gradient, 64 @112', (112, 112, 64), STEM_POOL),
    max_pool_gradient('max pool 2x2 s2 gradient, 64 @224', (224, 224, 64), VGG_POOL),
)


def measure(lever: Lever, runs: int) -> list:
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in lever.shapes]
    native, ours = jax.jit(lever.native), jax.jit(lever.flaxzoo)
    times = interleave({'native': lambda: native(*arrays), 'flaxzoo': lambda: ours(*arrays)}, runs)
    return [lever.name, *times.values(), f'{times["native"].median / times["flaxzoo"].median:.1f}']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pattern', nargs='?', default='*')
    parser.add_argument('--runs', type=int, default=7)
    args = parser.parse_args()
    rows = [measure(lever, args.runs) for lever in LEVERS if fnmatch(lever.name, args.pattern)]
    print(f'{jax.devices()[0].device_kind}, batch {BATCH}, float32, ms')
    print(table(['lowering', 'native', 'flaxzoo', 'native / flaxzoo'], rows))


if __name__ == '__main__':
    main()
