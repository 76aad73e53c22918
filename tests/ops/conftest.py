"""What the tests of layers share."""

import jax
import pytest


@pytest.fixture(scope='module')
def x64():
    """Float64, in which equal mathematics gives equal numbers."""
    with jax.enable_x64(True):
        yield
