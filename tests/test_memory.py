"""`flaxzoo.keep_memory`: in a process of its own, since it changes the whole process."""

import platform
import runpy
import subprocess
import sys

import jax
import pytest

import flaxzoo

# Megabytes that the system hands out, page by page, during that one of several calls of a network that needs the
# fewest: a worker thread of XLA may still take some of its own at any call.
PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
import flaxzoo

if sys.argv[1] == 'kept':
    flaxzoo.keep_memory()
model = flaxzoo.create('squeezenet1_1')
variables, x = flaxzoo.init(model, jax.random.key(0)), jnp.zeros((16, 224, 224, 3))
f = jax.jit(model.apply)
pages = [0]
for _ in range(8):
    f(variables, x).block_until_ready()
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(min(after - before for before, after in zip(pages, pages[1:])) * resource.getpagesize() / 2**20)
"""


def megabytes_from_the_system(memory: str) -> float:
    # Small pages in both, so that pages are memory wherever the test runs.
    program = 'import ctypes; ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)\n' + PROGRAM  # PR_SET_THP_DISABLE
    done = subprocess.run([sys.executable, '-c', program, memory], check=True, capture_output=True, text=True)
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only the GNU C library can be told to keep memory')
def test_what_a_call_freed_serves_the_next_one():
    assert megabytes_from_the_system('fresh') > 50
    assert megabytes_from_the_system('kept') < 5


def test_it_is_refused_when_it_would_come_too_late(monkeypatch):
    monkeypatch.setattr(platform, 'libc_ver', lambda: ('glibc', '2.36'))
    jax.devices()
    with pytest.raises(RuntimeError, match='must come before jax computes'):
        flaxzoo.keep_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
    jax.devices()  # with the GNU C library it would be refused
    flaxzoo.keep_memory()


def test_the_training_program_keeps_its_memory(monkeypatch):
    calls = []
    monkeypatch.setattr(flaxzoo, 'keep_memory', lambda: calls.append('keep_memory'))
    monkeypatch.setattr(sys, 'argv', ['train', '--help'])
    with pytest.raises(SystemExit):
        runpy.run_module('train', run_name='__main__')
    assert calls == ['keep_memory']
