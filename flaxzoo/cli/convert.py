"""Convert a weights file between .pth, .safetensors and .npz, checked against a network."""

import argparse

from flaxzoo.weights.adapt import Architecture, adapt
from flaxzoo.weights.convert import is_buffer
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
    architecture = Architecture(arguments.model, fields)
    fitted, changes = adapt(architecture, weights)
    # Counters and index tables are no weights for us, but torch expects some of them.
    names = {key: changes.renamed.get(key, key) for key in weights if is_buffer(architecture.build(), key)}
    fitted |= {name: weights[key] for key, name in names.items() if key not in changes.dropped}
    write_weights(arguments.output, fitted)
    print(f'{arguments.output}: {len(fitted)} tensors of {arguments.model}; {changes}')
