"""Plain mode: networks of jax's own operations alone, for exporters, quantisers and whoever hunts a fault."""

import os
from contextlib import AbstractContextManager

import jax

# Part of what jax's caches of traced and compiled functions go by, so that neither mode is given the other's.
_plain = jax.make_user_context(os.environ.get('FLAXZOO_PLAIN', '') not in ('', '0'))


def plain(enabled: bool = True) -> AbstractContextManager:
    """A context in which every layer is traced to `lax.conv_general_dilated`, `lax.reduce_window` and their like.

        with flaxzoo.plain():
            program = jax.make_jaxpr(model.apply)(variables, x)

    Outside, convolutions are primitives of flaxzoo, which each platform computes in its own way. Here a program has
    none of them, no `custom_jvp` of flaxzoo and no choice by platform. The numbers are the same to rounding, the CPU is
    slower. The environment variable FLAXZOO_PLAIN=1 asks for it from the start, and `plain(False)` ends it.

    The mode is that of the time of tracing: a function that jax.jit has traced outside is traced and compiled anew
    inside, and neither replaces the other. What was traced before and is only run, such as a jaxpr, a compiled program
    or the function that jax.vjp returned, stays as it is.
    """
    return _plain(enabled)


def is_plain() -> bool:
    return _plain.value
