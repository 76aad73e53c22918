"""Convert a weights file between .pth, .safetensors and .npz, checked against a network."""

import argparse

from flaxzoo.weights.adapt import Architecture, adapt
from flaxzoo.weights.convert import IGNORED
from flaxzoo.weights.files import read_weights
from flaxzoo.weights.save import write_weights


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('input', help='.pth, .pt, .safetensors or .npz')
    parser.add_argument('output', help='.safetensors, .pth, .pt or .npz')
    parser.add_argument('--model', required=True, help='the network whose weights they are')
    parser.add_argument('--num-classes', type=int, help="if it is not the network's default")


def run(arguments: argparse.Namespace) -> None:
    weights = read_weights(arguments.input)
    fields = {} if arguments.num_classes is None else {'num_classes': arguments.num_classes}
    fitted, changes = adapt(Architecture(arguments.model, fields), weights)
    # Counters and index tables are no weights for us, but torch expects some of them.
    fitted |= {key: value for key, value in weights.items() if key.split('.')[-1] in IGNORED}
    write_weights(arguments.output, fitted)
    print(f'{arguments.output}: {len(fitted)} tensors of {arguments.model}; {changes}')
