"""Each lowering that flaxzoo replaces on this platform, against XLA's own.

They are what `ops/cpu/conv.py`, `ops/gpu/conv.py` and `ops/pool.py` choose from, `ops/kept.py`, and the
`average` of a convolution.

    python -m benchmarks.levers
    python -m benchmarks.levers 'max pool*'

Milliseconds, medians with the range of interleaved runs: float32 and batch 8 on the CPU, bfloat16 and batch 256 on a
GPU. The last columns are seconds of the processor, not of the clock, that XLA took to compile them. Grouped
convolutions are in `benchmarks.grouped_conv`.
"""

import argparse
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

import flaxzoo
from benchmarks.timing import compiled, interleave, table
from flaxzoo.layers import BatchNorm, kept
from flaxzoo.ops.cpu.conv import (
    by_phases,
    plain_winograd_gradient,
    pointwise_conv,
    tap_kernel_gradient,
    unrolled_conv,
    winograd_column_conv,
    winograd_row_conv,
)
from flaxzoo.ops.cpu.dense import column_conv, paired_conv, row_conv, wide_conv
from flaxzoo.ops.cpu.groups import depthwise_conv, depthwise_kernel_gradient
from flaxzoo.ops.cpu.products import product
from flaxzoo.ops.gpu.conv import pointwise_input_gradient, thin_conv
from flaxzoo.ops.native import (
    Geometry,
    kernel_gradient_of,
    native_conv,
    native_input_gradient,
    native_kernel_gradient,
)
from flaxzoo.ops.pool import Windows, avg_pool2d, max_pool, native_max_pool, native_sum_pool, separable_sum_pool

Array = jax.ShapeDtypeStruct


class Lever(NamedTuple):
    """Two functions of the same arrays that give the same result."""

    name: str
    native: Callable
    flaxzoo: Callable
    arrays: tuple[Array, ...]


def cpu(*image: int) -> Array:
    """The images that are measured on the CPU."""
    return Array((8, *image), 'float32')


def gpu(*image: int) -> Array:
    """The images that are measured on a GPU."""
    return Array((256, *image), 'bfloat16')


def forward(name: str, lowering: Callable, x: Array, kernel: tuple, **fields) -> Lever:
    geometry = Geometry(**fields)
    functions = [partial(f, geometry=geometry) for f in (native_conv, lowering)]
    return Lever(name, *functions, (x, Array(kernel, x.dtype)))


def matrix_product(name: str, x: Array, matrix: tuple) -> Lever:
    return Lever(name, jnp.matmul, product, (x, Array(matrix, x.dtype)))


def gradient(name: str, native: Callable, ours: Callable, x: Array, kernel: tuple, **fields) -> Lever:
    """The gradient of a convolution, as autodiff gives it and by `ours`."""
    geometry, kernel = Geometry(**fields), Array(kernel, x.dtype)
    y = jax.eval_shape(partial(native_conv, geometry=geometry), x, kernel)
    aval, arrays = (kernel, (x, y)) if native is native_kernel_gradient else (x, (y, kernel))
    return Lever(name, *(partial(f, aval=aval, geometry=geometry) for f in (native, ours)), arrays)


tap_gradient = partial(gradient, native=native_kernel_gradient, ours=tap_kernel_gradient)
input_gradient = partial(gradient, native=native_input_gradient, ours=by_phases)
pointwise_gradient = partial(gradient, native=native_input_gradient, ours=pointwise_input_gradient)
winograd_gradient = partial(gradient, native=native_kernel_gradient, ours=plain_winograd_gradient)
depthwise_gradient = partial(gradient, native=native_kernel_gradient, ours=depthwise_kernel_gradient)
row_gradient, column_gradient, thin_gradient = (
    partial(gradient, native=native_kernel_gradient, ours=partial(kernel_gradient_of, lowering))
    for lowering in (row_conv, column_conv, thin_conv)
)


def batch_norm_gradients(name: str, x: Array) -> Lever:
    """A batch norm with a ReLU and their gradients: by the array x - mean, and BatchNorm."""

    def plain(x):
        centred = x - x.mean((0, 1, 2))
        return centred * jax.lax.rsqrt(jnp.square(centred).mean((0, 1, 2)) + 1e-5)

    def ours(x):
        layer = BatchNorm(affine=False)
        stats = {'mean': jnp.zeros(x.shape[-1]), 'var': jnp.ones(x.shape[-1])}
        return layer.apply({'batch_stats': stats}, x, train=True, mutable=['batch_stats'])[0]

    def with_gradients(norm, x, cotangent):
        y, pull = jax.vjp(lambda x: jax.nn.relu(norm(x)), x)
        return y, pull(cotangent)

    return Lever(name, *(partial(with_gradients, f) for f in (plain, ours)), (x, x))


