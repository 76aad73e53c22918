"""The convolution as a primitive: jax's transformations, sharding, and what each platform computes."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from flaxzoo.layers import Conv2d
from flaxzoo.ops.conv import conv2d
from flaxzoo.ops.native import Geometry, native_conv
from tests.compiling import jit
from tests.ops.convolutions import arrays, assert_equal

pytestmark = pytest.mark.usefixtures('x64')


CASES = {
    'dense': ((2, 9, 8, 3), (3, 3, 3, 5), Geometry(padding=(1, 1))),
    'strided': ((2, 9, 8, 3), (3, 3, 3, 5), Geometry(stride=(2, 2), padding=(1, 1))),
    'pointwise': ((2, 9, 8, 3), (1, 1, 3, 5), Geometry(stride=(2, 2))),
    'grouped': ((2, 9, 8, 8), (3, 3, 2, 12), Geometry((2, 1), (1, 1), (1, 2), 4)),
    'depthwise': ((2, 9, 8, 8), (3, 3, 1, 8), Geometry((2, 2), (1, 1), (1, 1), 8)),
}


def _gradients(conv):
    return jax.grad(lambda x, kernel: (conv(x, kernel) ** 3).sum(), (0, 1))


def _over_two_devices(function, in_specs, out_specs):
    mesh = jax.make_mesh((2,), ('batch',), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs))


TRANSFORMATIONS = {
    'forward mode': lambda conv, x, k: jax.jvp(conv, (x, k), (jnp.sin(x), jnp.sin(k))),
    'forward over reverse': lambda conv, x, k: jax.jvp(_gradients(conv), (x, k), (jnp.sin(x), jnp.sin(k))),
    'reverse over reverse': lambda conv, x, k: _gradients(
        lambda x, k: jnp.hstack([g.ravel() for g in _gradients(conv)(x, k)])
    )(x, k),
    'gradients of each image': lambda conv, x, k: jax.vmap(_gradients(conv), (0, None))(x[:, None], k),
    'several kernels': lambda conv, x, k: _gradients(jax.vmap(conv, (None, 0)))(x, jnp.stack([k, 2 * k])),
    'remat': lambda conv, x, k: _gradients(jax.checkpoint(conv))(x, k),
    'shard_map, gradient of the kernel': lambda conv, x, k: _over_two_devices(
        lambda x, k: _gradients(conv)(x, k)[1], (P('batch'), P()), P()
    )(x, k),
    'shard_map, gradient of the image': lambda conv, x, k: _over_two_devices(
        lambda x, k: _gradients(conv)(x, k)[0], (P('batch'), P()), P('batch')
    )(x, k),
}


@pytest.mark.parametrize('transformation', TRANSFORMATIONS)
@pytest.mark.parametrize('case', CASES)
def test_every_transformation_of_jax(measured, case, transformation):
    x_shape, kernel_shape, geometry = CASES[case]
    x, kernel = arrays(x_shape, kernel_shape)
    transform = TRANSFORMATIONS[transformation]
    ours, theirs = partial(conv2d, geometry=geometry), partial(native_conv, geometry=geometry)
    assert_equal(*(jit(partial(transform, conv))(x, kernel) for conv in (ours, theirs)))


@pytest.mark.parametrize('case', CASES)
def test_explicit_sharding(case):
    x_shape, kernel_shape, geometry = CASES[case]
    x, kernel = arrays(x_shape, kernel_shape)
    mesh = jax.make_mesh((2,), ('batch',), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        x, kernel = jax.reshard(x, P('batch')), jax.reshard(kernel, P())
        convs = (partial(conv, geometry=geometry) for conv in (conv2d, native_conv))
        assert_equal(*(jit(_gradients(conv))(x, kernel) for conv in convs))


@pytest.mark.parametrize(
    ('fields', 'plain'),
    [
        ({'groups': 4}, 'feature_group_count = 4'),
        ({'groups': 8}, 'feature_group_count = 8'),
        ({'kernel_size': 1, 'padding': 0}, '[b, 0, 1, f]'),
    ],
)
def test_gpus_and_tpus_keep_the_native_convolution(measured, fields, plain):
    """The slow lowering is replaced on the CPU, and only there: other platforms see one plain convolution."""
    layer = Conv2d(8, **{'kernel_size': 3, 'padding': 1, **fields})
    x = jnp.zeros((1, 8, 8, 8), jnp.float32)
    variables = layer.init(jax.random.key(0), x)
    exported = {
        platform: jax.export.export(jax.jit(layer.apply), platforms=[platform])(variables, x).mlir_module()
        for platform in ('cpu', 'cuda', 'tpu')
    }
    assert plain not in exported['cpu']
    for platform in ('cuda', 'tpu'):
        assert exported[platform].count('stablehlo.convolution') == 1
        assert plain in exported[platform]


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_the_precision_asked_for_reaches_the_convolution_and_its_gradients_on_gpus(dtype):
    """Which GPUs otherwise compute in TF32."""
    gradients = jax.jit(jax.grad(lambda x, kernel: conv2d(x, kernel, Geometry((2, 2))).sum(), (0, 1)))
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((1, 9, 9, 3), (3, 3, 3, 8))]
    with jax.default_matmul_precision('highest'):
        program = jax.export.export(gradients, platforms=['cuda'])(*shapes).mlir_module()
    assert program.count('.convolution(') == 2
    assert program.count('HIGHEST') == 4  # both factors of each
