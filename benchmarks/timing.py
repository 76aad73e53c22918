"""Timing of alternatives side by side: the runs take turns, so that a drift of the machine's speed hits all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: the median, the fastest and the slowest."""

    median: float
    low: float
    high: float

    def divided(self, count: int) -> 'Timing':
        """The time of one of `count` things done in a call."""
        return Timing(self.median / count, self.low / count, self.high / count)

    def __str__(self) -> str:
        return f'{self.median:.3g} ({self.low:.3g}-{self.high:.3g})'


def interleave(calls: Mapping[str, Callable[[], Any]], runs: int = 5) -> dict[str, Timing]:
    """Times each call `runs` times in turn, A B A B ..., after one uncounted call of each."""
    for call in calls.values():
        jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: Timing(statistics.median(t), min(t), max(t)) for name, t in times.items()}


def compiled(function: Callable, *arrays: Any) -> tuple[Callable, float]:
    """The compiled jax function, and the seconds of the processor that compiling it took."""
    program = jax.jit(function).lower(*arrays)
    start = time.process_time()
    return program.compile(), time.process_time() - start


def table(header: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(str(cell) for cell in line)} |' for line in lines)
