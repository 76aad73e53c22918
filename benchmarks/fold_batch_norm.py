"""Inference with the batch norms folded into the convolutions, against the same network without.

    python -m benchmarks.fold_batch_norm
    python -m benchmarks.fold_batch_norm --models resnet50 --batch 1 --runs 20

Prints milliseconds a batch, float32, medians with the range of runs that take turns.
"""

import argparse

import jax
import numpy as np

import flaxzoo
from benchmarks.timing import interleave, table


def measure(name: str, batch: int, runs: int) -> list:
    model = flaxzoo.create(name)
    shape = (batch, model.image_size, model.image_size, 3)
    x = jax.device_put(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    variables = jax.jit(model.init)(jax.random.key(0), x[:1])
    apply = jax.jit(model.apply)
    contenders = {'as trained': variables, 'folded': flaxzoo.fold_batch_norm(model, variables)}
    times = interleave({form: lambda v=v: apply(v, x) for form, v in contenders.items()}, runs)
    return [f'`{name}`', *times.values(), f'{times["as trained"].median / times["folded"].median:.2f}']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=['resnet50', 'inception_v3'])
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--runs', type=int, default=15)
    args = parser.parse_args()

    rows = [measure(name, args.batch, args.runs) for name in args.models]
    print(f'{jax.devices()[0].device_kind}, batch {args.batch}, float32, ms a batch')
    print(table(['model', 'as trained', 'folded', 'as trained / folded'], rows))


if __name__ == '__main__':
    main()
