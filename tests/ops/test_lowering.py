"""Where a lowering may not be used: symbolic shapes, explicit shardings, a jax without the names it needs."""

import importlib.util
import pathlib
import re
import subprocess
import sys
from functools import partial
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import flaxzoo
from flaxzoo.layers import BatchNorm, Conv2d, avg_pool2d, kept, kept_relu, max_pool2d
from flaxzoo.ops import _jax
from flaxzoo.ops.conv import conv2d, value_p
from flaxzoo.ops.native import Geometry
from flaxzoo.ops.norm import batch_moments

PADDED = Geometry(padding=(1, 1))

# Functions of an image (N, H, W, 8).
OPS = {
    'convolution': lambda x: conv2d(x, jnp.full((3, 3, 8, 8), 0.1) + x.mean((0, 1, 2)), PADDED),
    'strided convolution': lambda x: conv2d(x, jnp.full((3, 3, 8, 8), 0.1) + x.mean(), PADDED._replace(stride=(2, 2))),
    'pointwise convolution': lambda x: conv2d(x, jnp.full((1, 1, 8, 8), 0.1) + x.mean(), Geometry()),
    'grouped convolution': lambda x: conv2d(x, jnp.full((3, 3, 2, 8), 0.1) + x.mean(), PADDED._replace(groups=4)),
    'depthwise convolution': lambda x: conv2d(x, jnp.full((3, 3, 1, 8), 0.1) + x.mean(), PADDED._replace(groups=8)),
    'max pool': lambda x: max_pool2d(x, 3, 2, 1),
    'average pool': lambda x: avg_pool2d(x, 3, 2, 1),
    'average pool without padding in the mean': lambda x: avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    'batch moments': lambda x: (x - batch_moments(x, None)[0]) / jnp.sqrt(batch_moments(x, None)[1] + 1),
    'kept': lambda x: kept(x**2),
    'ReLU': lambda x: kept_relu(x - 0.2),
    'BatchNorm': lambda x: BatchNorm().init_with_output(jax.random.key(0), x, train=True)[0],
}


def value_and_gradient(op):
    return jax.value_and_grad(lambda x: (op(x) ** 2).sum())


