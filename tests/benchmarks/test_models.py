"""The benchmarks of whole networks and of lowerings: that they run and compare like with like, not how fast."""

import argparse
import csv
import subprocess
import sys

import jax
import pytest

from benchmarks.levers import CPU_LEVERS, GPU_LEVERS
from benchmarks.models import library
from benchmarks.timing import Timing


@pytest.mark.parametrize('mode', ['infer', 'train'])
def test_whole_networks_side_by_side(mode, tmp_path):
    arguments = ['--models', 'squeezenet1_1', '--mode', mode, '--libraries', 'flaxzoo', 'torch', '--batch', '2']
    command = [
        sys.executable,
        '-m',
        'benchmarks.models',
        *arguments,
        '--runs',
        '1',
        '--csv',
        str(tmp_path / 'table.csv'),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    title, header, _, ours, torchs = done.stdout.splitlines()
    assert title.startswith(f'{mode}, batch 2, float32, cpu')
    assert 'time / torch' in header
    assert '| flaxzoo |' in ours
    assert '| torch |' in torchs
    with (tmp_path / 'table.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['library'] for row in rows] == ['flaxzoo', 'torch']
    assert all(float(row['ms_low']) <= float(row['ms']) <= float(row['ms_high']) for row in rows)
    assert float(rows[1]['ratio_to_torch']) == 1
    assert all(float(row['images_per_s']) > 0 and float(row['peak_gib']) > 0.05 for row in rows)


def test_a_library_may_have_flags_and_another_is_refused():
    flags = 'flaxzoo:--xla_cpu_prefer_vector_width=256'
    assert library(flags) == flags
    with pytest.raises(argparse.ArgumentTypeError, match="'tensorflow' is none of flaxzoo, torch"):
        library('tensorflow')


def test_the_time_of_a_batch_is_that_of_a_run_divided():
    assert Timing(30, 20, 50).divided(10) == Timing(3, 2, 5)


@pytest.mark.parametrize('lever', CPU_LEVERS + GPU_LEVERS, ids=lambda lever: lever.name)
def test_both_sides_of_a_lever_are_of_the_same_shape(lever):
    native, ours = (jax.eval_shape(f, *lever.arrays) for f in (lever.native, lever.flaxzoo))
    assert jax.tree.leaves(native) == jax.tree.leaves(ours)
