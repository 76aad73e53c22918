"""A run goes on with the images that it began with, wherever they lie, and says what is different about others."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors

from train.config import differences as config_differences
from train.config import to_json
from train.data import identity, open_dataset
from train.data.check import checked
from train.data.digits import Arrays, open_digits
from train.data.folder import open_folder
from train.data.source import DataError, Dataset
from train.loop import train


@pytest.fixture
def begun(photographs: Path, tmp_path: Path) -> Path:
    """The directory of a run that began with the photographs."""
    (tmp_path / 'run').mkdir()
    identity.record(tmp_path / 'run', open_folder(str(photographs)))
    return tmp_path / 'run'


def go_on(run: Path, data: Dataset) -> None:
    """As train.loop does."""
    identity.check(run, data)
    identity.record(run, data)


def refused(run: Path, photographs: Path) -> str:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(DataError) as error:
        go_on(run, open_folder(str(photographs)))
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    return str(error.value)


def add(photographs: Path, *names: str) -> None:
    for name in names:
        (photographs / name).parent.mkdir(exist_ok=True)
        shutil.copy(photographs / 'red/0.jpg', photographs / name)


def test_the_record_is_json_that_can_be_read(begun: Path):
    record = json.loads((begun / 'data.json').read_text())
    assert record['kind'] == 'folder'
    assert record['class_names'] == ['blue', 'green', 'red']
    assert (record['train']['images'], record['held_out']['images']) == (27, 3)
    files = json.loads((begun / 'data_files.json').read_text())['classes']
    assert sum(map(len, files.values())) == 30
    assert not list(begun.glob('*.tmp'))


def test_the_same_images_elsewhere_are_the_same(begun: Path, photographs: Path, tmp_path: Path, tiny_config):
    go_on(begun, open_folder(str(photographs)))
    go_on(begun, open_folder(shutil.copytree(photographs, tmp_path / 'moved')))
    here, there = tiny_config, tiny_config.copy_and_resolve_references()
    here.dataset, there.dataset, there.data_dir = f'folder:{photographs}', f'folder:{tmp_path / "moved"}', 'x'
    assert config_differences(to_json(here), to_json(there)) == []


CHANGES = {
    'renamed': (lambda p: (p / 'blue').rename(p / 'zblue'), "class 'blue' is called 'zblue' now"),
    'added class': (lambda p: add(p, 'white/a.jpg', 'white/b.jpg'), "class 'white' added"),
    'removed class': (lambda p: shutil.rmtree(p / 'green'), "class 'green' removed"),
    'renamed and changed': (
        lambda p: ((p / 'blue/0.jpg').unlink(), (p / 'blue').rename(p / 'sky')),
        "class 'blue' removed\n  class 'sky' added",
    ),
    'added': (lambda p: add(p, 'red/x.jpg'), '1 image added, such as red/x.jpg'),
    'removed': (lambda p: (p / 'red/3.jpg').unlink(), '1 image removed, such as red/3.jpg'),
    'renamed image': (
        lambda p: (p / 'red/3.jpg').rename(p / 'red/33.jpg'),
        '1 image added, such as red/33.jpg\n  1 image removed, such as red/3.jpg',
    ),
    'changed': (
        lambda p: (p / 'red/3.jpg').write_bytes((p / 'red/3.jpg').read_bytes() + b' '),
        '1 image changed in size, such as red/3.jpg',
    ),
    'moved': (
        lambda p: (p / 'red/3.jpg').rename(p / 'blue/33.jpg'),
        '1 image added, such as blue/33.jpg\n  1 image removed, such as red/3.jpg',
    ),
    'two classes': (lambda p: add(p, 'a/0.jpg', 'a/1.jpg', 'b/0.jpg', 'b/1.jpg'), "classes 'a', 'b' added"),
    'many': (
        lambda p: add(p, *(f'red/x{i}.jpg' for i in range(9))),
        '9 images added, such as red/x0.jpg, red/x1.jpg, red/x2.jpg\n',
    ),
}


@pytest.mark.parametrize(('change', 'words'), CHANGES.values(), ids=CHANGES)
def test_other_images_are_refused_and_named(begun: Path, photographs: Path, change, words: str):
    change(photographs)
    message = refused(begun, photographs)
    assert f'What differs:\n  {words}' in message
    assert 'begin another run with another --workdir.' in message
    (begun / 'weights.safetensors').touch()
    assert f'--config.init_from={begun}/weights.safetensors' in refused(begun, photographs)


def test_a_folder_that_is_split_already_is_compared_side_by_side(photographs: Path, tmp_path: Path):
    root, run = tmp_path / 'split', tmp_path / 'run'
    for side in ('train', 'val'):
        shutil.copytree(photographs, root / side)
    run.mkdir()
    identity.record(run, open_folder(str(root)))
    go_on(run, open_folder(str(root)))
    (root / 'val/red/3.jpg').unlink()
    assert '1 image removed, such as val/red/3.jpg\n' in refused(run, root)
    for side in ('train', 'val'):
        (root / side / 'blue').rename(root / side / 'azure')
    assert "class 'blue' is called 'azure' now\n  1 image removed" in refused(run, root)


def test_another_kind_of_data_is_refused(begun: Path):
    with pytest.raises(DataError, match='they were folder and are digits'):
        go_on(begun, open_digits())


def test_a_run_that_has_saved_nothing_may_begin_with_others(begun: Path, photographs: Path):
    (photographs / 'red/3.jpg').unlink()
    identity.record(begun, open_folder(str(photographs)))
    go_on(begun, open_folder(str(photographs)))


@pytest.mark.parametrize('damage', ['gone', 'empty', 'cut', 'another letter', 'a list'])
def test_a_damaged_record_is_said_and_written_anew(begun: Path, photographs: Path, caplog, damage: str):
    path = begun / 'data.json'
    whole = path.read_text()
    if damage == 'gone':
        path.unlink()
    else:
        path.write_text({'empty': '', 'cut': whole[:50], 'a list': '[1]'}.get(damage, whole.replace('27', '28')))
    with caplog.at_level(logging.WARNING):
        go_on(begun, open_folder(str(photographs)))
    assert f'{path} is not there or damaged' in caplog.text
    assert path.read_text() == whole


def test_without_the_list_of_files_the_counts_are_said(begun: Path, photographs: Path):
    (begun / 'data_files.json').write_text('{')
    (photographs / 'red/3.jpg').unlink()
    message = refused(begun, photographs)
    assert 'train: 27 images before and 26 now' in message or 'held_out: 3 images before' in message


def test_what_was_left_out_is_listed_and_part_of_the_run(photographs: Path, tmp_path: Path):
    run = tmp_path / 'run'
    run.mkdir()
    (photographs / 'red/3.jpg').write_bytes(b'')
    (photographs / 'red/a\nb\udce9.jpg').write_bytes(b'')
    skipping = lambda: checked(open_folder(str(photographs)), 'skip')  # noqa: E731
    identity.record(run, skipping())
    lines = (run / 'bad_images.txt').read_text().splitlines()
    assert len(lines) == 2
    assert any('red/3.jpg is not a readable image: it is empty' in line for line in lines)
    go_on(run, skipping())
    (photographs / 'red/3.jpg').write_bytes((photographs / 'red/4.jpg').read_bytes())
    with pytest.raises(DataError, match=r'1 image added, such as red/3\.jpg'):
        go_on(run, skipping())


def test_arrays_are_known_by_their_pixels_and_labels():
    images, labels = np.zeros((4, 2, 2, 1), np.uint8), np.arange(4)
    same = Dataset(Arrays(images, labels), Arrays(images, labels), ('a',)).identity()
    assert same == Dataset(Arrays(images.copy(), labels.copy()), Arrays(images, labels), ('a',)).identity()
    assert json.loads(json.dumps(same)) == same
    for other in (Arrays(images + 1, labels), Arrays(images, labels[::-1]), Arrays(images.reshape(4, 4, 1, 1), labels)):
        assert Dataset(other, Arrays(images, labels), ('a',)).identity() != same


def test_a_run_on_digits_records_them(tmp_path: Path, tiny_config):
    identity.record(tmp_path, open_dataset(tiny_config))
    go_on(tmp_path, open_dataset(tiny_config))
    assert json.loads((tmp_path / 'data.json').read_text())['kind'] == 'digits'


def test_a_run_goes_on_with_its_images_where_they_are_now_and_with_no_others(photographs: Path, tmp_path, tiny_config):
    config, run = tiny_config, tmp_path / 'run'
    config.update({'dataset': f'folder:{photographs}', 'image_size': 16, 'batch_size': 8, 'checkpoint_every_steps': 1})
    config.mean, config.std = (0.5,), (0.25,)
    train(config, run)
    ends, recorded = ((run / name).read_bytes() for name in ('weights.safetensors', 'data.json'))
    metadata = json.loads(safetensors.safe_open(run / 'weights.safetensors', 'np').metadata()['data'])
    assert metadata == open_folder(str(photographs)).identity()

    def stopped_before_the_end() -> None:
        shutil.rmtree(run / 'checkpoints/00000003')
        for name in ('report.png', 'weights.safetensors'):
            (run / name).unlink()

    stopped_before_the_end()
    (run / 'data.json').write_text('{')
    photographs = photographs.rename(tmp_path / 'moved')
    config.dataset = f'folder:{photographs}'
    train(config, run)
    assert [(run / name).read_bytes() for name in ('weights.safetensors', 'data.json')] == [ends, recorded]
    stopped_before_the_end()
    photographs = photographs.rename(tmp_path / 'again')
    (photographs / 'blue').rename(photographs / 'zblue')
    config.dataset = f'folder:{photographs}'
    before = {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}
    with pytest.raises(DataError, match="class 'blue' is called 'zblue' now"):
        train(config, run)
    assert {path: path.read_bytes() for path in before} == before
