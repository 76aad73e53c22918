"""What the tests of layers share."""

import jax
import pytest

from flaxzoo.ops.cpu import conv as conv_cpu


@pytest.fixture(scope='module')
def x64():
    """Float64, in which equal mathematics gives equal numbers."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def measured(monkeypatch):
    """The CPU's choice among lowerings as if no convolution were small, since tests compute small ones."""
    monkeypatch.setattr(conv_cpu, 'SMALL', 1)
