"""Eight virtual CPU devices for every test; must run before jax touches a device."""

import jax

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
