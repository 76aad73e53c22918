"""A lock between processes, as a file. The system releases it if the process is killed."""

import contextlib
import errno
import logging
import time
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger('flaxzoo')

# What file systems without locks answer: Lustre mounted without flock, some NFS.
UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def locked(path: Path, poll: float = 0.2) -> Iterator[bool]:
    """Waits for the lock and holds it.

    Yields:
      Whether it is held. It is not where the file system has no locks: then nothing keeps other processes out, and what
      is written must have a name of its own.
    """
    with path.open('a') as file:
        held = waited = False
        while not held:
            try:
                held = try_lock(file.fileno())
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                logger.warning('%s: this file system has no locks, so processes may do the same work twice', path)
                break
            if not held:
                if not waited:
                    logger.info('another process is downloading %s: waiting', path.stem)
                    waited = True
                time.sleep(poll)
        yield held


def try_lock(descriptor: int) -> bool:
    """Takes the lock of an open file if nobody has it; whether it did.

    Raises:
      OSError: with an errno of UNSUPPORTED where the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
