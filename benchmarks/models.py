"""Whole networks: flaxzoo against torch, eager and compiled, on the same batches.

    python -m benchmarks.models --models resnet50 resnext50_32x4d --mode train --batch 8
    python -m benchmarks.models --device gpu --dtype bfloat16 --batch 256 --mode train --csv gpu.csv
    python -m benchmarks.models --libraries flaxzoo flaxzoo:--xla_gpu_use_runtime_fusion=true --device gpu

Each contender is a process of its own on the same processors; their runs take turns, after a first call and a warm-up
that are not counted. A library may be followed by flags for XLA. On the CPU a run is five batches for inference and
two for training, and the processes start one after the other. On a GPU a run is ten batches, which are waited for
together as in training, and the processes of all models start at once, since compiling takes their processors and not
the GPU: their memory must fit together.

All keep the memory that they free, as `flaxzoo.keep_memory()` does, torch too, which gains from it as well. With
`--memory fresh` no one does.

Prints a Markdown table: milliseconds a batch (median, fastest and slowest), images a second, the ratio of the medians
to torch's eager one, seconds of the first call (compilation included), and peak memory.
"""

import argparse
import csv
import os
import sys
from dataclasses import astuple, dataclass, fields

from benchmarks.timing import Timing, interleave, table
from benchmarks.workers import Worker

LIBRARIES = ('flaxzoo', 'torch', 'torch.compile')
# A run is long against what it takes to wake a process.
BATCHES_A_RUN = {('cpu', 'infer'): 5, ('cpu', 'train'): 2, ('gpu', 'infer'): 10, ('gpu', 'train'): 10}


def library(text: str) -> str:
    """`text`, if it is a library or one with flags."""
    if text.partition(':')[0] not in LIBRARIES:
        raise argparse.ArgumentTypeError(f'{text!r} is none of {", ".join(LIBRARIES)}')
    return text


def start(contender: str, name: str, args: argparse.Namespace) -> Worker:
    """A process that computes one run of batches at each call."""
    library, _, flags = contender.partition(':')
    env = os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
    env |= {'cpu': {'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}, 'gpu': {'JAX_PLATFORMS': 'cuda'}}[args.device]
    env |= {'XLA_FLAGS': flags} if flags else {}
    batches = BATCHES_A_RUN[args.device, args.mode]
    return Worker(
        ['benchmarks.worker', library, name, args.mode, str(args.batch), args.dtype, args.memory, str(batches)], env=env
    )


def launch(name: str, args: argparse.Namespace) -> dict[str, Worker]:
    """The contenders of one model. On the CPU each is ready before the next one starts."""
    workers = {}
    for contender in args.libraries:
        workers[contender] = start(contender, name, args)
        if args.device == 'cpu':
            workers[contender].wait()
    return workers


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    model: str
    contender: str
    ms: Timing
    images_per_s: float
    ratio_to_torch: float
    first_call_s: float
    peak_gib: float

    def cells(self) -> list[str]:
        numbers = [f'{self.images_per_s:.4g}', f'{self.ratio_to_torch:.2f}', f'{self.first_call_s:.1f}']
        return [f'`{self.model}`', self.contender, str(self.ms), *numbers, f'{self.peak_gib:.2f}']


def measure(name: str, workers: dict[str, Worker], args: argparse.Namespace) -> list[Result]:
    try:
        runs = interleave({contender: worker.run for contender, worker in workers.items()}, args.runs)
    finally:
        for worker in workers.values():
            worker.close()
    times = {contender: time.divided(BATCHES_A_RUN[args.device, args.mode]) for contender, time in runs.items()}
    base = times.get('torch', next(iter(times.values()))).median
    return [
        Result(
            name,
            contender,
            times[contender],
            args.batch / times[contender].median * 1e3,
            times[contender].median / base,
            worker.first_call_s,
            worker.peak_bytes / 2**30,
        )
        for contender, worker in workers.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=['resnet50', 'resnext50_32x4d'])
    parser.add_argument('--mode', choices=('infer', 'train'), default='infer')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    parser.add_argument('--device', choices=('cpu', 'gpu'), default='cpu')
    parser.add_argument('--memory', choices=('kept', 'fresh'), default='kept')
    parser.add_argument('--libraries', nargs='+', type=library, default=LIBRARIES)
    parser.add_argument('--runs', type=int, default=7)
    parser.add_argument('--csv', help='write the results to this file too')
    args = parser.parse_args()

    results = []
    launched = ((name, launch(name, args)) for name in args.models)
    if args.device == 'gpu':
        launched = list(launched)
        for _, workers in launched:
            for worker in workers.values():
                worker.wait()
    for name, workers in launched:
        results += measure(name, workers, args)
        print(*results[-len(args.libraries) :], sep='\n', file=sys.stderr, flush=True)
    processors = f'{len(os.sched_getaffinity(0))} processors'
    print(f'{args.mode}, batch {args.batch}, {args.dtype}, {args.device}, memory {args.memory}, {processors}')
    header = ['model', 'library', 'ms a batch', 'images/s', 'time / torch', 'first call, s', 'peak, GiB']
    print(table(header, [result.cells() for result in results]))
    if args.csv:
        with open(args.csv, 'w', newline='') as file:
            writer = csv.writer(file)
            writer.writerow(['model', 'library', 'ms', 'ms_low', 'ms_high', *(f.name for f in fields(Result)[3:])])
            for name, contender, ms, *numbers in map(astuple, results):
                writer.writerow([name, contender, *ms, *numbers])


if __name__ == '__main__':
    main()
