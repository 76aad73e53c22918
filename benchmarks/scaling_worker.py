"""The training step of train/ on the devices of this process and its peers, run once for every line read.

    JAX_NUM_CPU_DEVICES=4 python -m benchmarks.scaling_worker mesh resnet18 16 64

See benchmarks/scaling.py; what it prints is what benchmarks/workers.py reads.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from train.config import default_config
from train.experiment import augmenter, normaliser
from train.optim import make_optimizer
from train.parallel import MeshParallel, make_parallel
from train.preparation import settled
from train.state import build_model, initial_variables, make_state
from train.step import make_train_step

NUM_CLASSES = 1000


class OneDevice(MeshParallel):
    """The baseline: plain jit and no collectives, because the axis 'batch' is a vmap over one row."""

    def compile(self, step: Callable, donate_state: bool = False) -> Callable:
        mapped = jax.vmap(step, in_axes=(None, 0), out_axes=None, axis_name='batch')
        return jax.jit(mapped, donate_argnums=(0,) if donate_state else ())

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return super().shard({name: a[None] for name, a in batch.items()})


def make_config(model: str, size: int, batch: int, sync_batch_norm: bool = True) -> ConfigDict:
    """A run of `model` on `batch` images (size, size, 3) a step, augmented by a padded crop and a flip."""
    config = default_config()
    config.model, config.image_size, config.batch_size = model, size, batch
    config.crop, config.flip = 'pad', True
    config.sync_batch_norm = sync_batch_norm
    return settled(config, channels=3)


def training_step(config: ConfigDict, parallel_name: str) -> Callable[[], None]:
    """A call that runs one step to its end, on random images that are already on the devices."""
    shape = (config.image_size, config.image_size, 3)
    model = build_model(config, NUM_CLASSES)
    variables = initial_variables(config, model, shape)
    tx = make_optimizer(config, optax.constant_schedule(0.01), variables['params'])
    parallel = OneDevice() if parallel_name == 'jit' else make_parallel(parallel_name, config.batch_size)
    step = make_train_step(model, tx, augment=augmenter(config), normalise=normaliser(config))
    step = parallel.compile(step, donate_state=True)

    rng = np.random.default_rng(jax.process_index())
    rows = config.batch_size // jax.process_count()
    images = rng.integers(256, size=(rows, *shape), dtype=np.uint8)
    batch = parallel.shard({'image': images, 'label': rng.integers(NUM_CLASSES, size=rows, dtype=np.int32)})
    state = [parallel.replicate(make_state(variables, tx))]

    def run() -> None:
        # Each step is waited for: several collectives in flight can starve each other on virtual CPU devices.
        state[0], _ = jax.block_until_ready(step(state[0], batch))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('parallel', choices=('jit', 'pmap', 'mesh'))
    parser.add_argument('model')
    parser.add_argument('batch', type=int, help='over all devices')
    parser.add_argument('size', type=int, help='pixels')
    parser.add_argument('--sync-batch-norm', action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument('--coordinator', metavar='HOST:PORT')
    parser.add_argument('--num-processes', type=int)
    parser.add_argument('--process-id', type=int)
    args = parser.parse_args()
    if args.coordinator:
        jax.distributed.initialize(args.coordinator, args.num_processes, args.process_id)
    run = training_step(make_config(args.model, args.size, args.batch, args.sync_batch_norm), args.parallel)
    start = time.perf_counter()
    run()
    print(json.dumps({'first_call_s': time.perf_counter() - start}), flush=True)
    for _ in sys.stdin:
        run()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({'peak_bytes': peak}), flush=True)


if __name__ == '__main__':
    main()
