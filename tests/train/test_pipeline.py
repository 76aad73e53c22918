import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.data import open_dataset
from train.data.crop import random_crop_box, resized_centre, resized_crop
from train.data.digits import Arrays
from train.data.pipeline import Rows, epoch_order, eval_batches, train_batches
from train.data.source import DataError


def numbered(count: int, size: int = 4) -> Arrays:
    """Images of one value each: image i has label i."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, size, size, 1))
    return Arrays(images, np.arange(count))


def labels(batches) -> np.ndarray:
    out = [batch['label'] for batch in batches]
    batches.close()
    return np.concatenate(out)


def test_every_epoch_is_a_new_order_of_all_images(tiny_config):
    order = labels(train_batches(numbered(30), tiny_config, Rows(7), 0, 13))[:90].reshape(3, 30)
    assert (np.sort(order) == np.arange(30)).all()
    assert len({tuple(epoch) for epoch in order}) == 3
    tiny_config.seed = 1
    assert (labels(train_batches(numbered(30), tiny_config, Rows(7), 0, 4))[:28] != order.ravel()[:28]).any()


def test_image_and_label_stay_together(tiny_config):
    for batch in train_batches(numbered(30), tiny_config, Rows(7), 0, 5):
        assert batch['image'].dtype == np.uint8
        assert (batch['image'][:, 0, 0, 0] == batch['label']).all()


def test_batches_are_a_function_of_seed_and_step(tiny_config):
    whole = labels(train_batches(numbered(30), tiny_config, Rows(8), 0, 12)).reshape(12, 8)
    later = labels(train_batches(numbered(30), tiny_config, Rows(8), 5, 12)).reshape(7, 8)
    np.testing.assert_array_equal(later, whole[5:])


def test_processes_share_the_rows_of_the_same_batch(tiny_config):
    whole = labels(train_batches(numbered(30), tiny_config, Rows(8), 0, 6)).reshape(6, 2, 4)
    for index in range(2):
        part = labels(train_batches(numbered(30), tiny_config, Rows(8, index, 2), 0, 6)).reshape(6, 4)
        np.testing.assert_array_equal(part, whole[:, index])


def test_workers_do_not_change_the_batches(tiny_config, photographs: Path):
    tiny_config.dataset, tiny_config.image_size, tiny_config.crop = f'folder:{photographs}', 16, 'resized'
    source = open_dataset(tiny_config).train
    runs = []
    for tiny_config.num_workers in (0, 2):
        batches = train_batches(source, tiny_config, Rows(8), 3, 9)
        runs.append(list(batches))
        batches.close()
    assert len(runs[0]) == len(runs[1]) == 6
    for alone, shared in zip(*runs, strict=True):
        np.testing.assert_array_equal(alone['image'], shared['image'])
        np.testing.assert_array_equal(alone['label'], shared['label'])


def test_a_broken_image_is_named_from_a_worker_process(tiny_config, photographs: Path):
    path = photographs / 'red' / '4.jpg'
    path.write_bytes(b'no image')
    tiny_config.dataset, tiny_config.image_size, tiny_config.num_workers = f'folder:{photographs}', 16, 1
    data = open_dataset(tiny_config)
    source = data.train if 'red/4.jpg' in data.train.names else data.held_out
    with pytest.raises(DataError, match=r'4\.jpg is not a readable image'):
        list(eval_batches(source, tiny_config, Rows(30)))


def test_each_image_of_each_epoch_is_cropped_differently_but_repeatably(tiny_config):
    rng = np.random.default_rng(0)
    source = Arrays(rng.integers(0, 255, (2, 40, 40, 3), dtype=np.uint8), np.arange(2))
    tiny_config.image_size, tiny_config.crop = 16, 'resized'
    first, again = (list(train_batches(source, tiny_config, Rows(2), 0, 3)) for _ in range(2))
    crops = [image.tobytes() for batch in first for image in batch['image']]
    assert len(set(crops)) == 6
    assert crops == [image.tobytes() for batch in again for image in batch['image']]


def test_a_crop_is_a_function_of_seed_and_place(tiny_config, photographs: Path):
    # As epoch_order: a saved run goes on elsewhere with the same crops.
    tiny_config.dataset, tiny_config.image_size, tiny_config.crop = f'folder:{photographs}', 16, 'resized'
    tiny_config.seed = 5
    source = open_dataset(tiny_config).train
    (batch,) = train_batches(source, tiny_config, Rows(8), 3, 4)
    for row in range(8):
        place = 3 * 8 + row
        index = epoch_order(5, place // 27, 27)[place % 27]
        rng = random.Random(f'5 {place}')
        with Image.open(source.path(index)) as image:
            box = random_crop_box(image.height, image.width, tiny_config.crop_scale, rng)
            np.testing.assert_array_equal(batch['image'][row], resized_crop(image, 'RGB', box, 16))
        assert batch['label'][row] == source.labels[index]


@pytest.mark.parametrize('resize', [0, 20])
def test_images_that_are_not_cropped_at_random_are_resized_whole(tiny_config, photographs: Path, resize: int):
    tiny_config.dataset, tiny_config.image_size = f'folder:{photographs}', 16
    tiny_config.eval_resize = resize
    source = open_dataset(tiny_config).train
    expected = []
    for index in range(len(source)):
        with Image.open(source.path(index)) as image:
            expected.append(resized_centre(image, 'RGB', 16, resize or 16, 'bilinear'))
    (held_out,) = eval_batches(source, tiny_config, Rows(27))
    np.testing.assert_array_equal(held_out['image'], expected)
    (trained,) = train_batches(source, tiny_config, Rows(27), 0, 1)
    np.testing.assert_array_equal(trained['image'], np.stack(expected)[epoch_order(0, 0, 27)])


def test_a_crop_larger_than_the_resized_image_is_refused(tiny_config):
    tiny_config.image_size, tiny_config.eval_resize = 32, 24
    with pytest.raises(DataError, match='a crop of 32 pixels does not fit an image resized to 24'):
        eval_batches(numbered(3), tiny_config, Rows(3))


@pytest.mark.parametrize(('count', 'size', 'processes'), [(10, 4, 1), (10, 4, 2), (9, 8, 4), (3, 8, 4), (8, 8, 1)])
def test_evaluation_has_every_image_once_in_order(tiny_config, count: int, size: int, processes: int):
    parts = [list(eval_batches(numbered(count), tiny_config, Rows(size, i, processes))) for i in range(processes)]
    rows = [np.concatenate([part[b]['label'] for part in parts]) for b in range(len(parts[0]))]
    images = [np.concatenate([part[b]['image'] for part in parts]) for b in range(len(parts[0]))]
    assert {len(row) for row in rows} == {size}
    np.testing.assert_array_equal(np.concatenate(rows)[:count], np.arange(count))
    np.testing.assert_array_equal(np.concatenate(images)[:count, 0, 0, 0], np.arange(count))
    assert not np.concatenate(images)[count:].any()


def test_images_of_several_sizes_need_an_image_size(tiny_config, photographs: Path):
    tiny_config.dataset = f'folder:{photographs}'
    source = open_dataset(tiny_config).train
    with pytest.raises(DataError, match=r'images differ in size .*set config\.image_size'):
        list(train_batches(source, tiny_config, Rows(8), 0, 2))


def test_the_order_is_pinned():
    # A saved run resumes on another machine and with other versions: this must not change.
    assert epoch_order(0, 0, 8).tolist() == [2, 4, 3, 6, 5, 0, 1, 7]
