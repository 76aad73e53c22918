"""Eight virtual CPU devices for every test; must run before jax touches a device. What tests of whole networks share."""

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