def average_pool(name: str, x: Array, windows: Windows) -> Lever:
    """The sum, without the division."""
    return Lever(name, *(partial(pool, windows=windows) for pool in (native_sum_pool, separable_sum_pool)), (x,))


def average_before(name: str, x: Array, outputs: int) -> Lever:
    """An average pool and the 1x1 convolution that reads it, and the convolution before the pool."""
    average = partial(avg_pool2d, kernel_size=3, stride=1, padding=1)
    before, after = lambda x, matrix: product(average(x), matrix), lambda x, matrix: average(product(x, matrix))
    return Lever(name, before, after, (x, Array((x.shape[-1], outputs), x.dtype)))


def relu_max_pool(name: str, x: Array, windows: Windows) -> Lever:
    def relu_and(pool, x):
        return pool(jax.nn.relu(x), windows)

    return Lever(name, *(partial(relu_and, pool) for pool in (native_max_pool, max_pool)), (x,))


def residual_blocks(name: str, x: Array, blocks: int) -> Lever:
    """Blocks of a product, a sum and a ReLU, computed as XLA likes and with each result kept."""

    def stage(keep, x, matrix):
        for _ in range(blocks):
            x = keep(jax.nn.relu(x + product(x, matrix)))
        return x

    matrix = Array((x.shape[-1], x.shape[-1]), x.dtype)
    return Lever(name, *(partial(stage, keep) for keep in (lambda x: x, kept)), (x, matrix))


def max_pool_gradient(name: str, x: Array, windows: Windows) -> Lever:
    def gradient(pool, x):
        y, pull = jax.vjp(partial(pool, windows=windows), x)
        return pull(y)[0]

    return Lever(name, partial(gradient, native_max_pool), partial(gradient, max_pool), (x,))


STEM_POOL = Windows((3, 3), (2, 2), ((1, 1), (1, 1)))
SAME_POOL = Windows((3, 3), (1, 1), ((1, 1), (1, 1)))
VGG_POOL = Windows((2, 2), (2, 2), ((0, 0), (0, 0)))
SAME = {'padding': (1, 1)}
STEM = {'stride': (2, 2), 'padding': (3, 3)}

