"""A line on a terminal that shows how far a download is."""

import sys
import time
from typing import IO


class Progress:
    """Draws the line on `stream`, stderr by default; nothing where that is not a terminal. A context manager."""

    def __init__(self, name: str, total: int | None, stream: IO[str] | None = None):
        self.name, self.total, self.stream = name, total, stream or sys.stderr
        self.started = self.shown = time.monotonic()
        self.first: int | None = None

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *_: object) -> None:
        if self.first is not None and self.stream.isatty():
            self.stream.write('\n')

    def show(self, received: int) -> None:
        """Draws the line for so many bytes, ten times a second at most and once at the end."""
        now = time.monotonic()
        self.first = received if self.first is None else self.first
        if not self.stream.isatty() or (now - self.shown < 0.1 and received != self.total):
            return
        self.shown = now
        speed = (received - self.first) / max(now - self.started, 1e-3) / 1e6
        text = f'{self.name}  {received / 1e6:.1f} MB'
        if self.total:
            filled = 30 * received // self.total
            text = f'{self.name}  [{"#" * filled}{"." * (30 - filled)}] {received / 1e6:.1f}/{self.total / 1e6:.1f} MB'
        self.stream.write(f'\r{text}  {speed:.1f} MB/s ')
        self.stream.flush()
