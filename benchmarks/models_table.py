"""Every registered network: parameters, multiply-adds and the measured difference from its torch reference.

    python -m benchmarks.models_table                 # all; the largest take 13 GiB to compile
    python -m benchmarks.models_table 'resne*'
    python -m benchmarks.models_table --costs 'vit_*' # parameters and multiply-adds alone, in seconds

The error is the largest relative difference, max|a - b| / max|b| of a tensor, over the outputs of all modules, and for
the training step over the loss, all gradients and the updated statistics too. Images are random and not square,
statistics and affine terms are randomised.
"""

import argparse
import sys

import jax

import flaxzoo
import reference
from benchmarks.timing import table
from flaxzoo.analysis.parity import compare, randomise
from flaxzoo.analysis.summary import summarize
from tests.models.cases import images, labels


def costs_of(name: str) -> list[str]:
    model = flaxzoo.create(name)
    costs = summarize(model)
    return [f'`{name}`', f'{costs.parameters:,}', f'{costs.macs / 1e9:.2f} @{model.image_size}']


def errors_of(name: str) -> list[str]:
    model = flaxzoo.create(name)
    module = randomise(reference.build(name))
    x, y = images(name), labels(name)
    step = compare(model, module, x, train=True, labels=y)
    evaluation = compare(model, module, x)
    single = compare(model, module, x, dtype='float32')
    return [f'{report.error:.0e}' for report in (evaluation, step, single)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pattern', nargs='?', default='*')
    parser.add_argument('--costs', action='store_true', help='leave the errors out')
    arguments = parser.parse_args()
    rows = []
    for name in flaxzoo.list_models(arguments.pattern):
        rows.append(costs_of(name) + ([''] * 3 if arguments.costs else errors_of(name)))
        print(*rows[-1], file=sys.stderr, flush=True)
        jax.clear_caches()  # the largest networks take gigabytes to compile
    header = ['model', 'parameters', 'GMACs', 'evaluation, float64', 'training step, float64', 'evaluation, float32']
    print(table(header, rows))


if __name__ == '__main__':
    main()
