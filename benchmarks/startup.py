"""How long it takes until a network is there: import, `create`, initialisation, and compiling the training step.

    python -m benchmarks.startup
    python -m benchmarks.startup --runs 1 --models resnet50

Each measurement is a fresh process without the compilation cache; the table has medians, with the range. Peaks are the
resident memory of the process when its compilation ends, before the first step.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.timing import Timing, table


def seconds(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def imported() -> dict[str, float]:
    """Importing flaxzoo after flax, then `create` and `list_models`, the first time and later."""
    import flax  # noqa: F401

    if 'flaxzoo' in sys.modules:
        raise RuntimeError('flaxzoo is imported already: importing it again takes no time')
    measured = {'`import flaxzoo` after `import flax`, ms': seconds(lambda: __import__('flaxzoo')) * 1e3}
    import flaxzoo

    create = lambda: flaxzoo.create('resnet50')  # noqa: E731
    measured["`create('resnet50')`, the first, ms"] = seconds(create) * 1e3
    measured["`create('resnet50')`, later ones, ms"] = statistics.median(seconds(create) for _ in range(100)) * 1e3
    measured['`list_models()`, ms'] = seconds(flaxzoo.list_models) * 1e3
    return measured


def initialised() -> dict[str, float]:
    """Seconds to the first variables of ResNet-50."""
    import jax

    import flaxzoo

    model = flaxzoo.create('resnet50')
    return {
        'ResNet-50, `flaxzoo.init`, s': seconds(lambda: jax.block_until_ready(flaxzoo.init(model, jax.random.key(0))))
    }


def jitted() -> dict[str, float]:
    """The same by flax's own way."""
    import jax
    import jax.numpy as jnp

    import flaxzoo

    model = flaxzoo.create('resnet50')
    x = jnp.zeros((1, model.image_size, model.image_size, 3))
    init = jax.jit(model.init)
    return {'ResNet-50, `jax.jit(model.init)`, s': seconds(lambda: jax.block_until_ready(init(jax.random.key(0), x)))}


def step(name: str) -> dict[str, float]:
    """Tracing with lowering, and compiling, the training step of `benchmarks.worker` at batch 8 in float32."""
    from jax import monitoring

    from benchmarks.worker import flaxzoo_step

    measured = {f'`{name}`, {part}': 0.0 for part in ('trace and lower, s', 'compile, s', 'peak, GiB')}
    trace, build, peak = measured

    def listen(event: str, duration: float, fun_name: str = '', **_: object) -> None:
        if fun_name not in ('train', 'jit(train)'):
            return
        if event.endswith('backend_compile_duration'):
            measured[build] = duration
            measured[peak] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        else:
            measured[trace] += duration

    run, _ = flaxzoo_step(name, 'train', batch=8, dtype='float32')
    monitoring.register_event_duration_secs_listener(listen)
    run(1)
    return measured


MEASUREMENTS = {function.__name__: function for function in (imported, initialised, jitted, step)}


def in_a_fresh_process(measurement: str, *arguments: str) -> dict[str, float]:
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
    command = [sys.executable, '-m', 'benchmarks.startup', '--measure', measurement, *arguments]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(measurement: str, *arguments: str, runs: int) -> list[list]:
    """A row for each thing that `measurement` measures."""
    taken = [in_a_fresh_process(measurement, *arguments) for _ in range(runs)]
    series = {what: [measured[what] for measured in taken] for what in taken[0]}
    rows = [[what, Timing(statistics.median(values), min(values), max(values))] for what, values in series.items()]
    for what, timing in rows:
        print(f'{what}: {timing}', file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='*', default=['resnet152', 'inception_resnet_v2'], help='training steps')
    parser.add_argument('--runs', type=int, default=3, help='processes for each measurement')
    parser.add_argument('--measure', nargs='+', metavar='WHAT', help='only this, in this process, as JSON')
    args = parser.parse_args()

    if args.measure:
        measurement, *arguments = args.measure
        print(json.dumps(MEASUREMENTS[measurement](*arguments)))
        return
    rows = []
    for measurement in ('imported', 'initialised', 'jitted'):
        rows += measure(measurement, runs=args.runs)
    for name in args.models:
        rows += measure('step', name, runs=args.runs)
    print(f'{len(os.sched_getaffinity(0))} processors, the training step with batch 8, float32')
    print(table(['what', 'measured'], rows))


if __name__ == '__main__':
    main()
