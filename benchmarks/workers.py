"""Contenders of a benchmark as processes of their own: no library's threads or memory disturb the other's."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence


class Worker:
    """A process that does its work once at each call; or several processes that do it together.

    Each prints a JSON line with 'first_call_s' when it is ready, and one with 'peak_bytes' after each time that it does
    its work, which it does for every line it reads.
    """

    def __init__(self, *commands: Sequence[str], env: Mapping[str, str]) -> None:
        """commands: what follows `python -m`, one for each process."""
        self.processes = [
            subprocess.Popen(
                [sys.executable, '-m', *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
                env=env,
            )
            for command in commands
        ]
        self.first_call_s: float | None = None
        self.peak_bytes = 0

    def wait(self) -> 'Worker':
        """Returns when the first call is over."""
        if self.first_call_s is None:
            self.first_call_s = self._answer()['first_call_s']
        return self

    def run(self) -> None:
        """Does the work once, to its end."""
        self.wait()
        for process in self.processes:
            process.stdin.write('\n')
        self.peak_bytes = self._answer()['peak_bytes']

    def close(self) -> None:
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            process.wait()

    def _answer(self) -> dict:
        """The answer of the first process, once all have answered."""
        first, *_ = [_answer(process) for process in self.processes]
        return first


def _answer(process: subprocess.Popen) -> dict:
    for line in process.stdout:
        if line.startswith('{'):
            return json.loads(line)
    raise RuntimeError(f'{" ".join(process.args)} ended with status {process.wait()}')
