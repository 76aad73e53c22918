"""Eight virtual CPU devices for every test, which must be asked for before jax touches a device; a shared fixture."""

from collections.abc import Iterator

import jax
import pytest

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)


@pytest.fixture
def forget_compiled() -> Iterator[None]:
    """What a test of whole networks has compiled is not kept: hundreds of megabytes each, the largest gigabytes."""
    yield
    jax.clear_caches()
