"""What data parallelism should cost on 8, 64 and 1,024 chips: computed, not measured.

    python -m benchmarks.scaling_paper

The all-reduces are counted in the traced training step of train/; the speeds of chips and links are published figures,
which stand below as constants. Prints a Markdown table with, for each step: the MB all-reduced at its end (gradients,
running statistics, metrics), and the number of small all-reduces inside the network that shared BatchNorm statistics
add; the milliseconds of computation and of both kinds of all-reduces; and the efficiency, images a second relative to
as many chips on their own, from no overlap of communication and computation to full overlap.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxprs_in_params

import flaxzoo
from benchmarks.scaling_worker import NUM_CLASSES, make_config
from benchmarks.timing import table
from train.experiment import abstract_state, augmenter, normaliser
from train.optim import make_optimizer
from train.state import build_model
from train.step import make_train_step

ATTAINED = 0.7  # of a link's nominal bandwidth
BACKWARD = 2 / 3  # of the computation of a step


@dataclass(frozen=True)
class Ring:
    """One level of a network: rings of `chips`.

    Attributes:
      bandwidth: bytes a second out of one chip, nominal.
      latency: seconds from one chip to the next.
    """

    chips: int
    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Machine:
    """Chips, the rings that join them, and images a second that one chip trains ResNet-50 on."""

    name: str
    rings: tuple[Ring, ...]
    images_per_s: float


NVLINK = Ring(8, 450e9, 1e-6)  # H100, H200: 900 GB/s, of both directions together
NETWORK = Ring(8, 50e9, 3e-6)  # 400 Gb/s for each GPU; GPU i of a host talks to GPU i of the others
# ResNet-50 v1.5 by MLPerf Training on one H200: the fastest published, so the hardest to keep up with.
H200_IMAGES_PER_S = 7950
# A torus with 6 links of 50 GB/s a chip (Jouppi et al. 2023); v4 is 2.1 times as fast as v3 by the same paper. Flax's
# ImageNet example took 4.4 hours for 125,100 steps of 1,024 images on the 4 chips of a TPU v3-8.
TPU_V4 = tuple(Ring(chips, 6 * 50e9, 1e-6) for chips in (8, 8, 16))
TPU_V4_IMAGES_PER_S = 2.1 * 125_100 * 1024 / (4.4 * 3600) / 4

MACHINES = (
    Machine('8 H200', (NVLINK,), H200_IMAGES_PER_S),
    Machine('64 H200', (NVLINK, NETWORK), H200_IMAGES_PER_S),
    Machine('1,024 TPU v4', TPU_V4, TPU_V4_IMAGES_PER_S),
)

# Images a second relative to ResNet-50's, training in mixed precision on an RTX 3090 (timm's published benchmarks).
RELATIVE_SPEED = {'resnet50': 1.0, 'resnext50_32x4d': 0.82, 'vgg16': 0.45}


def bytes_sent(size: float, rings: Sequence[Ring]) -> list[float]:
    """Bytes that each chip sends on each level to all-reduce `size` bytes.

    A ring of n reduce-scatters and then all-gathers, so a chip sends (n - 1) / n of the data twice. Between the two the
    next level all-reduces the n-th part that the chip holds.
    """
    sent = []
    for ring in rings:
        sent.append(2 * (ring.chips - 1) / ring.chips * size)
        size /= ring.chips
    return sent


def all_reduce_seconds(size: float, rings: Sequence[Ring]) -> float:
    """Seconds to all-reduce `size` bytes: those of sending, and 2 (n - 1) latencies on each level."""
    pairs = zip(bytes_sent(size, rings), rings, strict=True)
    return sum(sent / (ATTAINED * ring.bandwidth) + 2 * (ring.chips - 1) * ring.latency for sent, ring in pairs)


def efficiencies(compute: float, gradients: float, batch_norm: float) -> tuple[float, float]:
    """Efficiency without and with full overlap, from the seconds of a step.

    Gradients can be all-reduced behind the backward pass that makes them; synchronised BatchNorm cannot overlap,
    because every layer waits for its statistics.
    """
    left = max(0.0, gradients - BACKWARD * compute)
    return compute / (compute + gradients + batch_norm), compute / (compute + left + batch_norm)


def all_reduces(name: str, sync_batch_norm: bool) -> list[int]:
    """Bytes of every array that one training step all-reduces."""
    size = flaxzoo.create(name).image_size
    config = make_config(name, size, 2, sync_batch_norm)
    model, shape = build_model(config, NUM_CLASSES), (size, size, 3)
    state = abstract_state(config, model, shape)
    tx = make_optimizer(config, optax.constant_schedule(0.0), state.params)
    step = make_train_step(model, tx, augment=augmenter(config), normalise=normaliser(config))
    batch = {'image': jax.ShapeDtypeStruct((2, *shape), jnp.uint8), 'label': jax.ShapeDtypeStruct((2,), jnp.int32)}
    return list(_psums(jax.make_jaxpr(step, axis_env=[('batch', 2)])(state, batch)))


def _psums(jaxpr: Jaxpr | ClosedJaxpr) -> Iterator[int]:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == 'psum':
            yield from (var.aval.size * var.aval.dtype.itemsize for var in eqn.invars)
        for inner in jaxprs_in_params(eqn.params):
            yield from _psums(inner)


def rows(name: str, chip_batches: Sequence[int]) -> Iterator[list[str]]:
    # XLA joins the all-reduces of gradients, running statistics and metrics into one; BatchNorm's come one by one.
    gradients, both = all_reduces(name, sync_batch_norm=False), all_reduces(name, sync_batch_norm=True)
    count, size = len(both) - len(gradients), sum(both) - sum(gradients)
    for machine in MACHINES:
        reduce = all_reduce_seconds(sum(gradients), machine.rings)
        batch_norm = count * all_reduce_seconds(size / count, machine.rings) if count else 0.0
        for chip_batch in chip_batches:
            compute = chip_batch / (machine.images_per_s * RELATIVE_SPEED[name])
            sizes = [machine.name, str(chip_batch), f'{sum(gradients) / 1e6:.1f}', str(count)]
            times = [f'{1e3 * seconds:.1f}' for seconds in (compute, reduce, batch_norm)]
            ranges = [efficiencies(compute, reduce, seconds) for seconds in (0.0, batch_norm)]
            yield [name, *sizes, *times, *(f'{low:.0%} - {high:.0%}' for low, high in ranges)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', choices=RELATIVE_SPEED, default=list(RELATIVE_SPEED))
    parser.add_argument('--chip-batches', nargs='+', type=int, default=[256])
    args = parser.parse_args()
    sizes = ['model', 'chips', 'images a chip', 'at the end, MB', 'inside, number']
    times = ['compute, ms', 'at the end, ms', 'inside, ms', 'efficiency, local BN', 'efficiency, shared BN']
    print(table(sizes + times, [row for name in args.models for row in rows(name, args.chip_batches)]))


if __name__ == '__main__':
    main()
