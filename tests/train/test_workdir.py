"""A run's directory: taken by a run that began, kept from others, missed when it is gone."""

import errno
import json
import re
import shutil
from pathlib import Path

import pytest

from train import files, workdir
from train.files import replace_file
from train.workdir import WorkdirError, check, claimed, read_config, record


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def test_a_run_that_does_not_begin_leaves_nothing(tmp_path: Path, tiny_config):
    with pytest.raises(KeyError), claimed(tmp_path / 'run'):
        raise KeyError
    assert names(tmp_path) == []
    (tmp_path / 'run').mkdir()
    with claimed(tmp_path / 'run'):
        pass
    check(tmp_path / 'run', tiny_config)  # another config may have it


def test_what_a_killed_run_left_is_nobodys_and_is_cleared(tmp_path: Path, tiny_config):
    for name in ('.lock', '.config.json.tmp', '.weights.safetensors.123.tmp'):
        (tmp_path / name).write_text('')
    check(tmp_path, tiny_config)
    half = tmp_path / 'checkpoints' / '00000005.orbax-checkpoint-tmp'
    half.mkdir(parents=True)
    with claimed(tmp_path) as taken:
        taken.begin(tiny_config)
    assert names(tmp_path) == ['.lock', 'checkpoints', 'config.json']
    assert names(tmp_path / 'checkpoints') == []


def test_other_files_are_not_taken_for_leftovers(tmp_path: Path, tiny_config):
    (tmp_path / '.bashrc').write_text('')
    with pytest.raises(WorkdirError, match='is not empty and holds no run'):
        check(tmp_path, tiny_config)


def test_a_file_system_without_locks_is_warned_of(tmp_path: Path, tiny_config, monkeypatch, caplog):
    def refuse(_: int) -> bool:
        raise OSError(errno.ENOSYS, 'Function not implemented')

    monkeypatch.setattr(workdir, 'try_lock', refuse)
    (tmp_path / '.weights.safetensors.123.tmp').write_text('')  # maybe another's at work
    with claimed(tmp_path) as taken:
        taken.begin(tiny_config)
    assert 'this file system has no locks' in caplog.text
    assert names(tmp_path) == ['.lock', '.weights.safetensors.123.tmp', 'config.json']


@pytest.mark.parametrize('change', ['removed', 'replaced', 'claimed by another'])
def test_a_directory_that_is_another_now_is_noticed(tmp_path: Path, tiny_config, change: str):
    path = tmp_path / 'run'
    with claimed(path) as taken:
        taken.begin(tiny_config)
        taken.check_there()
        shutil.rmtree(path)
        if change != 'removed':
            path.mkdir()
        if change == 'claimed by another':
            (path / '.lock').write_text('')
        with pytest.raises(WorkdirError, match='was removed or replaced'):
            taken.check_there()


@pytest.mark.parametrize('place', ['a file/run', '/proc/run'])
def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path, tiny_config, place: str):
    (tmp_path / 'a file').write_text('')
    with pytest.raises(WorkdirError, match=f'{place} cannot be'), claimed(tmp_path / place):
        pass


@pytest.mark.parametrize('content', [b'{"seed": 0, "mo', b'', b'null', b'[]', b'{}', b'\xff\xfe{}'])
def test_a_damaged_config_says_how_to_go_on(tmp_path: Path, content: bytes):
    (tmp_path / 'config.json').write_bytes(content)
    for read in (record, read_config):
        with pytest.raises(WorkdirError, match=r'config\.json is damaged.*to go on'):
            read(tmp_path)
    assert (tmp_path / 'config.json').read_bytes() == content


def test_a_file_that_cannot_be_replaced_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    replace_file(tmp_path / 'file', 'before')

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(files.os, 'fsync', full)
    with pytest.raises(OSError, match=re.escape('No space left')):
        replace_file(tmp_path / 'file', 'after')
    assert (tmp_path / 'file').read_text() == 'before'
    assert names(tmp_path) == ['file']


def test_a_replaced_file_and_its_name_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced, fsync = [], files.os.fsync
    monkeypatch.setattr(files.os, 'fsync', lambda number: synced.append(files.os.fstat(number).st_ino) or fsync(number))
    replace_file(tmp_path / 'file', json.dumps({}))
    assert synced == [(tmp_path / 'file').stat().st_ino, tmp_path.stat().st_ino]
