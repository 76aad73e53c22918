"""Convert a weights file between .pth, .safetensors and .npz, checked against a network."""

import argparse

from flaxzoo.weights.adapt import Architecture, adapt
from flaxzoo.weights.convert import is_buffer
from flaxzoo.weights.files import read_metadata, read_weights
from flaxzoo.weights.own import own_network, stated_fields
from flaxzoo.weights.save import write_weights

# What metadata say of the file, not of the weights: each file has its own.
OF_THE_FILE = ('format', 'flaxzoo.sha256')


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('input', help='.pth, .pt, .safetensors or .npz')
    parser.add_argument('output', help='.safetensors, .pth, .pt or .npz')
    parser.add_argument('--model', help='the network whose weights they are, if the file does not say')
    parser.add_argument('--num-classes', type=int, help="if it is not the network's default, and the file does not say")
    parser.add_argument('--key', help='which state dict of a file that holds several, or a prefix of names')


def run(arguments: argparse.Namespace) -> None:
    model = arguments.model or own_network(arguments.input)
    weights = read_weights(arguments.input, arguments.key)
    fields = dict(stated_fields(arguments.input, model))
    if arguments.num_classes is not None:
        fields['num_classes'] = arguments.num_classes
    architecture = Architecture(model, fields)
    fitted, changes = adapt(architecture, weights)
    # Counters and index tables are no weights for us, but torch expects some of them.
    names = {key: changes.renamed.get(key, key) for key in weights if is_buffer(architecture.build(), key)}
    fitted |= {name: weights[key] for key, name in names.items() if key not in changes.dropped}
    fitted = {**architecture.build().buffers(), **fitted}
    kept = {key: text for key, text in read_metadata(arguments.input).items() if key not in OF_THE_FILE}
    write_weights(arguments.output, fitted, kept if arguments.output.endswith('.safetensors') else None)
    print(f'{arguments.output}: {len(fitted)} tensors of {model}; {changes}')
