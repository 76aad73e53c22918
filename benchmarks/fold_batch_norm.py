"""Inference with the batch norms folded into the convolutions, against the same network without.

    python -m benchmarks.fold_batch_norm
    python -m benchmarks.fold_batch_norm --models resnet50 --batch 256 --dtype bfloat16

Prints milliseconds a batch, medians with the range of runs that take turns.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import flaxzoo
from benchmarks.timing import interleave, table


def measure(name: str, batch: int, dtype: str, runs: int) -> list:
    model = flaxzoo.create(name)
    shape = (batch, model.image_size, model.image_size, 3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)
    variables = flaxzoo.init(model, jax.random.key(0))
    apply = jax.jit(model.apply)
    contenders = {'as trained': variables, 'folded': flaxzoo.fold_batch_norm(model, variables)}
    times = interleave({form: lambda v=v: apply(v, x) for form, v in contenders.items()}, runs)
    return [f'`{name}`', *times.values(), f'{times["as trained"].median / times["folded"].median:.2f}']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=['resnet50', 'inception_v3'])
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    parser.add_argument('--runs', type=int, default=15)
    args = parser.parse_args()
    flaxzoo.keep_memory()

    rows = [measure(name, args.batch, args.dtype, args.runs) for name in args.models]
    print(f'{jax.devices()[0].device_kind}, batch {args.batch}, {args.dtype}, ms a batch')
    print(table(['model', 'as trained', 'folded', 'as trained / folded'], rows))


if __name__ == '__main__':
    main()
