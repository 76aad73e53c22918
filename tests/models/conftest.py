"""Memory: what a test of whole networks has compiled is not kept for the tests after it."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def forget_compiled() -> Iterator[None]:
    """Compiled networks take hundreds of megabytes each, the largest gigabytes."""
    yield
    jax.clear_caches()
