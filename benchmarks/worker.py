"""One network of one library in a process of its own: see benchmarks/models.py.

    python -m benchmarks.worker flaxzoo resnet50 infer 8 float32 kept 1

Prints a JSON line when it is ready, with the seconds of the first call. For every line it reads it computes as many
batches as the last argument says, waits for them, and prints a line with the peak memory. The argument before it is
'kept' if the process, of either library, calls `flaxzoo.keep_memory()`, or 'fresh'.
A process each keeps the peak memory apart and lets no library's threads disturb the other's.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable

import numpy as np

import flaxzoo

NUM_CLASSES = 1000


def batch_for(size: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images (N, H, W, 3), float32, and labels (N,)."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(batch, size, size, 3)).astype(np.float32), rng.integers(NUM_CLASSES, size=batch)


def flaxzoo_step(name: str, mode: str, batch: int, dtype: str) -> tuple[Callable[[int], None], Callable[[], int]]:
    """(a call that computes so many batches to their end, bytes of memory at the peak)."""
    import jax
    import jax.numpy as jnp
    import optax

    model = flaxzoo.create(name)
    images, labels = batch_for(model.image_size, batch)
    x, y = jax.device_put(jnp.asarray(images, dtype)), jax.device_put(jnp.asarray(labels))
    variables = flaxzoo.init(model, jax.random.key(0))
    tx = optax.sgd(0.01, momentum=0.9)

    def loss(params, stats, x, y):
        out, new = model.apply(
            {'params': params, 'batch_stats': stats},
            x,
            train=True,
            mutable=['batch_stats'],
            rngs={'dropout': jax.random.key(1)},
        )
        heads = out if isinstance(out, tuple) else (out,)
        losses = [optax.softmax_cross_entropy_with_integer_labels(h.astype(jnp.float32), y).mean() for h in heads]
        return sum(losses), new.get('batch_stats', {})

    def train(params, stats, opt_state, x, y):
        grads, stats = jax.grad(loss, has_aux=True)(params, stats, x, y)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), stats, opt_state

    if mode == 'infer':
        apply = jax.jit(model.apply)

        def run(batches: int) -> None:
            jax.block_until_ready([apply(variables, x) for _ in range(batches)])
    else:
        step = jax.jit(train, donate_argnums=(0, 1, 2))
        state = [(variables['params'], variables.get('batch_stats', {}), tx.init(variables['params']))]

        def run(batches: int) -> None:
            for _ in range(batches):
                state[0] = step(*state[0], x, y)
            jax.block_until_ready(state)

    def peak() -> int:
        stats = jax.devices()[0].memory_stats()
        return stats['peak_bytes_in_use'] if stats else _peak_rss()

    return run, peak


def torch_step(
    name: str, mode: str, batch: int, dtype: str, compiled: bool
) -> tuple[Callable[[int], None], Callable[[], int]]:
    """The same by torch, channels last; half precision by autocast, as torch's users train, and cuDNN's fastest."""
    import torch

    import reference

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = True
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    images, labels = batch_for(flaxzoo.create(name).image_size, batch)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2)).to(device, memory_format=torch.channels_last)
    y = torch.from_numpy(labels).to(device)
    module = reference.build(name).to(device, memory_format=torch.channels_last).train(mode == 'train')
    optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9)
    forward = torch.compile(module) if compiled else module
    autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16')

    def one() -> None:
        if mode == 'infer':
            with torch.inference_mode(), autocast:
                forward(x)
        else:
            with autocast:
                out = forward(x)
                heads = out if isinstance(out, tuple) else (out,)
                loss = sum(torch.nn.functional.cross_entropy(head, y) for head in heads)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def run(batches: int) -> None:
        for _ in range(batches):
            one()
        if device == 'cuda':
            torch.cuda.synchronize()

    return run, torch.cuda.max_memory_allocated if device == 'cuda' else _peak_rss


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    library, name, mode, batch, dtype, memory, batches = sys.argv[1:]
    if memory == 'kept':
        flaxzoo.keep_memory()
    if library == 'flaxzoo':
        run, peak = flaxzoo_step(name, mode, int(batch), dtype)
    else:
        run, peak = torch_step(name, mode, int(batch), dtype, compiled=library == 'torch.compile')
    start = time.perf_counter()
    run(1)
    print(json.dumps({'first_call_s': time.perf_counter() - start}), flush=True)
    for _ in sys.stdin:
        run(int(batches))
        print(json.dumps({'peak_bytes': peak()}), flush=True)


if __name__ == '__main__':
    main()
