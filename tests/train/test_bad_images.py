"""Files that are no images: all named before a run, or left out; damaged pixels are met later, and stood in for."""

import logging
import os
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from train.data import open_dataset
from train.data.check import SHOWN, checked
from train.data.folder import Files
from train.data.pipeline import Rows, epoch_order, eval_batches, readable, train_batches
from train.data.source import BadImageError, DataError
from train.evaluate import evaluate
from train.experiment import build
from train.parallel import MeshParallel
from train.predict import main as predict
from train.step import make_eval_step


@pytest.fixture
def config(tiny_config, photographs: Path):
    """Photographs at 16 pixels."""
    tiny_config.dataset, tiny_config.image_size, tiny_config.crop = f'folder:{photographs}', 16, 'resized'
    return tiny_config


def damage(path: Path) -> None:
    """A good header, and half of the pixels."""
    path.write_bytes(path.read_bytes()[:-300])


def stopped(config, photographs: Path, count: int) -> str:
    for number in range(count):
        (photographs / 'red' / f'bad{number:03}.jpg').write_bytes(b'<html>')
    with pytest.raises(DataError) as error:
        checked(open_dataset(config), 'fail')
    return str(error.value)


def test_all_bad_headers_are_named_at_once(config, photographs: Path):
    message = stopped(config, photographs, 3)
    assert message.startswith('3 of 33 image files cannot be read; remove them, or config.bad_images')
    assert all(f'bad{number:03}.jpg is not a readable image: it is none of JPEG' in message for number in range(3))


def test_a_thousand_bad_headers_are_counted(config, photographs: Path):
    message = stopped(config, photographs, 1000)
    assert message.startswith('1,000 of 1,030 image files')
    assert message.count('readable') == SHOWN


def test_a_run_does_not_begin_with_bad_headers(config, photographs: Path):
    (photographs / 'red' / '4.jpg').write_bytes(b'')
    with pytest.raises(
        DataError, match=r'1 of 30 image files cannot be read; .*\n.*4\.jpg is not a readable image: it is empty'
    ):
        build(config)


def test_bad_headers_are_left_out_and_the_others_keep_their_order(config, photographs: Path, caplog):
    before = open_dataset(config)
    names = [before.train.names[3], before.train.names[11], before.held_out.names[1]]
    for name in names:
        (photographs / name).write_bytes(b'')
    with caplog.at_level(logging.WARNING):
        data = checked(open_dataset(config), 'skip')
    assert '3 of 30 image files cannot be read and are left out:\n' in caplog.text
    assert [fault.partition(' ')[0] for fault in data.bad] == [str(photographs / name) for name in names]
    for old, new in ((before.train, data.train), (before.held_out, data.held_out)):
        assert list(new.names) == [name for name in old.names if name not in names]
        assert [new.labels[i] for i in range(len(new))] == [
            old.labels[i] for i in range(len(old)) if old.names[i] not in names
        ]


def test_a_class_without_a_good_header_is_an_error_in_any_case(config, photographs: Path):
    data = open_dataset(config)
    for name in data.train.names[:9]:
        (photographs / name).write_bytes(b'')
    with pytest.raises(DataError, match="no image of class 'blue' is left to learn from"):
        checked(open_dataset(config), 'skip')
    for name in data.held_out.names:
        (photographs / name).write_bytes(b'')
    with pytest.raises(DataError, match='none of the 3 images below'):
        checked(open_dataset(config), 'skip')


def test_a_file_that_must_not_be_read_is_among_the_bad(config, photographs: Path, monkeypatch):
    path = photographs / 'red' / '4.jpg'
    read_bytes, opening = Path.read_bytes, Path.open

    def refusing(method):
        def wrapped(self, *arguments, **options):
            if self == path:
                raise PermissionError(13, 'Permission denied', str(path))
            return method(self, *arguments, **options)

        return wrapped

    monkeypatch.setattr(Path, 'read_bytes', refusing(read_bytes))
    monkeypatch.setattr(Path, 'open', refusing(opening))
    data = open_dataset(config)
    source = data.train if 'red/4.jpg' in data.train.names else data.held_out
    with pytest.raises(BadImageError, match=r'4\.jpg cannot be read: Permission denied'):
        source[source.names.index('red/4.jpg')]
    with pytest.raises(
        DataError, match=r'1 of 30 image files cannot be read; .*\n.*4\.jpg cannot be read: Permission denied'
    ):
        checked(data, 'fail')


