"""What a run writes besides checkpoints: metrics.jsonl, TensorBoard events and the progress line."""

import json
import math
import os
import time
import warnings
from pathlib import Path
from typing import Any, TextIO

from train.files import replace_file


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file, each step's once, in order; what is damaged is left out."""
    return [record for _, record in _read_lines(path)[0]]


def _read_lines(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], list[int]]:
    """The good lines of a metrics file with what they say, and the numbers of the others.

    A last line without an end is neither: a killed run was writing it.
    """
    lines = path.read_bytes().split(b'\n') if path.exists() else [b'']
    good, bad, seen = [], [], set()
    for number, line in enumerate(lines[:-1], 1):
        record = _parse(line)
        if record is None or (record['kind'], record['step']) in seen:
            bad.append(number)
        else:
            seen.add((record['kind'], record['step']))
            good.append((line, record))
    return good, bad


def _parse(line: bytes) -> dict[str, Any] | None:
    """What a line says, if it is one that `Records.write` wrote."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and record.get('kind') in ('train', 'eval') and type(record.get('step')) is int
    numbers = [value for name, value in record.items() if name not in ('kind', 'step')] if whole else [None, '']
    return record if all(value is None or type(value) in (int, float) for value in numbers) else None


class Records:
    """Writes metrics at their step into metrics.jsonl and TensorBoard's event files.

    Opened at step `start`, it first drops what a killed run wrote beyond it, so that no step is there twice. A damaged
    file is kept aside as metrics.jsonl.damaged, and its good lines go on. Nothing is made before the first line. A
    context manager. With `writes=False`, in the processes that do not write, it only counts.

    Attributes:
      lines: in metrics.jsonl, as far as this process knows.
    """

    def __init__(self, workdir: Path, start: int, expected: int = 0, writes: bool = True) -> None:
        """expected: the lines that there were up to `start`, 0 if it is not known; where some are lost it is said."""
        self._writes, self._start, self.lines = writes, start, expected
        self._path, self._events_path = workdir / 'metrics.jsonl', workdir / 'tensorboard'
        self._file = self._events = None
        if writes:
            self._repair(expected)

    def __enter__(self) -> 'Records':
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()
            self._events.close()

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """kind: 'train' or 'eval'; step: updates done. What is not finite is null in JSON, which has no word for it."""
        self.lines += 1
        if not self._writes:
            return
        if self._file is None:
            self._open()
        line = {'kind': kind, 'step': step, **{name: finite(value) for name, value in values.items()}}
        self._file.write(json.dumps(line, allow_nan=False) + '\n')
        self._file.flush()
        self._events.write(kind, step, values)

    def sync(self) -> None:
        """Has what was written on the disk."""
        if self._file:
            os.fsync(self._file.fileno())
            self._events.flush()

    def _open(self) -> None:
        self._file = self._path.open('a')
        self._events = _Events(self._events_path, self._start)

    def _repair(self, expected: int) -> None:
        """Leaves the good lines up to `start` in metrics.jsonl, and says what is not there."""
        good, bad = _read_lines(self._path)
        kept = [line for line, record in good if record['step'] <= self._start]
        self.lines = len(kept)
        lost = max(0, expected - len(kept))
        words = [f'line {", ".join(map(str, bad[:5]))}{", ..." * (len(bad) > 5)} damaged or doubled'] if bad else []
        words += [f'{lost} of {expected} lines up to step {self._start} lost'] if lost else []
        content = b''.join(line + b'\n' for line in kept)
        if words:
            aside = ''
            if self._path.exists():
                copy = next(name for name in _asides(self._path) if not name.exists())
                replace_file(copy, self._path.read_bytes())
                aside = f'; it is kept as {copy.name}'
            warnings.warn(f'{self._path}: {"; ".join(words)}{aside}, and the good lines go on', stacklevel=3)
        if self._path.exists() and self._path.read_bytes() != content:
            replace_file(self._path, content)


class _Events:
    """TensorBoard's event file of this process, written at once: an error is raised here, not in a thread."""

    def __init__(self, directory: Path, start: int) -> None:
        # Imported here, because it takes seconds where torch is installed too.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        directory.mkdir(exist_ok=True)
        self._event, self._summary = Event, Summary
        self._writer = EventsWriter(str(directory / 'events'), f'.{os.getpid()}')
        # What an earlier process wrote from this step on is not shown.
        self._writer.write_event(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            summary = self._summary(value=[self._summary.Value(tag=f'{kind}/{name}', simple_value=value)])
            self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def finite(value: float | None) -> float | None:
    """The number, or None for what is not finite: JSON has no word for it."""
    return value if value is not None and math.isfinite(value) else None


def _asides(path: Path) -> list[Path]:
    return [path.with_name(f'{path.name}.damaged{number}') for number in ('', *range(2, 100))]


class Progress:
    """Measures the speed and shows where the run is: one line rewritten on a terminal, lines elsewhere.

    Speed counts neither compilation (the clock starts after the first step) nor evaluation and saving; the time left
    counts everything.
    """

    def __init__(self, total: int, batch_size: int, stream: TextIO | None) -> None:
        """stream: where to show it, None for nowhere."""
        self.total, self.batch_size, self._stream = total, batch_size, stream
        self._opened = time.perf_counter()

    def start(self, step: int, waited: float) -> None:
        """`step` is the first that ran here; `waited`, here and below, the seconds waited for input so far."""
        self.resume(step, waited)
        self._first, self._began = step, self._time
        self.say(f'step {step} after {duration(self._time - self._opened)} of building and compiling')

    def resume(self, step: int, waited: float) -> None:
        """What happened since the last measurement is not counted."""
        self._step, self._waited, self._time = step, waited, time.perf_counter()

    def measure(self, step: int, waited: float) -> dict[str, float]:
        """Images a second and the share of time that was spent waiting for input, since the last measurement."""
        seconds = time.perf_counter() - self._time
        speed = {
            'images_per_second': (step - self._step) * self.batch_size / seconds,
            'input_wait': (waited - self._waited) / seconds,
        }
        self.resume(step, waited)
        return speed

    def update(self, step: int, values: dict[str, float]) -> None:
        """Shows the state after `step` updates; `values` holds epoch, loss, learning_rate and the speed."""
        done = step - self._first
        left = duration((self.total - step) * (self._time - self._began) / done) if done else '?'
        line = (
            f'step {step}/{self.total}  epoch {values["epoch"]:.1f}  {values["images_per_second"]:.0f} images/s  '
            f'loss {values["loss"]:.4f}  lr {values["learning_rate"]:.2e}  {left} left  '
            f'input wait {values["input_wait"]:.0%}'
        )
        self._write(line, stays=False)

    def say(self, text: str) -> None:
        """Shows a line that stays."""
        self._write(text, stays=True)

    def _write(self, line: str, stays: bool) -> None:
        if self._stream is None:
            return
        terminal = self._stream.isatty()
        self._stream.write(('\r\x1b[K' if terminal else '') + line + ('' if terminal and not stays else '\n'))
        self._stream.flush()


def duration(seconds: float) -> str:
    """75 -> '1:15', 3675 -> '1:01:15'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
