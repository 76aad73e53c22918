"""Pooling against torch: windows, ceil_mode, what an average counts, and the gradient at ties."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flaxzoo.layers import adaptive_avg_pool2d, avg_pool2d, flatten, global_avg_pool2d, max_pool2d
from flaxzoo.ops.pool import (
    _windows,
    first_maximum,
    native_max_pool,
    native_sum_pool,
    select_taps,
    separable_sum_pool,
    tap_max_pool,
)
from tests.compiling import jit
from tests.optional import F, torch


@st.composite
def windows(draw):
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = draw(st.tuples(st.integers(1, 15), st.integers(1, 15)))
    assume(all(n + 2 * p >= k for n, p, k in zip(size, padding, kernel, strict=True)))
    return (2, *size, 3), {
        'kernel_size': kernel,
        'stride': stride,
        'padding': padding,
        'ceil_mode': draw(st.booleans()),
    }


def assert_like_torch(ours, theirs, x):
    """Value and gradient of both, for a random cotangent."""
    inputs = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
    expected = theirs(inputs)
    cotangent = np.random.default_rng(2).normal(size=expected.shape)
    expected.backward(torch.tensor(cotangent))
    expected, expected_grad = (np.moveaxis(a.numpy(), 1, -1) for a in (expected.detach(), inputs.grad))
    with jax.enable_x64(True):

        @jit
        def both(x, cotangent):
            value, pull = jax.vjp(ours, x)
            return value, *pull(cotangent)

        value, grad = both(jnp.asarray(x), jnp.asarray(np.moveaxis(cotangent, 1, -1)))
    assert value.shape == expected.shape
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-12, atol=1e-13)


@settings(max_examples=20, deadline=None)
@given(windows())
def test_max_pool2d(case):
    shape, fields = case
    # ReLU leaves many equal zeros in a window: the gradient goes to the first of them.
    x = np.maximum(np.random.default_rng(0).normal(size=shape), 0)
    assert_like_torch(lambda a: max_pool2d(a, **fields), lambda a: F.max_pool2d(a, **fields), x)


@settings(max_examples=20, deadline=None)
@given(windows())
def test_the_lowerings_of_max_pool_are_equal(case):
    """What the CPU and GPUs compute, which the tests above compare with torch, and what TPUs do."""
    shape, fields = case
    with jax.enable_x64(True):
        x, tangent = jnp.asarray(np.random.default_rng(0).normal(size=(2, *shape)))
        x = jnp.maximum(x, 0)
        geometry = _windows(shape, *(fields[name] for name in ('kernel_size', 'stride', 'padding', 'ceil_mode')))

        @jit
        def both(x, tangent):
            y, dy = jax.jvp(lambda x: native_max_pool(x, geometry), (x,), (tangent,))
            first, tap = first_maximum(x, geometry)
            select = partial(select_taps, tap=tap, windows=geometry)
            selections = [jax.vjp(partial(select, hold=hold), tangent) for hold in (False, True)]
            ours = [tap_max_pool(x, geometry), first, *((selected, *pull(y)) for selected, pull in selections)]
            gradient = jax.vjp(lambda x: native_max_pool(x, geometry), x)[1](y)
            return jax.tree.leaves(ours), (y, y, *(dy, *gradient) * 2)

        ours, native = both(x, tangent)
        for a, b in zip(ours, native, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-14, atol=0)


def test_a_large_window_has_integers_enough():
    """Taps are counted in the smallest integers that do."""
    x = jnp.arange(400.0).reshape(1, 20, 20, 1)
    for kernel, dtype in ((11, 'int8'), (12, 'int16')):
        _, tap = first_maximum(x, _windows(x.shape, kernel, 1, 0, False))
        assert tap.dtype == dtype
        assert (tap == kernel * kernel - 1).all()


def test_the_taps_are_computed_once():
    """And kept in bytes."""
    gradient = jax.jit(jax.grad(lambda x: (max_pool2d(jnp.sin(x), 3, stride=2, padding=1) ** 2).sum()))
    program = gradient.lower(jax.ShapeDtypeStruct((2, 12, 13, 4), jnp.float32)).compile().as_text()
    assert len(re.findall(r's8\[2,6,7,4\]\S* divide\(', program)) == 1


@pytest.mark.parametrize(('function', 'count'), [(tap_max_pool, 1), (first_maximum, 2)])
def test_what_several_layers_read_is_kept(function, count):
    """The maximum, and for its gradient the taps."""
    x = jax.ShapeDtypeStruct((2, 9, 9, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda x: function(x, _windows(x.shape, 3, 2, 0, False)))(x)
    assert str(jaxpr).count('= kept ') == count


def test_a_max_pool_is_computed_with_what_it_reads():
    """Which a reduce_window would need in memory."""
    pool = jax.jit(lambda x, bias: max_pool2d(jnp.maximum(x + bias, 0), 3, stride=2))
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 13, 13, 4), (4,))]
    assert pool.lower(*shapes).compile().as_text().count(' fusion(') == 1


@pytest.mark.parametrize(('platform', 'scatters'), [('cuda', False), ('tpu', True)])
def test_the_gradient_of_a_max_pool_scatters_on_tpus_only(platform, scatters):
    gradient = jax.jit(jax.grad(lambda x: (max_pool2d(x, 3, stride=2, padding=1) ** 2).sum()))
    exported = jax.export.export(gradient, platforms=[platform])(jax.ShapeDtypeStruct((2, 12, 13, 4), jnp.bfloat16))
    assert ('select_and_scatter' in exported.mlir_module()) == scatters


@pytest.mark.parametrize(
    ('platform', 'kernel', 'stride', 'copies'),
    [('cuda', 3, 2, 2), ('cuda', 2, 2, 0), ('cuda', 3, 1, 0), ('cpu', 3, 2, 0)],
)
def test_gpus_hold_copies_where_strided_windows_overlap(platform, kernel, stride, copies):
    """Of the taps and the cotangent: the gradient then reads them without a question for each pixel."""
    gradient = jax.jit(jax.grad(lambda x: (max_pool2d(x, kernel, stride=stride) ** 2).sum()))
    exported = jax.export.export(gradient, platforms=[platform])(jax.ShapeDtypeStruct((2, 12, 13, 4), jnp.bfloat16))
    assert exported.mlir_module().count('= stablehlo.optimization_barrier ') == copies


@settings(max_examples=20, deadline=None)
@given(windows())
def test_the_lowerings_of_sums_are_equal(case):
    shape, fields = case
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=shape))
        geometry = _windows(shape, *(fields[name] for name in ('kernel_size', 'stride', 'padding', 'ceil_mode')))

        @jit
        def both(x):
            y, pull = jax.vjp(lambda x: native_sum_pool(x, geometry), x)
            ours, pull_ours = jax.vjp(lambda x: separable_sum_pool(x, geometry), x)
            return (ours, *pull_ours(y)), (y, *pull(y))

        ours, native = both(x)
        for a, b in zip(ours, native, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_max_pool2d_in_forward_mode_and_to_second_order():
    with jax.enable_x64(True):
        x = jnp.maximum(jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 7, 3))), 0)

        def ours(x):
            return (max_pool2d(x, 3, stride=2, padding=1) ** 3).sum()

        geometry = _windows(x.shape, 3, 2, 1, False)

        def native(x):
            return (native_max_pool(x, geometry) ** 3).sum()

        for transform in (jax.grad, lambda f: lambda x: jax.jvp(f, (x,), (jnp.sin(x),))[1], jax.hessian):
            np.testing.assert_allclose(jit(transform(ours))(x), jit(transform(native))(x), rtol=1e-12, atol=1e-13)


def test_the_gradient_of_a_max_pool_is_padded_once():
    """The taps and the cotangent: a pad for each of nine windows costs a branch a pixel each."""
    x = jax.ShapeDtypeStruct((2, 8, 9, 3), jnp.float32)
    geometry = _windows(x.shape, 3, 1, 1, False)
    y, tap = jax.eval_shape(partial(first_maximum, windows=geometry), x)

    def gradient(cotangent, tap):
        return jax.linear_transpose(lambda x: select_taps(x, tap, geometry, False), x)(cotangent)

    pads = [e for e in jax.make_jaxpr(gradient)(y, tap).eqns if e.primitive.name == 'pad']
    wider = [e for e in pads if max(max(low, high) for low, high, _ in e.params['padding_config']) > 0]
    assert len(wider) == 2


@settings(max_examples=20, deadline=None)
@given(windows(), st.booleans())
def test_avg_pool2d(case, count_include_pad):
    shape, fields = case
    fields['count_include_pad'] = count_include_pad
    x = np.random.default_rng(0).normal(size=shape)
    assert_like_torch(lambda a: avg_pool2d(a, **fields), lambda a: F.avg_pool2d(a, **fields), x)


@pytest.mark.parametrize('size', [(7, 7), (14, 7), (5, 9), (1, 3), (10, 4)])
@pytest.mark.parametrize('output_size', [1, 7, (6, 6), (3, 5)])
def test_adaptive_avg_pool2d(size, output_size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3))
    assert_like_torch(lambda a: adaptive_avg_pool2d(a, output_size), lambda a: F.adaptive_avg_pool2d(a, output_size), x)


def test_global_avg_pool2d():
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 3))
    np.testing.assert_allclose(global_avg_pool2d(jnp.asarray(x, jnp.float32)), x.mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_flatten_is_in_torchs_order():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4))
    assert_like_torch(lambda a: flatten(a), lambda a: torch.flatten(a, 1), x)


@pytest.mark.parametrize(('size', 'kernel', 'stride'), [((2, 2), 3, 2), ((1, 4), 2, 2), ((3, 2), 4, 3)])
def test_ceil_mode_takes_images_less_than_a_stride_too_small(size, kernel, stride):
    x = np.random.default_rng(0).normal(size=(2, *size, 3))
    fields = {'kernel_size': kernel, 'stride': stride, 'ceil_mode': True}
    assert_like_torch(lambda a: max_pool2d(a, **fields), lambda a: F.max_pool2d(a, **fields), x)
    assert_like_torch(lambda a: avg_pool2d(a, **fields), lambda a: F.avg_pool2d(a, **fields), x)


def test_squeezenets_sizes_at_224():
    """Where 'SAME' would give 55, 28, 14."""
    sizes = [109]
    for _ in range(3):
        x = jax.ShapeDtypeStruct((1, sizes[-1], sizes[-1], 1), jnp.float32)
        sizes.append(jax.eval_shape(lambda a: max_pool2d(a, 3, stride=2, ceil_mode=True), x).shape[1])
    assert sizes == [109, 54, 27, 13]


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_dtype_is_kept(dtype):
    x = jnp.ones((1, 9, 9, 2), dtype)
    outs = [max_pool2d(x, 3), avg_pool2d(x, 3, padding=1), adaptive_avg_pool2d(x, 4), global_avg_pool2d(x)]
    assert {out.dtype for out in outs} == {jnp.dtype(dtype)}


@pytest.mark.parametrize('pool', [max_pool2d, avg_pool2d])
def test_wrong_windows_are_named(pool):
    with pytest.raises(ValueError, match=r'shape \(1, 2, 2, 1\) is smaller than the pooling window \(3, 3\)'):
        pool(jnp.ones((1, 2, 2, 1)), 3)
    with pytest.raises(ValueError, match='padding 2 must be at most half of the kernel size 3'):
        pool(jnp.ones((1, 8, 8, 1)), 3, padding=2)
