"""Arrays that are computed once: the same bits, one computation on the CPU, nothing at all elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from flaxzoo.layers import kept
from flaxzoo.models.inception_resnet import Residual, block35
from flaxzoo.models.resnet import BasicBlock, Bottleneck
from flaxzoo.ops.cpu.products import product


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32', 'float64', 'int8', 'int16', 'int32'])
def test_every_bit_is_the_same(dtype):
    with jax.enable_x64(True):
        bits = np.random.default_rng(0).integers(0, 256, 8000, dtype=np.uint8)
        x = jnp.asarray(bits.view(jnp.dtype(dtype)))
        if jnp.issubdtype(dtype, jnp.floating):
            tiny = jnp.finfo(dtype).tiny
            x = jnp.where(jnp.abs(x) < tiny, tiny, x)  # XLA:CPU takes what is smaller than the smallest normal for 0
            x = jnp.concatenate([x, jnp.asarray([0, -0.0, jnp.inf, -jnp.inf, 1], dtype)])
        y = jax.jit(kept)(x)
    assert y.dtype == dtype
    nan = np.asarray(x != x)
    np.testing.assert_array_equal(np.asarray(y != y), nan)
    assert np.asarray(y)[~nan].tobytes() == np.asarray(x)[~nan].tobytes()


def maxima(keep) -> int:
    """How many maxima XLA:CPU computes for three residual blocks."""

    def blocks(x, kernel):
        for _ in range(3):
            x = keep(jnp.maximum(x + product(jnp.sin(x), kernel), 0))
        return x

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 8, 8, 16), (16, 16))]
    return jax.jit(blocks).lower(*shapes).compile().as_text().count(' maximum(')


def test_it_is_computed_once():
    assert maxima(lambda x: x) > 3
    assert maxima(kept) == 3


def test_reduce_precision_does_not_keep():
    """Else it should be used in place of `kept`, as the barrier once no older jaxlib is supported."""
    assert maxima(lambda x: jax.lax.reduce_precision(x, 8, 23)) > 3


@pytest.mark.skipif(jax.__version_info__ >= (0, 12), reason='the barrier of jaxlib 0.12 keeps')
def test_the_barrier_does_not_keep():
    assert maxima(jax.lax.optimization_barrier) > 3


def test_it_is_computed_once_in_a_training_step():
    """The backward pass reads what the forward pass has kept."""

    def loss(x):
        z = kept(jnp.sin(x) + x)
        return (z**2 * jnp.cos(z)).sum() + (z[::2] * 3).sum()

    program = jax.jit(jax.grad(loss)).lower(jnp.ones((64, 64))).compile().as_text()
    assert program.count(' divide(') == 1


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
def test_other_platforms_compute_nothing(platform):
    exported = jax.export.export(jax.jit(kept), platforms=[platform])(jax.ShapeDtypeStruct((8, 8), jnp.float32))
    assert 'stablehlo.' not in exported.mlir_module()


def cube(x):
    return kept(x**3)


TRANSFORMATIONS = {
    'gradient': lambda f: jax.vmap(jax.grad(f)),
    'forward mode': lambda f: lambda x: jax.jvp(f, (x,), (jnp.sin(x),))[1],
    'second order': lambda f: jax.vmap(jax.grad(jax.grad(f))),
    'transpose': lambda f: lambda x: jax.linear_transpose(lambda t: jax.jvp(f, (x,), (t,))[1], x)(x)[0],
    'vmap': lambda f: lambda x: jax.vmap(f)(x.reshape(2, -1)).ravel(),
    'remat': lambda f: jax.vmap(jax.grad(jax.checkpoint(f))),
}


@pytest.mark.parametrize('name', TRANSFORMATIONS)
def test_to_jax_it_is_the_identity(name):
    x = jnp.linspace(-2, 2, 8)
    transform = TRANSFORMATIONS[name]
    np.testing.assert_allclose(transform(cube)(x), transform(lambda x: x**3)(x), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(transform(cube))(x), transform(lambda x: x**3)(x), rtol=1e-6)


def test_over_several_devices():
    x = jnp.arange(8.0)
    for axis_type in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
        mesh = jax.make_mesh((2,), ('batch',), axis_types=(axis_type,), devices=jax.devices()[:2])
        with jax.set_mesh(mesh):
            spread = jax.device_put(x, jax.NamedSharding(mesh, P('batch')))
            np.testing.assert_allclose(jax.jit(jax.grad(lambda x: cube(x).sum()))(spread), 3 * x**2, rtol=1e-6)
            mapped = jax.shard_map(jax.vmap(jax.grad(cube)), in_specs=P('batch'), out_specs=P('batch'))
            np.testing.assert_allclose(jax.jit(mapped)(spread), 3 * x**2, rtol=1e-6)


@pytest.mark.parametrize(
    'block', [BasicBlock(8), Bottleneck(2), Residual(block35(32), scale=0.2)], ids=lambda block: type(block).__name__
)
@pytest.mark.parametrize('train', [False, True])
def test_residual_blocks_keep_their_sum(block, train):
    """Else the sums of a stage would all be computed from the branches of every block before them."""
    x = jax.ShapeDtypeStruct((2, 9, 8, 8), jnp.float32)
    variables = jax.eval_shape(block.init, jax.random.key(0), x)
    program = jax.make_jaxpr(lambda v, x: block.apply(v, x, train=train, mutable=['batch_stats']))(variables, x)
    assert str(program).count('= kept ') == 1
    assert 'name=_kept_relu' in str(program)  # whose gradient computes no sum anew