CPU_LEVERS = (
    forward('1x1 as product, 64 -> 256 @56', pointwise_conv, cpu(56, 56, 64), (1, 1, 64, 256)),
    forward('1x1 as product, 256 -> 64 @56', pointwise_conv, cpu(56, 56, 256), (1, 1, 256, 64)),
    matrix_product('product, 64 -> 256 @56', cpu(56, 56, 64), (64, 256)),
    matrix_product('product, 288 -> 64 @35', cpu(35, 35, 288), (288, 64)),
    matrix_product('product, 1024 -> 256 @14', cpu(14, 14, 1024), (1024, 256)),
    forward('winograd, 64 -> 64 @56', unrolled_conv, cpu(56, 56, 64), (3, 3, 64, 64), **SAME),
    forward('winograd, 128 -> 128 @28', unrolled_conv, cpu(28, 28, 128), (3, 3, 128, 128), **SAME),
    forward('winograd, 512 -> 512 @7', unrolled_conv, cpu(7, 7, 512), (3, 3, 512, 512), **SAME),
    forward('wide, 3x3 32 -> 32 @149', wide_conv, cpu(149, 149, 32), (3, 3, 32, 32)),
    forward('winograd, 1x3 384 -> 384 @8', unrolled_conv, cpu(8, 8, 384), (1, 3, 384, 384), padding=(0, 1)),
    forward('wide, 5x5 64 -> 192 @27', wide_conv, cpu(27, 27, 64), (5, 5, 64, 192), padding=(2, 2)),
    forward('winograd, 1x7 192 -> 192 @17', winograd_row_conv, cpu(17, 17, 192), (1, 7, 192, 192), padding=(0, 3)),
    forward('winograd, 7x1 192 -> 192 @17', winograd_column_conv, cpu(17, 17, 192), (7, 1, 192, 192), padding=(3, 0)),
    forward('rows, 3x3 s2 128 -> 128 @56', row_conv, cpu(56, 56, 128), (3, 3, 128, 128), stride=(2, 2), **SAME),
    forward('rows, 3x3 s2 288 -> 384 @35', row_conv, cpu(35, 35, 288), (3, 3, 288, 384), stride=(2, 2)),
    forward('rows, 3x3 s2 64 -> 96 @147', row_conv, cpu(147, 147, 64), (3, 3, 64, 96), stride=(2, 2)),
    forward('rows, 7x7 s2 3 -> 64 @224', row_conv, cpu(224, 224, 3), (7, 7, 3, 64), **STEM),
    forward('rows, 3x3 s2 3 -> 32 @299', row_conv, cpu(299, 299, 3), (3, 3, 3, 32), stride=(2, 2)),
    tap_gradient('1x1 kernel gradient, 64 -> 256 @56', x=cpu(56, 56, 64), kernel=(1, 1, 64, 256)),
    tap_gradient('1x1 kernel gradient, 1024 -> 256 @14', x=cpu(14, 14, 1024), kernel=(1, 1, 1024, 256)),
    tap_gradient('3x3 s2 kernel gradient, 256 @28', x=cpu(28, 28, 256), kernel=(3, 3, 256, 256), stride=(2, 2), **SAME),
    tap_gradient('3x3 s2 kernel gradient, 64 -> 96 @147', x=cpu(147, 147, 64), kernel=(3, 3, 64, 96), stride=(2, 2)),
    column_gradient(
        'columns, 7x1 kernel gradient, 192 @17', x=cpu(17, 17, 192), kernel=(7, 1, 192, 192), padding=(3, 0)
    ),
    row_gradient('rows, 1x7 kernel gradient, 192 @17', x=cpu(17, 17, 192), kernel=(1, 7, 192, 192), padding=(0, 3)),
    row_gradient('rows, 7x7 s2 kernel gradient, 3 -> 64 @224', x=cpu(224, 224, 3), kernel=(7, 7, 3, 64), **STEM),
    row_gradient('rows, 3x3 kernel gradient, 3 -> 64 @224', x=cpu(224, 224, 3), kernel=(3, 3, 3, 64), **SAME),
    forward('columns in pairs, 8 -> 8 @56', paired_conv, cpu(56, 56, 8), (3, 3, 8, 8), **SAME),
    forward('columns in pairs, s2 8 -> 8 @56', paired_conv, cpu(56, 56, 8), (3, 3, 8, 8), stride=(2, 2), **SAME),
    winograd_gradient('winograd kernel gradient, 32 -> 64 @147', x=cpu(147, 147, 32), kernel=(3, 3, 32, 64), **SAME),
    winograd_gradient('winograd kernel gradient, 128 @28', x=cpu(28, 28, 128), kernel=(3, 3, 128, 128), **SAME),
    winograd_gradient('winograd kernel gradient, 512 @7', x=cpu(7, 7, 512), kernel=(3, 3, 512, 512), **SAME),
    input_gradient('winograd input gradient, 128 @28', x=cpu(28, 28, 128), kernel=(3, 3, 128, 128), **SAME),
    input_gradient('winograd input gradient, 512 @7', x=cpu(7, 7, 512), kernel=(3, 3, 512, 512), **SAME),
    batch_norm_gradients('batch norm and ReLU with gradients, 256 @56', cpu(56, 56, 256)),
    batch_norm_gradients('batch norm and ReLU with gradients, 1024 @14', cpu(14, 14, 1024)),
    forward('depthwise, 128 @56', depthwise_conv, cpu(56, 56, 128), (3, 3, 1, 128), groups=128, **SAME),
    depthwise_gradient(
        'depthwise kernel gradient, 128 @56', x=cpu(56, 56, 128), kernel=(3, 3, 1, 128), groups=128, **SAME
    ),
    input_gradient('depthwise input gradient, 128 @56', x=cpu(56, 56, 128), kernel=(3, 3, 1, 128), groups=128, **SAME),
    average_pool('average pool 3x3 s1, 192 @35', cpu(35, 35, 192), SAME_POOL),
    average_before('average pool 3x3 s1 and 1x1, 768 -> 192 @17', cpu(17, 17, 768), 192),
    relu_max_pool('ReLU and max pool 3x3 s1, 192 @35', cpu(35, 35, 192), SAME_POOL),
    relu_max_pool('ReLU and max pool 3x3 s2, 64 @112', cpu(112, 112, 64), STEM_POOL),
    relu_max_pool('ReLU and max pool 2x2 s2, 64 @224', cpu(224, 224, 64), VGG_POOL),
    max_pool_gradient('max pool 3x3 s2 gradient, 64 @112', cpu(112, 112, 64), STEM_POOL),
    max_pool_gradient('max pool 2x2 s2 gradient, 64 @224', cpu(224, 224, 64), VGG_POOL),
    max_pool_gradient('max pool 3x3 s1 gradient, 192 @28', cpu(28, 28, 192), SAME_POOL),
    residual_blocks('kept, 4 residual blocks, 256 @56', cpu(56, 56, 256), 4),
    residual_blocks('kept, 6 residual blocks, 512 @14', cpu(14, 14, 512), 6),
)

