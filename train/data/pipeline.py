"""Batches of images as a function of (seed, step) alone, loaded ahead by Grain.

Training is one endless stream: epoch after epoch of the images, each in an order of its own. Batch `step` is the
part of the stream from `step * batch_size`, so a checkpoint needs to hold nothing but the step, any number of workers
gives the same batches, and each of several processes takes its own rows of the same global batch.
"""

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator

import grain
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from train.augment import random_crop_box, resize_and_crop, resized_crop
from train.data.source import DataError, Source, whole
from train.data.workers import watched

Batch = dict[str, np.ndarray]
Transform = Callable[[np.ndarray], np.ndarray]
PlacedView = Callable[[Image.Image, str, int], np.ndarray]
"""A source's View of the image at a place in the stream."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a global batch of `batch_size` that process `index` of `count` feeds to its devices."""

    batch_size: int
    index: int = 0
    count: int = 1

    @property
    def local(self) -> range:
        size = self.batch_size // self.count
        return range(self.index * size, (self.index + 1) * size)


@dataclasses.dataclass(frozen=True)
class TrainBatch:
    """Step -> {'image': uint8 (rows, H, W, C), 'label': int32 (rows,)}."""

    source: Source
    rows: Rows
    seed: int
    view: PlacedView

    def __call__(self, step: int) -> Batch:
        places = [step * self.rows.batch_size + row for row in self.rows.local]
        examples = []
        for place in places:
            epoch, position = divmod(place, len(self.source))
            index = int(epoch_order(self.seed, epoch, len(self.source))[position])
            examples.append(self.source.read(index, functools.partial(self.view, place=place)))
        return _stack([(example['image'], example['label']) for example in examples])


@dataclasses.dataclass(frozen=True)
class EvalBatch:
    """Number of the batch -> its images in order; the last one is filled up with black images of label 0."""

    source: Source
    rows: Rows
    transform: Transform

    def __call__(self, number: int) -> Batch:
        start = number * self.rows.batch_size
        indices = [start + row for row in self.rows.local if start + row < len(self.source)]
        examples = [self.source[i] for i in indices] or [self.source[0]]
        batch = _stack([(self.transform(e['image']), e['label']) for e in examples])
        batch = {name: array[: len(indices)] for name, array in batch.items()}
        missing = len(self.rows.local) - len(indices)
        return {n: np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1)) for n, a in batch.items()}


def train_batches(source: Source, config: ConfigDict, rows: Rows, start: int, stop: int) -> Iterator[Batch]:
    """The batches of steps `start` to `stop - 1`; close() the iterator when done with it."""
    load = TrainBatch(source, rows, config.seed, train_view(config))
    return _load_ahead(load, range(start, stop), config.num_workers)


def eval_batches(source: Source, config: ConfigDict, rows: Rows) -> Iterator[Batch]:
    """Every image once, in order, in batches filled up to `rows.batch_size`."""
    load = EvalBatch(source, rows, eval_transform(config))
    return _load_ahead(load, range(-(-len(source) // rows.batch_size)), config.num_workers)


def train_view(config: ConfigDict) -> PlacedView:
    """What training sees of an image, of config.image_size; randomness is a function of (seed, place)."""
    if config.crop != 'resized':
        return functools.partial(_transformed, transform=eval_transform(config))
    return functools.partial(_random_crop, size=config.image_size, scale=config.crop_scale, seed=config.seed)


def eval_transform(config: ConfigDict) -> Transform:
    """Image -> the centre of the resized image, or the image as it is if image_size is 0."""
    size = config.image_size
    how = config.eval_interpolation or 'bilinear'
    return functools.partial(_centre_crop, size=size, resize=config.eval_resize or size, interpolation=how)


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The order of `length` images in an epoch: (length,)."""
    return np.random.default_rng((seed, epoch)).permutation(length)


def _random_crop(
    image: Image.Image, mode: str, place: int, size: int, scale: tuple[float, float], seed: int
) -> np.ndarray:
    # Python's generator is set up faster than numpy's, and a crop takes few numbers.
    box = random_crop_box(image.height, image.width, scale, random.Random(f'{seed} {place}'))
    return resized_crop(image, mode, box, size)


def _transformed(image: Image.Image, mode: str, place: int, transform: Transform) -> np.ndarray:
    return transform(whole(image, mode))


def _centre_crop(image: np.ndarray, size: int, resize: int, interpolation: str) -> np.ndarray:
    return resize_and_crop(image, size, resize, interpolation) if size else image


def _stack(examples: list[tuple[np.ndarray, int]]) -> Batch:
    sizes = sorted({image.shape for image, _ in examples})
    if len(sizes) > 1:
        raise DataError(f'images differ in size ({sizes[0]} and {sizes[-1]}): set config.image_size')
    return {
        'image': np.stack([image for image, _ in examples]),
        'label': np.array([label for _, label in examples], np.int32),
    }


def _load_ahead(load: Callable[[int], Batch], numbers: range, workers: int) -> Iterator[Batch]:
    """Calls `load` for each number in order, some batches ahead, in threads or in `workers` processes."""
    dataset = grain.MapDataset.range(numbers.start, numbers.stop).map(load)
    # Whole batches are elements here, so a few threads and a short buffer are enough (Grain's defaults are 16, 500).
    ahead = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    if not workers:
        return iter(ahead)
    # Grain reads absl's flags in its workers, and this program does not parse any.
    flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    return watched(lambda start: iter(ahead.mp_prefetch(options, start)))
