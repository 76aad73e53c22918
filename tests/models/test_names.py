"""Every registered network has exactly the torch network's keys, shapes and number of parameters."""

import csv
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

import flaxzoo
import reference
from flaxzoo.weights.convert import is_buffer, torch_names, torch_shape
from tests.models.cases import shapes

with (Path(__file__).parent / 'parameter_counts.csv').open() as file:
    COUNTS = {row['model']: int(row['parameters']) for row in csv.DictReader(file)}


def test_every_model_has_a_published_count():
    assert sorted(COUNTS) == sorted(flaxzoo.list_models())


@pytest.mark.parametrize('name', flaxzoo.list_models())
def test_parameter_count(name):
    params = shapes(name)['params']
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == COUNTS[name]


@pytest.mark.parametrize('name', flaxzoo.list_models())
def test_keys_and_shapes_are_torchs(name):
    with torch.device('meta'):
        state_dict = reference.build(name).state_dict()
    model = flaxzoo.create(name)
    theirs = {k: tuple(v.shape) for k, v in state_dict.items() if not is_buffer(model, k)}
    leaves = torch_names(shapes(name))
    ours = {key: torch_shape(path, leaf.shape) for key, (path, leaf) in leaves.items()}
    assert ours == theirs


@pytest.mark.parametrize('name', flaxzoo.list_models())
def test_the_head_follows_num_classes(name):
    """Another number of classes changes heads alone, and every parameter is float32."""
    before = shapes(name)
    after = shapes(name, 7)
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    changed = [b.shape for a, b in pairs if a.shape != b.shape]
    assert changed
    assert all(7 in shape for shape in changed)
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {np.dtype('float32')}
