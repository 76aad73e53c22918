"""Batches of images as a function of (seed, step) alone, loaded ahead by Grain.

Training is one endless stream: epoch after epoch of the images, each in an order of its own. Batch `step` is the
part of the stream from `step * batch_size`, so a checkpoint needs to hold nothing but the step, any number of workers
gives the same batches, and each of several processes takes its own rows of the same global batch.
"""

import dataclasses
import functools
import logging
import random
from collections.abc import Callable, Iterator

import grain
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from train.data.crop import random_crop_box, resized_centre, resized_crop
from train.data.source import BadImageError, DataError, Example, Source, View, as_image, whole
from train.data.workers import watched

logger = logging.getLogger('train')

Batch = dict[str, np.ndarray]
PlacedView = Callable[[Image.Image, str, int], np.ndarray]
"""A source's View of the image at a place in the stream."""

NOT_COUNTED = -1  # the label of what stands in for a held-out image that cannot be read
MOST_BAD = 1000  # images in a row; beyond that the fault is elsewhere


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
    skip: bool = False

    def __call__(self, step: int) -> Batch:
        places = [step * self.rows.batch_size + row for row in self.rows.local]
        examples = []
        for place in places:
            epoch, position = divmod(place, len(self.source))
            index = int(epoch_order(self.seed, epoch, len(self.source))[position])
            example, _ = readable(self.source, index, functools.partial(self.view, place=place), self.skip)
            examples.append(example)
        return _stack(examples)


@dataclasses.dataclass(frozen=True)
class EvalBatch:
    """Number of the batch -> its images in order; the last one is filled up with black images of label 0."""

    source: Source
    rows: Rows
    view: View
    skip: bool = False

    def __call__(self, number: int) -> Batch:
        start = number * self.rows.batch_size
        indices = [start + row for row in self.rows.local if start + row < len(self.source)]
        batch = _stack([self._example(i) for i in indices or [0]])
        batch = {name: array[: len(indices)] for name, array in batch.items()}
        missing = len(self.rows.local) - len(indices)
        return {n: np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1)) for n, a in batch.items()}

    def _example(self, index: int) -> Example:
        example, asked_for = readable(self.source, index, self.view, self.skip)
        return example if asked_for else {**example, 'label': NOT_COUNTED}


def readable(source: Source, index: int, view: View = whole, skip: bool = False) -> tuple[Example, bool]:
    """A view of the image at `index`, and True; or with `skip`, if it cannot be read, of the next that can, and False.

    What stands in for an image follows from the images alone, so it is the same in each process and when a run goes on.

    Raises:
      BadImageError: without `skip`, it cannot be read.
      DataError: nor can the many that follow; or an image is gone.
    """
    tries = min(len(source), MOST_BAD)
    for beyond in range(tries):
        try:
            return source.read((index + beyond) % len(source), view), beyond == 0
        except BadImageError as error:
            if not skip:
                raise BadImageError(f"{error}; config.bad_images = 'skip' goes on without such images") from error
            _say_once(f'{error}; the next image stands in for it')
            last = error
    raise DataError(f'none of {tries:,} images in a row can be read; the last: {last}')


@functools.lru_cache(maxsize=10_000)
def _say_once(message: str) -> None:
    logger.warning(message)


def train_batches(source: Source, config: ConfigDict, rows: Rows, start: int, stop: int) -> Iterator[Batch]:
    """The batches of steps `start` to `stop - 1`; close() the iterator when done with it."""
    load = TrainBatch(source, rows, config.seed, train_view(config), skips(config))
    return _load_ahead(load, range(start, stop), config.num_workers)


def eval_batches(source: Source, config: ConfigDict, rows: Rows) -> Iterator[Batch]:
    """Every image once, in order, in batches filled up to `rows.batch_size`."""
    load = EvalBatch(source, rows, eval_view(config), skips(config))
    return _load_ahead(load, range(-(-len(source) // rows.batch_size)), config.num_workers)


def skips(config: ConfigDict) -> bool:
    """Whether images that cannot be read are passed over."""
    return config.bad_images == 'skip'


def train_view(config: ConfigDict) -> PlacedView:
    """What training sees of an image, of config.image_size; randomness is a function of (seed, place)."""
    if config.crop != 'resized':
        return functools.partial(_anywhere, view=eval_view(config))
    return functools.partial(_random_crop, size=config.image_size, scale=config.crop_scale, seed=config.seed)


def eval_view(config: ConfigDict) -> View:
    """The centre of the resized image, or the image as it is if image_size is 0."""
    size, resize = config.image_size, config.eval_resize or config.image_size
    if not size:
        return whole
    if resize < size:
        raise DataError(f'a crop of {size} pixels does not fit an image resized to {resize}')
    interpolation = config.eval_interpolation or 'bilinear'
    return functools.partial(resized_centre, size=size, resize=resize, interpolation=interpolation)


def eval_transform(config: ConfigDict) -> Callable[[np.ndarray], np.ndarray]:
    """The same of a uint8 array (H, W, C)."""
    return functools.partial(_of_array, view=eval_view(config))


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


def _anywhere(image: Image.Image, mode: str, place: int, view: View) -> np.ndarray:
    return view(image, mode)


def _of_array(image: np.ndarray, view: View) -> np.ndarray:
    return view(*as_image(image))


def _stack(examples: list[Example]) -> Batch:
    sizes = sorted({example['image'].shape for example in examples})
    if len(sizes) > 1:
        raise DataError(f'images differ in size ({sizes[0]} and {sizes[-1]}): set config.image_size')
    return {
        'image': np.stack([example['image'] for example in examples]),
        'label': np.array([example['label'] for example in examples], np.int32),
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
