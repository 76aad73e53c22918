"""Every lever of the tables can still be measured: both sides take the same arrays and give the same shapes."""

import chex
import jax
import pytest

from benchmarks.levers import CPU_LEVERS, GPU_LEVERS


@pytest.mark.parametrize('lever', CPU_LEVERS + GPU_LEVERS, ids=lambda lever: lever.name)
def test_both_sides_are_alike(lever):
    native, ours = (jax.eval_shape(f, *lever.arrays) for f in (lever.native, lever.flaxzoo))
    chex.assert_trees_all_equal_shapes_and_dtypes(native, ours)
