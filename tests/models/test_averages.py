"""The average pools of Inception modules, which a class of convolutions computes and torch a module of its own."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

import flaxzoo

# How many modules of each width project averages; the width is the projection's, where the pool has the least to do.
PROJECTED = {
    'inception_v3': {32: 1, 64: 2, 192: 6},
    'inception_v4': {96: 4, 128: 7, 256: 3},
    'inception_resnet_v2': {64: 1},
    'bn_inception': {32: 1, 64: 1, 128: 5},
}


@pytest.mark.parametrize('name', PROJECTED)
def test_averages_are_taken_of_projections(name):
    model = flaxzoo.create(name)
    x = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    program = str(jax.make_jaxpr(model.apply)(variables, x))
    averages = r'f32\[1,\d+,\d+,(\d+)\] = reduce_window_sum\[[^\]]*window_dimensions=\(1, 3, 3, 1\)'
    widths = Counter(map(int, re.findall(averages, program)))
    del widths[1]  # how many pixels each window counts
    assert widths == PROJECTED[name]
