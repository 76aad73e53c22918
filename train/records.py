"""What a run writes besides checkpoints: metrics.jsonl, TensorBoard events and the progress line."""

import json
import time
from pathlib import Path
from typing import Any, TextIO


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file, in order; a torn last line is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


class Records:
    """Writes metrics at their step into metrics.jsonl and TensorBoard's event files.

    Opened at step `start`, it first drops what a killed run wrote beyond it, so that no step is there twice. A context
    manager. With `writes=False`, in the processes that do not write, it does nothing.
    """

    def __init__(self, workdir: Path, start: int, writes: bool = True) -> None:
        self._writes = writes
        if not writes:
            return
        # Imported here, because it takes seconds where torch is installed too.
        from tensorboardX import SummaryWriter

        path = workdir / 'metrics.jsonl'
        kept = [record for record in read_metrics(path) if record['step'] <= start]
        replace_file(path, ''.join(json.dumps(record) + '\n' for record in kept))
        self._file = path.open('a')
        self._events = SummaryWriter(str(workdir / 'tensorboard'), purge_step=start + 1)

    def __enter__(self) -> 'Records':
        return self

    def __exit__(self, *_: object) -> None:
        if self._writes:
            self._file.close()
            self._events.close()

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """kind: 'train' or 'eval'; step: updates done."""
        if not self._writes:
            return
        self._file.write(json.dumps({'kind': kind, 'step': step, **values}) + '\n')
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f'{kind}/{name}', value, step)


def replace_file(path: Path, text: str) -> None:
    """Writes a file as a whole or not at all."""
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(text)
    temporary.replace(path)


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
