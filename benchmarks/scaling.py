"""The training step on 1, 2, 4 and 8 virtual CPU devices and on 2 processes, against plain jit on one device.

    python -m benchmarks.scaling --model resnet18 --batch 16 --size 64 --runs 5

The batch is that of all devices together, so all contenders do the same work on the same processors, and what a ratio
has above 1 is overhead: smaller pieces of work, the all-reduces and their waiting. It says nothing about machines
whose devices are real; benchmarks/scaling_paper.py estimates those. Each contender is a process of its own (or two);
their runs take turns, after a first call and a warm-up that are not counted. Prints a Markdown table: milliseconds a
step (median, fastest and slowest) and the ratio of the medians to the one of jit.
"""

import argparse
import os
import socket
import sys

from benchmarks.timing import Timing, interleave, table
from benchmarks.workers import Worker

DEVICES = (1, 2, 4, 8)
PARALLELS = ('pmap', 'mesh')
BASELINE = 'jit, 1 device'


def start(parallel: str, args: argparse.Namespace, devices: int = 1, processes: int = 1) -> Worker:
    """A contender with so many virtual devices in each of its processes."""
    command = ['benchmarks.scaling_worker', parallel, args.model, str(args.batch), str(args.size)]
    command += [] if args.sync_batch_norm else ['--no-sync-batch-norm']
    commands = [command]
    if processes > 1:
        join = ['--coordinator', f'127.0.0.1:{free_port()}', '--num-processes', str(processes), '--process-id']
        commands = [[*command, *join, str(i)] for i in range(processes)]
    return Worker(*commands, env=os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)})


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def measure(args: argparse.Namespace) -> dict[str, Timing]:
    """Contender -> time of one step."""
    contenders = {BASELINE: ('jit', 1, 1)}
    contenders |= {f'{p}, {plural(n, "device")}': (p, n, 1) for n in DEVICES for p in PARALLELS}
    contenders |= {f'{p}, 2 processes': (p, 1, 2) for p in PARALLELS}
    workers: dict[str, Worker] = {}
    try:
        for name, (parallel, devices, processes) in contenders.items():
            workers[name] = start(parallel, args, devices, processes).wait()
            print(f'{name}: first call {workers[name].first_call_s:.1f} s', file=sys.stderr, flush=True)
        return interleave({name: worker.run for name, worker in workers.items()}, args.runs)
    finally:
        for worker in workers.values():
            worker.close()


def plural(count: int, noun: str) -> str:
    return f'{count} {noun}' if count == 1 else f'{count} {noun}s'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='resnet18')
    parser.add_argument('--batch', type=int, default=16, help='over all devices')
    parser.add_argument('--size', type=int, default=64, help='pixels')
    parser.add_argument('--runs', type=int, default=5)
    parser.add_argument('--sync-batch-norm', action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    times = measure(args)
    base = times[BASELINE].median

    def cells(parallel: str, where: str) -> list[str]:
        time = times[f'{parallel}, {where}']
        return [str(time), f'{time.median / base:.2f}']

    print(f'{args.model}, batch {args.batch}, {args.size} pixels, {len(os.sched_getaffinity(0))} processors')
    places = [plural(n, 'device') for n in DEVICES] + ['2 processes']
    rows = [['1 device, plain jit', str(times[BASELINE]), '1.00', '', '']]
    rows += [[place, *cells('pmap', place), *cells('mesh', place)] for place in places]
    print(table(['', 'pmap, ms a step', '/ plain jit', 'mesh, ms a step', '/ plain jit'], rows))


if __name__ == '__main__':
    main()
