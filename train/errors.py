"""The error a user can put right, and how a command shows it."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in a config, a data set or a work directory; shown as one sentence, without a traceback."""


def run_command(command: Callable[[list[str]], None]) -> None:
    """Runs `command(arguments)` and exits; a UserError is printed and gives the status 1."""
    try:
        command(sys.argv[1:])
    except UserError as error:
        sys.exit(f'error: {error}')
