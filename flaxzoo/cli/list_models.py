"""List the networks and the tags of their released weights."""

import argparse

import flaxzoo
from flaxzoo.weights import catalog


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('pattern', nargs='?', default='*', help="for example 'resnet*'")


def run(arguments: argparse.Namespace) -> None:
    names = flaxzoo.list_models(arguments.pattern)
    if not names:
        raise ValueError(f'no network matches {arguments.pattern!r}')
    width = max(map(len, names))
    for name in names:
        print(f'{name:{width}}  {" ".join(catalog.tags(name))}'.rstrip())
