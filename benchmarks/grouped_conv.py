"""Grouped 3x3 convolution: XLA's `feature_group_count` against flaxzoo's lowering for this platform, and torch.

    python -m benchmarks.grouped_conv                 # the four stages of ResNeXt-50 32x4d
    python -m benchmarks.grouped_conv --first         # only the first stage, 128 channels at 56x56
    python -m benchmarks.grouped_conv --widths        # widths of the merged blocks against each other

Prints milliseconds of the forward pass and of forward plus both gradients, float32, medians with the range, and the
seconds of the processor that XLA took to compile them. On a GPU or
TPU the two columns are the same convolution.
"""

import argparse
from functools import partial

import jax
import numpy as np

import flaxzoo
from benchmarks.timing import compiled, interleave, table
from flaxzoo.ops.conv import conv2d
from flaxzoo.ops.cpu.conv import paired_inference
from flaxzoo.ops.cpu.groups import merged_conv
from flaxzoo.ops.native import Geometry, native_conv

STAGES = ((128, 56), (256, 28), (512, 14), (1024, 7))
GROUPS = 32
GEOMETRY = Geometry(padding=(1, 1), groups=GROUPS)


def calls_for(conv, x: np.ndarray, kernel: np.ndarray) -> dict:
    """The forward pass of a jax convolution, and that with both gradients, each with the seconds it compiled."""

    def with_gradients(x, kernel, cotangent):
        y, pull = jax.vjp(conv, x, kernel)
        return y, *pull(cotangent)

    x, kernel = jax.device_put(x), jax.device_put(kernel)
    forward, forward_s = compiled(conv, x, kernel)
    cotangent = forward(x, kernel)
    both, both_s = compiled(with_gradients, x, kernel, cotangent)
    return {
        'forward': (lambda: forward(x, kernel), forward_s),
        'forward + backward': (lambda: both(x, kernel, cotangent), both_s),
    }


def torch_calls(x: np.ndarray, kernel: np.ndarray) -> dict:
    """The same in torch, channels last."""
    import torch
    import torch.nn.functional as F

    x = torch.from_numpy(x.transpose(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last).requires_grad_()
    kernel = torch.from_numpy(kernel.transpose(3, 2, 0, 1)).contiguous(memory_format=torch.channels_last)
    kernel.requires_grad_()

    def forward():
        with torch.no_grad():
            F.conv2d(x, kernel, padding=1, groups=GROUPS)

    def both():
        y = F.conv2d(x, kernel, padding=1, groups=GROUPS)
        torch.autograd.grad(y, (x, kernel), torch.ones_like(y))

    return {'forward': (forward, 0), 'forward + backward': (both, 0)}


def measure(contenders: dict, batch: int, channels: int, size: int, runs: int) -> list[list]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, size, size, channels)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, channels // GROUPS, channels)).astype(np.float32)
    made = {name: make(x, kernel) for name, make in contenders.items()}
    rows = []
    for mode in ('forward', 'forward + backward'):
        times = interleave({name: calls[mode][0] for name, calls in made.items()}, runs)
        base, *_, ours = [times[name] for name in contenders if name != 'torch']
        ratio = f'{base.median / ours.median:.1f}'
        seconds = [f'{calls[mode][1]:.2f}' for name, calls in made.items() if name != 'torch']
        rows.append([f'C{channels} @{size}', mode, *times.values(), ratio, *seconds])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--runs', type=int, default=5)
    parser.add_argument('--first', action='store_true', help='only 128 channels at 56x56')
    parser.add_argument('--widths', action='store_true', help='compare widths of the merged blocks')
    parser.add_argument('--no-torch', action='store_true', help='leave torch out')
    args = parser.parse_args()
    flaxzoo.keep_memory()

    if args.widths:
        merged = {f'{width} channels': partial(merged_conv, channels=width) for width in (64, 32, 8)}
        merged |= {'8 channels, columns in pairs': paired_inference, '16 channels': merged_conv}
        contenders = {name: partial(calls_for, partial(conv, geometry=GEOMETRY)) for name, conv in merged.items()}
        last = '64 / 16'
    else:
        contenders = {
            'native': partial(calls_for, partial(native_conv, geometry=GEOMETRY)),
            'flaxzoo': partial(calls_for, partial(conv2d, geometry=GEOMETRY)),
        }
        last = 'native / flaxzoo'
    if not args.no_torch:
        contenders['torch'] = torch_calls
    rows = []
    for channels, size in STAGES[: 1 if args.first else None]:
        rows += measure(contenders, args.batch, channels, size, args.runs)
    print(f'{jax.devices()[0].device_kind}, batch {args.batch}, {GROUPS} groups, float32, ms')
    compilations = [f'{name} compiled, s' for name in contenders if name != 'torch']
    print(table(['shape', 'mode', *contenders, last, *compilations], rows))


if __name__ == '__main__':
    main()
