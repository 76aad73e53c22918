import io
import json
import math
import os
import re
from pathlib import Path

import pytest

from train.records import Progress, Records, duration, read_metrics


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def write(workdir: Path, start: int, *steps: int) -> None:
    with Records(workdir, start) as records:
        for step in steps:
            records.write('train', step, {'loss': 1 / step})


def test_a_resumed_run_has_each_step_once(tmp_path: Path):
    write(tmp_path, 0, 5, 10, 15)
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"kind": "train", "step": 20, "lo')  # killed while it wrote
    write(tmp_path, 10, 15, 20)
    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in lines] == [5, 10, 15, 20]
    assert read_metrics(tmp_path / 'metrics.jsonl')[1] == {'kind': 'train', 'step': 10, 'loss': 0.1}


def test_a_torn_line_is_not_read(tmp_path: Path):
    path = tmp_path / 'metrics.jsonl'
    assert read_metrics(path) == []
    path.write_text('{"kind": "eval", "step": 1}\n{"kind": "eval", "step": 2')
    assert read_metrics(path) == [{'kind': 'eval', 'step': 1}]


FIVE = [5, 10, 15, 20, 25]
LINE = b'{"kind": "train", "step": 15, "loss": 0.06666666666666667}'
DAMAGES = {
    'torn': (LINE[:20], 'line 3 damaged'),
    'glued': (LINE + LINE, 'line 3 damaged'),
    'twice': (LINE + b'\n' + LINE, 'line 4 damaged or doubled'),
    'another key': (LINE.replace(b'step', b'stap'), 'line 3 damaged'),
    'a number': (b'12', 'line 3 damaged'),
    'text for a number': (LINE.replace(b'15', b'"15"'), 'line 3 damaged'),
    'not UTF-8': (LINE.replace(b'loss', b'\xff\xfe'), 'line 3 damaged'),
    'empty': (b'', 'line 3 damaged'),
    'lost': (None, '1 of 5 lines up to step 25 lost'),
}


@pytest.mark.parametrize(('damage', 'words'), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_line_is_told_and_kept_aside_and_the_good_ones_go_on(tmp_path: Path, damage: bytes, words: str):
    write(tmp_path, 0, *FIVE)
    path = tmp_path / 'metrics.jsonl'
    whole = path.read_bytes()
    assert whole.count(LINE) == 1
    damaged = whole.replace(LINE + b'\n', b'' if damage is None else damage + b'\n')
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match=f'{words}.*kept as metrics.jsonl.damaged') as told, Records(tmp_path, 25, 5):
        pass
    assert len(told) == 1
    assert path.read_bytes() == whole.replace(LINE + b'\n', LINE + b'\n' if words.startswith('line 4') else b'')
    assert (tmp_path / 'metrics.jsonl.damaged').read_bytes() == damaged
    with Records(tmp_path, 25, 0):  # whole now; how many there were is not known
        assert not (tmp_path / 'metrics.jsonl.damaged2').exists()


@pytest.mark.parametrize('change', [Path.unlink, lambda path: path.write_bytes(b'')], ids=['deleted', 'emptied'])
def test_lost_records_are_told(tmp_path: Path, change):
    write(tmp_path, 0, *FIVE)
    change(tmp_path / 'metrics.jsonl')
    with pytest.warns(UserWarning, match='5 of 5 lines up to step 25 lost'), Records(tmp_path, 25, 5) as records:
        records.write('train', 30, {'loss': 1.0})
    assert [record['step'] for record in read_metrics(tmp_path / 'metrics.jsonl')] == [30]


def test_what_is_not_finite_is_null(tmp_path: Path):
    with Records(tmp_path, 0) as records:
        records.write('eval', 1, {'loss': math.nan, 'accuracy': math.inf})
    (line,) = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    assert line == '{"kind": "eval", "step": 1, "loss": null, "accuracy": null}'
    assert len(read_metrics(tmp_path / 'metrics.jsonl')) == 1


def test_nothing_is_made_before_the_first_line(tmp_path: Path):
    with Records(tmp_path, 0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_not_ahead_of_the_lines_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced = []
    monkeypatch.setattr(os, 'fsync', lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    with Records(tmp_path, 0) as records:
        records.sync()
        records.write('train', 1, {'loss': 1.0})
        records.sync()
    assert synced.count((tmp_path / 'metrics.jsonl').stat().st_ino) == 1


def test_tensorboard_gets_the_same_values(tmp_path: Path):
    from tensorboardX.proto.event_pb2 import Event

    write(tmp_path, 0, 5)
    (path,) = (tmp_path / 'tensorboard').iterdir()
    content, values = path.read_bytes(), {}
    while content:  # length, its checksum, the event, its checksum
        length = int.from_bytes(content[:8], 'little')
        event = Event.FromString(content[12 : 12 + length])
        values |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
        content = content[16 + length :]
    assert values == {('train/loss', 5): pytest.approx(0.2)}


def test_other_processes_write_nothing(tmp_path: Path):
    with Records(tmp_path, 0, writes=False) as records:
        records.write('train', 1, {'loss': 1.0})
    assert list(tmp_path.iterdir()) == []


def shown(stream: io.StringIO) -> str:
    progress = Progress(10, 32, stream)
    progress.start(1, 0.0)
    values = {'epoch': 0.5, 'loss': 1.25, 'learning_rate': 0.1}
    progress.update(5, values | progress.measure(5, 0.0))
    progress.say('evaluated')
    return stream.getvalue()


def test_the_progress_line_tells_where_the_run_is():
    first, line, last = shown(io.StringIO()).splitlines()
    assert first.startswith('step 1 after 0:00')
    assert re.fullmatch(
        r'step 5/10  epoch 0\.5  \d+ images/s  loss 1\.2500  lr 1\.00e-01  0:00 left  input wait 0%', line
    )
    assert last == 'evaluated'


def test_on_a_terminal_the_line_is_rewritten():
    text = shown(Terminal())
    assert text.count('\n') == 2  # the lines that stay
    assert '\r\x1b[Kstep 5/10' in text
    assert text.endswith('\r\x1b[Kevaluated\n')


def test_the_first_step_has_no_speed_yet():
    stream = io.StringIO()
    progress = Progress(10, 32, stream)
    progress.start(1, 0.0)
    progress.update(1, {'epoch': 0.1, 'loss': 1.0, 'learning_rate': 0.1, **progress.measure(1, 0.0)})
    assert '0 images/s' in stream.getvalue()
    assert '? left' in stream.getvalue()


def test_duration():
    assert [duration(s) for s in (0.4, 75, 3675)] == ['0:00', '1:15', '1:01:15']
