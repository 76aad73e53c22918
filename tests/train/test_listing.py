"""Which files of a directory are taken, in which order, and what is said of the others."""

import itertools
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from train.data.folder import open_folder
from train.data.source import DataError


def add(root: Path, *names: str) -> None:
    """Small images of these names, of any suffix."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (5, 4), 'red').save(root / name, 'PNG')


def names(root: Path) -> list[str]:
    data = open_folder(str(root))
    return sorted(itertools.chain(data.train.names, data.held_out.names))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of two files each."""
    add(tmp_path / 'set', 'cat/0.jpg', 'cat/1.JPEG', 'dog/a b.png', 'dog/é.png')
    return tmp_path / 'set'


def test_what_torchvision_takes_is_taken_in_its_order(root: Path, caplog):
    add(root / 'cat', *(f'x.{suffix}' for suffix in ('ppm', 'bmp', 'pgm', 'tif', 'tiff', 'webp', 'WebP')))
    add(root / 'cat', 'session/0.jpg', 'session/b/0.jpg', 'session-2/0.jpg', 'B/Z.jpg')
    for side in ('train', 'val'):
        (root / side).mkdir()
        for name in ('cat', 'dog'):
            (root / side / name).symlink_to(root / name)
    data = open_folder(str(root))
    theirs = ImageFolder(str(root / 'train'))
    assert [(str(data.train.path(i)), data.train.labels[i]) for i in range(len(data.train))] == theirs.samples
    assert list(data.class_names) == theirs.classes
    assert len(data.held_out) == len(theirs)
    for index in range(len(theirs)):
        np.testing.assert_array_equal(data.train[index]['image'], theirs[index][0])
    assert caplog.text == ''


def test_nested_directories_are_split_too(root: Path):
    add(root / 'cat', *(f'{session}/{i}.jpg' for session in 'ab' for i in range(10)))
    data = open_folder(str(root))
    cats = [name for name in data.held_out.names if name.startswith('cat')]
    assert len(cats) == 2  # a tenth of 22
    assert len({*data.train.names, *data.held_out.names}) == 24


def test_which_images_are_held_out_is_pinned(tmp_path: Path):
    """A run goes on with another version, so this must not change; nor does it where a class is called otherwise."""
    add(tmp_path / 'set', *(f'{name}/{i}.jpg' for name in ('cat', 'dog') for i in range(20)))
    held_out = open_folder(str(tmp_path / 'set')).held_out.names
    assert held_out == ('cat/0.jpg', 'cat/19.jpg', 'dog/0.jpg', 'dog/19.jpg')


def test_what_is_left_out_is_said_in_one_line(root: Path, caplog):
    add(root, 'cat/._0.jpg', '.git/x.jpg', 'beside.jpg')
    for name in ('cat/x.gif', 'cat/notes.txt', 'dog/.DS_Store'):
        (root / name).write_bytes(b'GIF89a')
    os.mkfifo(root / 'cat' / 'pipe.jpg')
    (root / 'cat' / 'gone.jpg').symlink_to(root / 'nothing.jpg')
    (root / 'cat' / 'circle.jpg').symlink_to(root / 'cat' / 'circle.jpg')
    (root / 'cat' / 'again').symlink_to(root / 'cat')
    (root / 'cat' / 'folder.jpg').mkdir()
    with caplog.at_level(logging.WARNING):
        assert names(root) == ['cat/0.jpg', 'cat/1.JPEG', 'dog/a b.png', 'dog/é.png']
    (record,) = caplog.records
    for words in (
        f'{root}: left out ',
        f'3 hidden (such as {root / ".git"})',
        f'1 beside the class directories (such as {root / "beside.jpg"})',
        '2 of other kinds (such as ',
        f'1 neither file nor directory (such as {root / "cat/pipe.jpg"})',
        '2 links that lead nowhere (such as ',
        f'1 links to a directory that was met before (such as {root / "cat/again"})',
    ):
        assert words in record.getMessage()


def test_links_to_files_and_directories_elsewhere_are_followed(root: Path, tmp_path: Path, caplog):
    add(tmp_path / 'elsewhere', 'more/0.jpg', 'one.png')
    (root / 'cat' / 'one.png').symlink_to(tmp_path / 'elsewhere/one.png')
    (root / 'cat' / 'linked').symlink_to(tmp_path / 'elsewhere/more')
    assert {'cat/one.png', 'cat/linked/0.jpg'} < set(names(root))
    assert caplog.text == ''


def test_names_may_hold_any_bytes(root: Path):
    name = b'\xe9\n.jpg'  # latin-1, and a line's end
    with open(os.path.join(os.fsencode(root), b'cat', name), 'wb') as file:
        file.write((root / 'cat/0.jpg').read_bytes())
    data = open_folder(str(root))
    assert os.fsdecode(b'cat/' + name) in {*data.train.names, *data.held_out.names}
    assert data.identity()['train']['images'] + data.identity()['held_out']['images'] == 5


def test_a_class_of_other_files_says_what_they_are(root: Path):
    (root / 'eel').mkdir()
    (root / 'eel' / 'x.gif').write_bytes(b'GIF89a')
    with pytest.raises(DataError, match=r'eel holds no image \(.*\); left out so far: 1 of other kinds .*x\.gif'):
        open_folder(str(root))


def test_a_directory_that_cannot_be_listed_is_named(root: Path, monkeypatch):
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith('dog'):
            raise PermissionError(13, 'Permission denied')
        return scandir(path)

    monkeypatch.setattr('train.data.listing.os.scandir', refusing)
    with pytest.raises(DataError, match=r'dog cannot be listed: Permission denied'):
        open_folder(str(root))
