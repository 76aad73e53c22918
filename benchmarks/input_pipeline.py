"""Training images from JPEG files to batches: flaxzoo's pipeline beside a torch DataLoader on the same files.

    python -m benchmarks.input_pipeline                        # 0, 1 and 2 workers
    python -m benchmarks.input_pipeline --workers 8 16 --batch 256
    python -m benchmarks.input_pipeline --widths 2000          # of the photographs, 4 by 3

The files are made up: 500x375 pixels and about 100 KB, much like ImageNet's, and larger ones. flaxzoo's side is what
`python -m train` runs for configs/imagenet_resnet50.py with `folder:PATH`, up to the batch on the host, uint8 (N, 224,
224, 3); its flip belongs to the compiled training step. torch's side is torchvision's recipe up to the same point,
ImageFolder, RandomResizedCrop(224), RandomHorizontalFlip and PILToTensor: uint8 (N, 3, 224, 224). The process keeps its
memory, as the training program's does, and workers of either do not. Without workers torch loads in the thread that
asks, and flaxzoo in two threads beside it; with workers each has so many processes, and flaxzoo's have two threads
each.

Prints images per second, medians with the range. The two take turns, A B A B; each run starts its workers anew and
counts the batches that follow the first ones.
"""

import argparse
import contextlib
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import flaxzoo
from benchmarks.timing import Timing, table
from configs import imagenet_resnet50
from train.data import open_dataset
from train.data.pipeline import Rows, train_batches

CLASSES = 4
FILES = 256  # to learn from
WARM_UP = 3  # batches a worker


def photograph(rng: np.random.Generator, width: int) -> Image.Image:
    """Colours that vary at every scale, the less the finer, and a sensor's noise; 4 by 3."""
    height = width * 3 // 4
    pixels = np.zeros((height, width, 3))
    for octave in range(1, 9):
        coarse = rng.normal(scale=0.75**octave, size=(3, 3 * 2**octave // 4 + 1, 2**octave)).astype(np.float32)
        fine = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in coarse]
        pixels += np.stack(fine, -1)
    pixels = 120 + 55 * pixels / pixels.std() + rng.normal(scale=15, size=(height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_photographs(root: Path, count: int, width: int = 500, seed: int = 0) -> None:
    """`count` JPEG files of quality 90 below root/train/CLASS, and one a class below root/val/CLASS."""
    rng = np.random.default_rng(seed)
    for i in range(count + CLASSES):
        path = root / ('train' if i < count else 'val') / str(i % CLASSES) / f'{i}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(rng, width).save(path, quality=90)


@contextlib.contextmanager
def flaxzoo_batches(root: Path, workers: int, batch: int) -> Iterator[Iterator[Any]]:
    """An endless iterator over flaxzoo's training batches."""
    config = imagenet_resnet50.get_config()
    config.dataset, config.num_workers, config.batch_size = f'folder:{root}', workers, batch
    with contextlib.closing(train_batches(open_dataset(config).train, config, Rows(batch), 0, 10**6)) as batches:
        yield batches


@contextlib.contextmanager
def torch_batches(root: Path, workers: int, batch: int) -> Iterator[Iterator[Any]]:
    """An endless iterator over torch's training batches."""
    import torch.utils.data
    from torchvision import datasets, transforms

    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    images = datasets.ImageFolder(str(root / 'train'), transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(
        images,
        batch,
        sampler=torch.utils.data.RandomSampler(images, num_samples=batch * 10**4),
        num_workers=workers,
        multiprocessing_context='spawn' if workers else None,
    )
    yield iter(loader)


def images_per_second(batches: contextlib.AbstractContextManager, warm_up: int, count: int, batch: int) -> float:
    """The rate of `count` batches of `batch` images after the first `warm_up`."""
    with batches as iterator:
        for _ in itertools.islice(iterator, warm_up):
            pass
        start = time.perf_counter()
        for _ in itertools.islice(iterator, count):
            pass
        return count * batch / (time.perf_counter() - start)


def measure(root: Path, workers: int, batch: int, count: int, runs: int) -> dict[str, Timing]:
    """Images per second of `count` batches with so many workers; flaxzoo and torch take turns."""
    contenders = {'flaxzoo': flaxzoo_batches, 'torch': torch_batches}
    warm_up = WARM_UP * max(1, workers)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, batches in contenders.items():
            rates[name].append(images_per_second(batches(root, workers, batch), warm_up, count, batch))
    return {name: Timing(statistics.median(r), min(r), max(r)) for name, r in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=1024, help='counted in a run')
    parser.add_argument('--widths', type=int, nargs='+', default=[500, 1000], help='of the photographs, in pixels')
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--runs', type=int, default=5)
    args = parser.parse_args()

    flaxzoo.keep_memory()
    rows = []
    for width in args.widths:
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            write_photographs(root, FILES, width)
            size = statistics.mean(path.stat().st_size for path in root.rglob('*.jpg'))
            for workers in args.workers:
                rates = measure(root, workers, args.batch, args.images // args.batch, args.runs)
                ratio = f'{rates["flaxzoo"].median / rates["torch"].median:.2f}'
                rows.append([f'{width}x{width * 3 // 4}, {size / 1e3:.0f} KB', workers, *rates.values(), ratio])
    print(f'{os.cpu_count()} CPU cores, batch {args.batch}, images/s')
    print(table(['files', 'workers', 'flaxzoo', 'torch', 'flaxzoo / torch'], rows))


if __name__ == '__main__':
    main()
