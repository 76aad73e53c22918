"""Memory that a program on the CPU keeps from one step to the next."""

import ctypes
import platform

import jax

from flaxzoo.ops._jax import backends_are_initialized

# Parameters of mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_memory() -> None:
    """Makes this process keep the memory that it has freed, so that the next step of a network takes it again.

    For a program on the CPU; call it once, before jax computes anything. XLA allocates what a compiled function needs
    for its intermediate results as one block at each call, hundreds of megabytes, which the GNU C library takes from
    the system and gives back, and Linux fills it with zeros page by page at its first use. That is a fifth of the time
    of a training step of ResNet-50 (`python -m benchmarks.models --mode train --memory fresh` against `kept`).

    The process then holds as much memory as it ever needed, and can need more, because blocks of different sizes do
    not always fit in each other's place (README's section on speed has the peaks). Calls of jitted functions on one CPU
    device return when they are done, because the library can only keep such blocks of the thread that called first, the
    main thread: jit a whole step and call it there. Other devices compute asynchronously as before. Where the C library
    is another one, or the system another, nothing changes.

    Raises:
      RuntimeError: jax has already set up its devices.
    """
    if platform.libc_ver()[0] != 'glibc':
        return
    if backends_are_initialized():
        raise RuntimeError('flaxzoo.keep_memory() must come before jax computes anything or is asked for its devices')
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)  # no block as a mapping of its own, which could only be given back
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # nothing given back at the end of the heap either
    jax.config.update('jax_cpu_enable_async_dispatch', False)
