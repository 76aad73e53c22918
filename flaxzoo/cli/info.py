"""Describe the released weights of a network."""

import argparse

from flaxzoo.registry import MODELS
from flaxzoo.weights import catalog


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('name', help='a network')


def run(arguments: argparse.Namespace) -> None:
    name = arguments.name
    rows = [catalog.find(name, tag) for tag in catalog.tags(name)]
    if not rows and name in MODELS:
        print(f'{name}: no released weights')
        return
    for row in rows or [catalog.find(name)]:
        mean, std = row.normalisation
        print(f'{name}.{row.tag}{" (default)" if row.default else ""}')
        print(f'  from         {row.url} ({row.source})')
        print(f'  SHA-256      {row.sha256 + "..." if row.sha256 else "not stated by the source"}')
        print(f'  licence      {row.license}')
        print(f'  parameters   {row.parameters:,}, {row.classes} classes')
        if row.acc1 is not None:
            print(f'  ImageNet     {row.acc1} % top-1, {row.acc5} % top-5 (published)')
        print(f'  images       resize {row.resize}, crop {row.crop}, {row.interpolation}, mean {mean}, std {std}')