def image(*shape) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('op', OPS)
def test_explicit_sharding(op):
    """Over the mesh that jax.make_mesh gives by default: the value and the gradients of one device."""
    x = image(4, 6, 6, 8)
    function = jax.jit(value_and_gradient(OPS[op]))
    mesh = jax.make_mesh((2,), ('data',), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        sharded = function(jax.device_put(x, NamedSharding(mesh, P('data'))))
    chex.assert_trees_all_close(jax.device_get(sharded), jax.device_get(function(x)), rtol=2e-5, atol=2e-5)


def test_explicit_sharding_of_variables_that_no_mesh_knows():
    """As a file's are."""
    layer = Conv2d(8, 3, padding=1)
    x = image(4, 6, 6, 8)
    variables = layer.init(jax.random.key(0), x)
    gradients = jax.jit(jax.grad(lambda variables, x: (layer.apply(variables, x) ** 2).sum()))
    mesh = jax.make_mesh((2,), ('data',), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        sharded = gradients(variables, jax.device_put(x, NamedSharding(mesh, P('data'))))
    chex.assert_trees_all_close(jax.device_get(sharded), jax.device_get(gradients(variables, x)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('symbols', ['b, 6, 6, 8', 'b, h, w, 8'])
@pytest.mark.parametrize('op', OPS)
def test_symbolic_shapes(op, symbols):
    """An exported op takes any height and width, and it and its gradient any batch, with the same numbers.

    XLA's own gradient of a strided convolution has no form for a symbolic size.
    """
    function = jax.jit(OPS[op] if 'h' in symbols else value_and_gradient(OPS[op]))
    shape = jax.ShapeDtypeStruct(export.symbolic_shape(symbols), jnp.float32)
    exported = export.export(function, platforms=['cpu'])(shape)
    for shape in ((3, 6, 6, 8), (2, 6, 6, 8) if 'h' not in symbols else (2, 9, 7, 8)):
        x = image(*shape)
        chex.assert_trees_all_close(exported.call(x), function(x), rtol=2e-5, atol=2e-5)


def test_ceil_mode_needs_a_known_size():
    shape = jax.ShapeDtypeStruct(export.symbolic_shape('b, h, w, 8'), jnp.float32)
    with pytest.raises(ValueError, match='ceil_mode=True needs an image of known size'):
        jax.eval_shape(partial(max_pool2d, kernel_size=3, stride=2, ceil_mode=True), shape)


def test_an_image_that_is_surely_too_small_is_refused():
    shape = jax.ShapeDtypeStruct((*export.symbolic_shape('b'), 2, 2, 3), jnp.float32)
    with pytest.raises(ValueError, match='smaller than the kernel'):
        jax.eval_shape(partial(Conv2d(8, 5).init_with_output, jax.random.key(0)), shape)


FAMILIES = {
    'alexnet': 224,
    'bn_inception': 224,
    'googlenet': 224,
    'inception_resnet_v2': 299,
    'inception_v1': 224,
    'inception_v3': 299,
    'inception_v4': 299,
    'resnet18': 64,
    'resnext29_32x4d': 32,
    'seresnet50': 64,
    'squeezenet1_1': 64,
    'vgg11_bn': 224,
    'xception': 299,
}


@pytest.mark.parametrize('name', FAMILIES)
def test_every_family_exports_with_a_symbolic_batch(name):
    model, size = flaxzoo.create(name, num_classes=4), FAMILIES[name]
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    batch = jax.ShapeDtypeStruct((*export.symbolic_shape('b'), size, size, 3), jnp.float32)
    exported = export.export(jax.jit(model.apply), platforms=['cpu'])(variables, batch)
    assert str(exported.out_avals[0].shape) == '(b, 4)'


def test_clear_caches_frees_what_ran_outside_of_jit():
    x, kernel = jnp.ones((1, 5, 5, 3)), jnp.ones((3, 3, 3, 2))
    conv2d(x, kernel, Geometry())
    compiled = value_p.impl.__closure__
    (jitted,) = [cell.cell_contents for cell in compiled if hasattr(cell.cell_contents, '_cache_size')]
    assert jitted._cache_size() > 0
    jax.clear_caches()
    assert jitted._cache_size() == 0


NAMES = {
    'Primitive': 'jax.extend.core',
    'defbilinear': 'jax.interpreters.ad',
    'primitive_transposes': 'jax.interpreters.ad',
    'primitive_batchers': 'jax.interpreters.batching',
    'lower_fun': 'jax.interpreters.mlir',
    'Jaxpr': 'jax.extend.core',
    'Tracer': 'jax.core',
    'backends_are_initialized': 'jax._src.xla_bridge',
}


@pytest.mark.parametrize('name', NAMES)
def test_a_jax_without_a_name(name):
    """There is one warning if convolutions are then XLA's, and none if another way does."""
    module = importlib.import_module(NAMES[name])
    spec = importlib.util.spec_from_file_location('flaxzoo.ops._jax_without', _jax.__file__)
    without = importlib.util.module_from_spec(spec)
    fewer = type(module)(module.__name__)
    fewer.__dict__.update({key: value for key, value in vars(module).items() if key != name})
    with mock.patch.dict(sys.modules, {module.__name__: fewer}):
        if name in ('Jaxpr', 'Tracer', 'backends_are_initialized'):
            spec.loader.exec_module(without)
        else:
            with pytest.warns(RuntimeWarning, match=f'lacks what flaxzoo makes primitives of .*{name}') as warned:
                spec.loader.exec_module(without)
            assert len(warned) == 1
            assert without.linear_primitive('kept', abs, cpu=abs).bind is abs
    traced = []
    jax.make_jaxpr(lambda x: traced.append(without.is_traced(x)))(1.0)
    assert traced == [True]
    assert not without.is_traced(jnp.ones(()))
    program = jax.make_jaxpr(jax.jit(jnp.sin))(1.0)
    assert isinstance(program.jaxpr.eqns[0].outvars[0], without.Var)
    assert [len(inner.eqns) for inner in without.inner_jaxprs(program.jaxpr)] == [1]


WITHOUT_PRIMITIVES = """
import jax.extend.core, jax.core, jax.numpy as jnp, numpy as np, warnings
from jax._src import xla_bridge
del jax.extend.core.Primitive, jax.extend.core.Jaxpr, jax.core.Tracer
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import flaxzoo
assert [w.category for w in caught if 'flaxzoo' in str(w.message)] == [RuntimeWarning], caught
x = np.linspace(-1, 1, 2 * 32 * 32 * 3, dtype='float32').reshape(2, 32, 32, 3)
model = flaxzoo.create('resnext29_32x4d', layers=(1, 1, 1), num_classes=4)
variables = flaxzoo.init(model, jax.random.key(0))
print(*np.ravel(jax.jit(model.apply)(variables, x)))
"""


def test_a_network_without_primitives_has_the_same_numbers():
    result = subprocess.run(
        [sys.executable, '-c', WITHOUT_PRIMITIVES],
        capture_output=True,
        text=True,
        env={'JAX_PLATFORMS': 'cpu'},
        cwd='.',
    )
    assert result.returncode == 0, result.stderr
    x = np.linspace(-1, 1, 2 * 32 * 32 * 3, dtype='float32').reshape(2, 32, 32, 3)
    model = flaxzoo.create('resnext29_32x4d', layers=(1, 1, 1), num_classes=4)
    ours = np.ravel(jax.jit(model.apply)(flaxzoo.init(model, jax.random.key(0)), x))
    chex.assert_trees_all_close(np.array(result.stdout.split(), np.float32), ours, rtol=1e-4, atol=1e-5)


def test_unstable_names_of_jax_are_in_one_file():
    root = pathlib.Path(flaxzoo.__file__).parent
    unstable = re.compile(r'jax\.(_src|core|extend|interpreters|experimental)\b')
    found = [path.relative_to(root).as_posix() for path in root.rglob('*.py') if unstable.search(path.read_text())]
    assert found == ['ops/_jax.py']
