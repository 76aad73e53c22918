"""The command `flaxzoo`; each subcommand is a file that defines `configure(parser)` and `run(arguments)`."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from flaxzoo.cli import convert, info, list_models

COMMANDS = {'list': list_models, 'info': info, 'convert': convert}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; errors that a user can mend are one sentence on stderr and status 1."""
    logging.basicConfig(format='%(message)s')
    parser = argparse.ArgumentParser(prog='flaxzoo', description='Image-classification networks and their weights.')
    commands = parser.add_subparsers(dest='command', required=True)
    for name, module in COMMANDS.items():
        module.configure(commands.add_parser(name, help=module.__doc__, description=module.__doc__))
    arguments = parser.parse_args(argv)
    try:
        COMMANDS[arguments.command].run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as `head` does; what is left is not written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ValueError) as error:
        print(f'flaxzoo {arguments.command}: {error}', file=sys.stderr)
        return 1
    return 0
