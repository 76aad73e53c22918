import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.data import open_dataset
from train.data.check import checked
from train.data.crop import resized_crop
from train.data.source import DataError

from .conftest import finish


@pytest.fixture
def open_named(tiny_config):
    """open_named('digits') -> Dataset."""

    def open_named(name: str, data_dir: str = ''):
        tiny_config.dataset, tiny_config.data_dir = name, data_dir
        return open_dataset(tiny_config)

    return open_named


def test_digits_are_split_by_class_and_use_the_whole_range(open_named):
    data = open_named('digits')
    assert (len(data.train), len(data.held_out)) == (1433, 364)
    assert data.class_names == tuple('0123456789')
    example = data.train[0]
    assert example['image'].shape == (8, 8, 1)
    assert example['image'].dtype == np.uint8
    assert max(data.train[i]['image'].max() for i in range(100)) == 255
    held_out = np.bincount([data.held_out[i]['label'] for i in range(len(data.held_out))])
    assert held_out.min() >= 35
    train = {data.train[i]['image'].tobytes() for i in range(len(data.train))}
    assert sum(data.held_out[i]['image'].tobytes() in train for i in range(len(data.held_out))) == 0


def test_a_folder_of_classes_is_split_the_same_way_each_time(open_named, photographs: Path):
    (photographs / 'red' / 'notes.txt').write_text('not an image')
    data = open_named(f'folder:{photographs}')
    assert data.class_names == ('blue', 'green', 'red')
    assert (len(data.train), len(data.held_out)) == (27, 3)
    assert data == open_named(f'folder:{photographs}')
    assert not set(data.train.names) & set(data.held_out.names)
    for i in range(27):
        example = data.train[i]
        assert example['image'][..., 2 - example['label']].mean() > 140


def test_a_folder_with_train_and_val_is_taken_as_it_is(open_named, photographs: Path):
    for name in ('train', 'val'):
        for colour in ('blue', 'green'):
            (photographs / 'split' / name / colour).mkdir(parents=True)
            Image.open(photographs / colour / '0.jpg').save(photographs / 'split' / name / colour / 'a.PNG')
    data = open_named(f'folder:{photographs / "split"}')
    assert (len(data.train), len(data.held_out), data.class_names) == (2, 2, ('blue', 'green'))
    (photographs / 'split' / 'val' / 'green').rename(photographs / 'split' / 'val' / 'gren')
    with pytest.raises(DataError, match='different classes: green, gren'):
        open_named(f'folder:{photographs / "split"}')


def test_what_is_wrong_with_a_folder_is_named(open_named, photographs: Path):
    with pytest.raises(DataError, match=re.escape(f'there is no directory {photographs / "birds"}')):
        open_named(f'folder:{photographs / "birds"}')
    with pytest.raises(DataError, match='holds no class directories'):
        open_named(f'folder:{photographs / "red"}')
    (photographs / 'white').mkdir()
    with pytest.raises(DataError, match=r'white holds no image \(\.jpg, \.jpeg, \.png, .*\.webp\)'):
        open_named(f'folder:{photographs}')
    (photographs / 'white' / 'one.jpg').write_bytes((photographs / 'red' / '0.jpg').read_bytes())
    with pytest.raises(DataError, match="class 'white' has one image"):
        open_named(f'folder:{photographs}')


def test_a_broken_image_is_named(open_named, photographs: Path):
    path = photographs / 'red' / '4.jpg'
    path.write_bytes(path.read_bytes()[:200])
    data = open_named(f'folder:{photographs}')
    sources = [data.train, data.held_out]
    source, index = next((s, s.names.index('red/4.jpg')) for s in sources if 'red/4.jpg' in s.names)
    with pytest.raises(DataError, match=re.escape(f'{path} is not a readable image')):
        source[index]


def test_a_view_takes_no_more_of_a_file_than_it_needs(open_named, photographs: Path):
    data = open_named(f'folder:{photographs}')
    path = data.train.path(0)
    path.write_bytes(path.read_bytes()[:-200])  # all of the header, not all of the pixels

    def size_alone(image: Image.Image, mode: str) -> np.ndarray:
        return np.full((1, 1, len(mode)), image.width, np.uint8)

    example = data.train.read(0, size_alone)
    assert 20 <= example['image'][0, 0, 0] < 40
    assert example['label'] == 0
    with pytest.raises(DataError, match=re.escape(f'{path} is not a readable image')):
        data.train.read(0, lambda image, mode: resized_crop(image, mode, (0, 0, *image.size), 8))


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('digit', 'did you mean digits'),
        ('folder:', 'digits, folder:PATH or tfds:NAME'),
        ('tfds:no_such_set', "knows no data set 'no_such_set'"),
    ],
)
def test_an_unknown_data_set_is_named(open_named, tmp_path: Path, name: str, message: str):
    with pytest.raises(DataError, match=message):
        open_named(name, str(tmp_path))


def test_tfds_reads_array_record_without_tensorflow(open_named, start, tmp_path: Path):
    finish(start('-W', 'default', str(Path(__file__).with_name('squares.py')), str(tmp_path)))
    data = open_named('tfds:squares', str(tmp_path))
    assert data.identity() == {
        'kind': 'tfds:squares/1.0.0',
        'class_names': ['dark', 'light'],
        'train': {'images': 12},
        'held_out': {'images': 5},
    }
    assert checked(data, 'fail') is data
    assert data.class_names == ('dark', 'light')
    assert (len(data.train), len(data.held_out)) == (12, 5)
    for source in (data.train, data.held_out):
        for i in range(len(source)):
            example = source[i]
            assert example['image'].shape[1:] == (7, 3)
            assert (example['image'] == 200 * example['label']).all()
            width, height = example['image'].shape[1::-1]
            cropped = source.read(i, lambda image, mode, box=(0, 0, width, height): resized_crop(image, mode, box, 5))
            np.testing.assert_array_equal(cropped['image'], np.full((5, 5, 3), 200 * example['label']))
            assert cropped['label'] == example['label']


def test_a_tfds_set_that_is_not_prepared_says_how(open_named, tmp_path: Path):
    with pytest.raises(DataError, match=r"tfds:cifar10 is not prepared in .*builder\('cifar10'.*download_and_prepare"):
        open_named('tfds:cifar10', str(tmp_path))
