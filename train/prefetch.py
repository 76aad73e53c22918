"""Putting batches on the devices ahead of the step that needs them."""

import logging
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from train.stop import SIGNALS

logger = logging.getLogger('train')

PREFETCH = 2  # batches on the devices ahead of the one in work
PATIENCE = 10.0  # seconds that a batch may take to end when the rest is not wanted


class Prefetcher:
    """Iterates over `place(batch)`, kept `PREFETCH` ahead by a thread; `waited` is the seconds spent without one.

    A context manager: leaving it stops the thread and closes `batches`. What the thread raises, whatever it is, is
    raised where the batch is asked for. If `give_up()` says so while no batch is ready, there are no more.
    """

    def __init__(
        self, batches: Iterator[Any], place: Callable[[Any], Any], give_up: Callable[[], bool] = lambda: False
    ) -> None:
        self.waited = 0.0
        self._batches, self._place, self._give_up = batches, place, give_up
        self._ready: queue.Queue = queue.Queue(PREFETCH)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name='prefetch', daemon=True)
        self._thread.start()

    def __enter__(self) -> 'Prefetcher':
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():  # nothing can be closed under it
            logger.warning('the loading of a batch hangs; it is left to itself')
        else:
            self._batches.close()

    def __iter__(self) -> Iterator[Any]:
        while True:
            start = time.perf_counter()
            item, error = self._get()
            self.waited += time.perf_counter() - start
            if error:
                raise error
            if item is None:
                return
            yield item

    def _get(self) -> tuple[Any, BaseException | None]:
        while True:
            try:
                return self._ready.get(timeout=0.5)
            except queue.Empty:
                if self._give_up():
                    return None, None

    def _fill(self) -> None:
        if hasattr(signal, 'pthread_sigmask'):
            # Loading processes that this thread starts inherit it: what stops the run is not for them.
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            for batch in self._batches:
                self._put((self._place(batch), None))
                if self._stop.is_set():
                    return
            self._put((None, None))
        except BaseException as error:
            self._put((None, error))

    def _put(self, entry: tuple[Any, BaseException | None]) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
