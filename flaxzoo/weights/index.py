"""The names and shapes of every registered network's tensors, stored, so that looking them up traces nothing.

python -m flaxzoo.weights.index --write  # after a network was added or changed
"""

import argparse
import gzip
import json
import sys
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path

from flaxzoo.registry import MODELS
from flaxzoo.weights.architecture import Architecture, Shapes

PATH = Path(str(resources.files('flaxzoo.weights'))) / 'index.json.gz'
COMMAND = 'python -m flaxzoo.weights.index --write'


@cache
def index() -> dict[str, Shapes]:
    """{registered name: {torch name: torch's shape}}, of networks as `create(name)` builds them."""
    stored = json.loads(gzip.decompress(PATH.read_bytes()))
    return {name: {key: tuple(shape) for key, shape in shapes.items()} for name, shapes in stored.items()}


def trace(names: Iterable[str] = MODELS) -> dict[str, Shapes]:
    """What `index` has to be for these networks."""
    return {name: dict(sorted(Architecture(name, {}).shapes().items())) for name in sorted(names)}


def main(arguments: list[str] | None = None) -> int:
    """Compares the index with the networks; with --write, writes it."""
    parser = argparse.ArgumentParser(prog='python -m flaxzoo.weights.index', description=__doc__)
    parser.add_argument('--write', action='store_true', help='write the index, instead of only comparing it')
    write = parser.parse_args(arguments).write
    stored, traced = index() if PATH.exists() else {}, trace()
    differing = sorted(name for name in stored.keys() | traced.keys() if stored.get(name) != traced.get(name))
    if not differing:
        print(f'the index of {len(traced)} networks is up to date')
        return 0
    if write:
        text = json.dumps(traced, separators=(',', ':'))
        PATH.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))  # equal networks give equal bytes
        index.cache_clear()
    print(f'{"written" if write else f"out of date, run `{COMMAND}`"}: {", ".join(differing)}')
    return 0 if write else 1


if __name__ == '__main__':
    sys.exit(main())