@pytest.mark.parametrize('crop', ['resized', 'none'])
def test_damaged_pixels_are_stood_in_for_by_the_next_image(config, crop: str, caplog):
    source, config.crop = open_dataset(config).train, crop
    whole = [batch for epoch in range(2) for batch in train_batches(source, config, Rows(27), epoch, epoch + 1)]
    bad = [4, 5, 26]  # 6 stands in for 4 and 5, and the first for the last
    for index in bad:
        damage(source.path(index))
    with pytest.raises(BadImageError, match=r"readable image: .*; config\.bad_images = 'skip' goes on"):
        next(train_batches(source, config, Rows(27), 0, 1))
    config.bad_images = 'skip'
    with caplog.at_level(logging.WARNING):
        skipped = [next(train_batches(source, config, Rows(27), epoch, epoch + 1)) for epoch in range(2)]
    for epoch in range(2):
        for row, index in enumerate(epoch_order(0, epoch, 27)):
            stand_in = {4: 6, 5: 6, 26: 0}.get(int(index), int(index))
            assert skipped[epoch]['label'][row] == source.labels[stand_in]
            if index not in bad:
                np.testing.assert_array_equal(skipped[epoch]['image'][row], whole[epoch]['image'][row])
    # A crop of what comes before the damage is read; otherwise each bad one is named once.
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(set(said)) <= len(bad)
    assert crop == 'resized' or len(said) == len(bad)


def test_workers_and_a_later_start_give_the_same_stand_ins(config):
    source, config.bad_images, config.crop = open_dataset(config).train, 'skip', 'none'
    for index in (1, 8, 9, 20):
        damage(source.path(index))
    alone = list(train_batches(source, config, Rows(9), 0, 6))
    config.num_workers = 2
    batches = train_batches(source, config, Rows(9), 2, 6)
    for one, other in zip(alone[2:], batches, strict=True):
        np.testing.assert_array_equal(one['image'], other['image'])
        np.testing.assert_array_equal(one['label'], other['label'])
    batches.close()


class First(nn.Module):
    """Says that every image is of the first class."""

    @nn.compact
    def __call__(self, x: jnp.ndarray, train: bool = False) -> jnp.ndarray:
        return jnp.zeros((len(x), 3))


def test_a_held_out_image_that_cannot_be_read_does_not_count(config, caplog):
    source, config.bad_images, config.batch_size = open_dataset(config).train, 'skip', 8
    bad = [0, 13, 26]
    for index in bad:
        damage(source.path(index))
    labels = np.concatenate([batch['label'] for batch in eval_batches(source, config, Rows(8))])
    assert [int(i) for i in np.flatnonzero(labels == -1)] == bad
    parallel = MeshParallel()
    step = parallel.compile(make_eval_step(First(), lambda images: images.astype(jnp.float32)))
    with caplog.at_level(logging.WARNING):
        outcome = evaluate(step, {}, source, config, parallel)
    assert '3 of 27 held-out images cannot be read and do not count' in caplog.text
    good = [index for index in range(27) if index not in bad]
    assert outcome.index.tolist() == good
    assert outcome.label.tolist() == [source.labels[index] for index in good]
    assert outcome.metrics['accuracy'] == np.mean([source.labels[index] == 0 for index in good])


def test_a_bad_first_image_does_not_hide_the_shape(config):
    held_out = open_dataset(config).held_out
    damage(held_out.path(0))
    config.bad_images = 'skip'
    assert build(config).image_shape == (16, 16, 3)


def test_images_that_are_all_bad_end_the_search(config):
    source = open_dataset(config).train
    for index in range(len(source)):
        damage(source.path(index))
    with pytest.raises(DataError, match=r'none of 27 images in a row can be read; the last: .*blue/3\.jpg is not'):
        readable(source, 3, skip=True)


def test_an_image_that_is_gone_is_no_bad_image(config):
    source = open_dataset(config).train
    source.path(3).unlink()
    with pytest.raises(DataError, match='cannot be read: No such file') as error:
        readable(source, 3, skip=True)
    assert not isinstance(error.value, BadImageError)


def test_photographs_are_turned_if_the_config_says_so(config, photographs: Path):
    from PIL import Image

    exif = Image.Exif()
    exif[274] = 6
    path = photographs / 'red' / '4.jpg'
    Image.open(path).save(path, exif=exif, quality=95)
    shapes = []
    for config.exif_orientation in (False, True):
        data = open_dataset(config)
        source: Files = data.train if 'red/4.jpg' in data.train.names else data.held_out
        index = source.names.index('red/4.jpg')
        shapes.append(source[index]['image'].shape)
        view = source.read(index, lambda image, mode: np.asarray(image.convert(mode)))
        np.testing.assert_array_equal(view['image'], source[index]['image'])
    assert shapes[0] == (shapes[1][1], shapes[1][0], 3)


def test_prediction_names_what_is_no_image(monkeypatch, tmp_path: Path):
    class Classifier:
        step, image_shape = 1, (16, 16, 3)

        def __init__(self, *_):
            from train.config import default_config

            self.config = default_config()

    monkeypatch.setattr('train.predict.Classifier', Classifier)
    (tmp_path / 'x.jpg').write_bytes(b'<html>')
    os.mkfifo(tmp_path / 'pipe.jpg')
    for name, reason in (('x.jpg', 'none of JPEG'), ('pipe.jpg', 'no regular file'), ('none.jpg', 'No such file')):
        with pytest.raises(DataError, match=rf'{name} .*{reason}'):
            predict(['--workdir', 'w', str(tmp_path / name)])
