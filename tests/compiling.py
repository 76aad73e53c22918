"""`jit` for tests, in which compiling is most of the time: they check the mathematics, not the speed of its code."""

from functools import partial

import jax

jit = partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
