"""Whole networks: flaxzoo against torch, eager and compiled, on the same batches.

    python -m benchmarks.models --models resnet50 resnext50_32x4d --mode train --batch 8
    python -m benchmarks.models --device gpu --dtype bfloat16 --batch 256 --mode train --csv gpu.csv

Each contender is a process of its own on the same processors; their runs take turns, after a first call and a warm-up
that are not counted. Prints a Markdown table: milliseconds a batch (median, fastest and slowest), images a second, the
ratio of the medians to torch's eager one, seconds of the first call (compilation included), and peak memory.
"""

import argparse
import csv
import os
import sys
from dataclasses import astuple, dataclass, fields

from benchmarks.timing import Timing, interleave, table
from benchmarks.workers import Worker

LIBRARIES = ('flaxzoo', 'torch', 'torch.compile')


def start(library: str, name: str, args: argparse.Namespace) -> Worker:
    """A process that runs one batch at each call."""
    platform = {'cpu': 'cpu', 'gpu': 'cuda'}[args.device]
    hidden = {'CUDA_VISIBLE_DEVICES': ''} if args.device == 'cpu' else {}
    env = {**os.environ, 'JAX_PLATFORMS': platform, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', **hidden}
    return Worker(['benchmarks.worker', library, name, args.mode, str(args.batch), args.dtype], env=env)


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    model: str
    package: str
    ms: Timing
    images_per_s: float
    ratio_to_torch: float
    first_call_s: float
    peak_gib: float

    def cells(self) -> list[str]:
        numbers = [f'{self.images_per_s:.4g}', f'{self.ratio_to_torch:.2f}', f'{self.first_call_s:.1f}']
        return [f'`{self.model}`', self.package, str(self.ms), *numbers, f'{self.peak_gib:.2f}']


def measure(name: str, args: argparse.Namespace) -> list[Result]:
    workers = {library: start(library, name, args) for library in args.libraries}
    try:
        times = interleave({library: worker.run for library, worker in workers.items()}, args.runs)
    finally:
        for worker in workers.values():
            worker.close()
    base = times.get('torch', next(iter(times.values()))).median
    return [
        Result(
            name,
            library,
            times[library],
            args.batch / times[library].median * 1e3,
            times[library].median / base,
            worker.first_call_s,
            worker.peak_bytes / 2**30,
        )
        for library, worker in workers.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=['resnet50', 'resnext50_32x4d'])
    parser.add_argument('--mode', choices=('infer', 'train'), default='infer')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    parser.add_argument('--device', choices=('cpu', 'gpu'), default='cpu')
    parser.add_argument('--libraries', nargs='+', choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument('--runs', type=int, default=7)
    parser.add_argument('--csv', help='write the results to this file too')
    args = parser.parse_args()

    results = []
    for name in args.models:
        results += measure(name, args)
        print(*results[-len(args.libraries) :], sep='\n', file=sys.stderr, flush=True)
    print(f'{args.mode}, batch {args.batch}, {args.dtype}, {args.device}, {len(os.sched_getaffinity(0))} processors')
    header = ['model', 'library', 'ms a batch', 'images/s', 'time / torch', 'first call, s', 'peak, GiB']
    print(table(header, [result.cells() for result in results]))
    if args.csv:
        with open(args.csv, 'w', newline='') as file:
            writer = csv.writer(file)
            writer.writerow(field.name for field in fields(Result))
            writer.writerows(astuple(result) for result in results)


if __name__ == '__main__':
    main()