GPU_LEVERS = (
    forward('blocks, 7x7 s2 3 -> 64 @224', thin_conv, gpu(224, 224, 3), (7, 7, 3, 64), **STEM),
    forward('blocks, 3x3 s2 3 -> 32 @299', thin_conv, gpu(299, 299, 3), (3, 3, 3, 32), stride=(2, 2)),
    forward('8 channels, 3x3 3 -> 64 @224', thin_conv, gpu(224, 224, 3), (3, 3, 3, 64), **SAME),
    thin_gradient('blocks, 7x7 s2 kernel gradient @224', x=gpu(224, 224, 3), kernel=(7, 7, 3, 64), **STEM),
    thin_gradient('blocks, 3x3 s2 kernel gradient @299', x=gpu(299, 299, 3), kernel=(3, 3, 3, 32), stride=(2, 2)),
    thin_gradient('8 channels, 3x3 kernel gradient @224', x=gpu(224, 224, 3), kernel=(3, 3, 3, 64), **SAME),
    pointwise_gradient('1x1 input gradient, 64 -> 256 @56', x=gpu(56, 56, 64), kernel=(1, 1, 64, 256)),
    pointwise_gradient('1x1 input gradient, 1024 -> 256 @14', x=gpu(14, 14, 1024), kernel=(1, 1, 1024, 256)),
    pointwise_gradient('1x1 input gradient, 512 -> 2048 @7', x=gpu(7, 7, 512), kernel=(1, 1, 512, 2048)),
    max_pool_gradient('max pool 3x3 s2 gradient, 64 @112', gpu(112, 112, 64), STEM_POOL),
    max_pool_gradient('max pool 2x2 s2 gradient, 64 @224', gpu(224, 224, 64), VGG_POOL),
    max_pool_gradient('max pool 3x3 s1 gradient, 192 @28', gpu(28, 28, 192), SAME_POOL),
)


HEADER = ['lowering', 'native', 'flaxzoo', 'native / flaxzoo', 'native compiled, s', 'flaxzoo compiled, s']


def measure(lever: Lever, runs: int) -> list:
    arrays = [jax.random.normal(jax.random.key(i), a.shape, a.dtype) for i, a in enumerate(lever.arrays)]
    (native, native_s), (ours, ours_s) = (compiled(f, *arrays) for f in (lever.native, lever.flaxzoo))
    times = interleave({'native': lambda: native(*arrays), 'flaxzoo': lambda: ours(*arrays)}, runs)
    ratio = times['native'].median / times['flaxzoo'].median
    return [lever.name, *times.values(), f'{ratio:.1f}', f'{native_s:.2f}', f'{ours_s:.2f}']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pattern', nargs='?', default='*')
    parser.add_argument('--runs', type=int, default=7)
    args = parser.parse_args()
    flaxzoo.keep_memory()
    levers = {'cpu': CPU_LEVERS, 'gpu': GPU_LEVERS}[jax.default_backend()]
    batch, *_ = levers[0].arrays[0].shape
    rows = [measure(lever, args.runs) for lever in levers if fnmatch(lever.name, args.pattern)]
    print(f'{jax.devices()[0].device_kind}, batch {batch}, {levers[0].arrays[0].dtype}, ms')
    print(table(HEADER, rows))


if __name__ == '__main__':
    main()
