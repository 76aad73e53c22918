"""Plain mode: programs of jax's own operations, the same numbers, and caches that neither mode spoils for the other."""

import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxzoo
from flaxzoo.ops._jax import inner_jaxprs
from tests.ops.test_lowering import FAMILIES

OURS = {'conv2d', 'differentiated_conv2d', 'conv2d_input_gradient', 'conv2d_kernel_gradient', 'kept', 'platform_index'}


def equations(jaxpr):
    yield from jaxpr.eqns
    for inner in inner_jaxprs(jaxpr):
        yield from equations(inner)


def programs(name):
    """The jaxprs of a family's evaluation and of the gradient of its training loss."""
    model, size = flaxzoo.create(name, num_classes=4), FAMILIES[name]
    x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    rest = {collection: values for collection, values in variables.items() if collection != 'params'}

    def loss(params, x):
        out, _ = model.apply(
            {'params': params, **rest_of(x)},
            x,
            train=True,
            mutable=['batch_stats'],
            rngs={'dropout': jax.random.key(0)},
        )
        return sum(head.sum() for head in jax.tree.leaves(out))

    def rest_of(x):
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rest)

    return jax.make_jaxpr(model.apply)(variables, x), jax.make_jaxpr(jax.grad(loss))(variables['params'], x)


@pytest.mark.parametrize('name', FAMILIES)
def test_a_plain_program_has_nothing_of_ours(name):
    with flaxzoo.plain():
        evaluation, gradient = (list(equations(program.jaxpr)) for program in programs(name))
    for found in (evaluation, gradient):
        assert OURS.isdisjoint(equation.primitive.name for equation in found)
        assert 'conv_general_dilated' in {equation.primitive.name for equation in found}
    custom = [e for e in (*evaluation, *gradient) if e.primitive.name == 'custom_jvp_call']
    assert {e.params['call_jaxpr'].jaxpr.debug_info.func_name for e in custom} <= {'relu', 'relu6', 'silu'}  # jax.nn's


def test_the_test_would_see_what_is_ours():
    found = [equation for program in programs('resnet18') for equation in equations(program.jaxpr)]
    names = {equation.primitive.name for equation in found}
    assert names >= {'conv2d', 'differentiated_conv2d', 'conv2d_kernel_gradient', 'kept'}
    custom = {e.params['call_jaxpr'].jaxpr.debug_info.func_name for e in found if e.primitive.name == 'custom_jvp_call'}
    assert '_kept_relu' in custom


@pytest.mark.parametrize('name', ['resnet18', 'resnext29_32x4d', 'squeezenet1_1'])
def test_the_numbers_are_the_same(name):
    model = flaxzoo.create(name, num_classes=4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, FAMILIES[name], FAMILIES[name], 3)), jnp.float32)
    variables = flaxzoo.init(model, jax.random.key(0))
    usual = jax.jit(model.apply)(variables, x)
    with flaxzoo.plain():
        chex.assert_trees_all_close(jax.jit(model.apply)(variables, x), usual, rtol=1e-4, atol=1e-5)


class TestCaches:
    """A function jitted in one mode and called in the other is traced anew, and once for each."""

    def traced(self):
        layer, seen = flaxzoo.layers.Conv2d(8, 3), []

        def apply(variables, x):
            seen.append(flaxzoo.ops.plain.is_plain())
            return layer.apply(variables, x)

        x = jnp.ones((1, 8, 8, 3))
        return jax.jit(apply), layer.init(jax.random.key(0), x), x, seen

    def test_of_jit(self):
        function, variables, x, seen = self.traced()
        for enabled in (False, True, False, True):
            with flaxzoo.plain(enabled):
                function(variables, x)
        assert seen == [False, True]

    def test_of_lowered_programs(self):
        function, variables, x, _ = self.traced()
        for enabled in (False, True, False):
            with flaxzoo.plain(enabled):
                names = {e.primitive.name for e in equations(function.trace(variables, x).jaxpr.jaxpr)}
                assert ('conv_general_dilated' in names, 'conv2d' in names) == (enabled, not enabled)

    def test_of_gradients_and_checkpoints(self):
        function, variables, x, _ = self.traced()
        gradient = jax.grad(jax.checkpoint(lambda variables, x: function(variables, x).sum()))
        for enabled in (False, True, False):
            with flaxzoo.plain(enabled):
                names = {e.primitive.name for e in equations(jax.make_jaxpr(gradient)(variables, x).jaxpr)}
                assert bool(OURS & names) != enabled

    def test_a_vjp_of_the_other_mode_still_runs(self):
        function, variables, x, _ = self.traced()
        with flaxzoo.plain():
            y, plain = jax.vjp(function, variables, x)
        _, usual = jax.vjp(function, variables, x)
        with flaxzoo.plain():
            chex.assert_trees_all_close(usual(y), plain(y), rtol=1e-5)
        chex.assert_trees_all_close(plain(y), usual(y), rtol=1e-5)


@pytest.mark.parametrize(('value', 'plain'), [('1', True), ('0', False), ('', False)])
def test_the_environment_asks_for_it(value, plain):
    code = 'import flaxzoo.ops.plain as p; print(p.is_plain())'
    env = os.environ | {'FLAXZOO_PLAIN': value}
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env, check=True)
    assert result.stdout.strip() == str(plain)
