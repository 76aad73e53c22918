"""The error a user can put right, and how a command ends."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable


class UserError(Exception):
    """A mistake in a config, a data set or a work directory; shown as one sentence, without a traceback."""


def run_command(command: Callable[[list[str]], None]) -> None:
    """Runs `command(arguments)`; a UserError is printed, and the process ends with the status 1.

    A command that fails ends its process at once: what had to be closed was closed on the way here, and what Python
    would still wait for is a hung loader's thread, or processes of the run that are gone.
    """
    try:
        command(sys.argv[1:])
        return
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        status = 1
    except SystemExit as end:  # of the parser of arguments, of a signal, or of a config's own code
        if not end.code or not isinstance(end.code, int):
            raise
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)
