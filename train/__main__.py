"""`python -m train --config configs/NAME.py --workdir DIR`."""

from train import stop

if __name__ == '__main__':
    stop.listen()  # before the imports below, which take seconds

import argparse
import contextlib
import os
from pathlib import Path

import jax

import flaxzoo
from train import loop
from train.config import load_config
from train.errors import UserError, run_command
from train.processes import joined

USAGE = 'python -m train --config configs/NAME.py [--config.FIELD=VALUE ...] --workdir DIR'
CACHE_BYTES = 5 * 10**9  # of compiled programs; the one longest unused goes first


def main(argv: list[str]) -> None:
    """Trains as the arguments say."""
    parser = argparse.ArgumentParser('python -m train', usage=USAGE, allow_abbrev=False)
    parser.add_argument('--config', required=True, help='a file with get_config(); see configs/')
    parser.add_argument('--workdir', required=True, type=Path, help='where the run is kept, and found to be resumed')
    several = parser.add_argument_group('several processes (start the same command in each)')
    several.add_argument('--distributed', action='store_true', help='TPU pods and Slurm: find the others by itself')
    several.add_argument('--coordinator', metavar='HOST:PORT', help='address of process 0')
    several.add_argument('--num-processes', type=int)
    several.add_argument('--process-id', type=int)
    args, rest = parser.parse_known_args(argv)
    config = load_config(args.config, _overrides(rest))
    if config.compilation_cache:
        _cache_compilations()
    with contextlib.ExitStack() as stack:
        if args.distributed or args.coordinator:
            stack.enter_context(joined(args.coordinator, args.num_processes, args.process_id))
        loop.train(config, args.workdir)


def _overrides(arguments: list[str]) -> list[tuple[str, str]]:
    """['--config.seed=1', '--config.flip', 'true'] -> [('seed', '1'), ('flip', 'true')]."""
    pairs, rest = [], iter(arguments)
    for argument in rest:
        if not argument.startswith('--config.'):
            raise UserError(f'{argument!r} is not an argument; usage: {USAGE}')
        field, equals, text = argument.removeprefix('--config.').partition('=')
        if not equals:
            text = next(rest, None)
            if text is None:
                raise UserError(f'--config.{field} needs a value')
        pairs.append((field, text))
    return pairs


def _cache_compilations() -> None:
    """Keeps compiled programs, so that the same command starts at once the next time."""
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    jax.config.update('jax_compilation_cache_dir', str(cache / 'flaxzoo' / 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
    jax.config.update('jax_compilation_cache_max_size', CACHE_BYTES)


if __name__ == '__main__':
    flaxzoo.keep_memory()
    run_command(main)
