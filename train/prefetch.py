"""Putting batches on the devices ahead of the step that needs them."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PREFETCH = 2  # batches on the devices ahead of the one in work


class Prefetcher:
    """Iterates over `place(batch)`, kept `PREFETCH` ahead by a thread; `waited` is the seconds spent without one.

    A context manager: leaving it stops the thread and closes `batches`.
    """

    def __init__(self, batches: Iterator[Any], place: Callable[[Any], Any]) -> None:
        self.waited = 0.0
        self._batches, self._place = batches, place
        self._ready: queue.Queue = queue.Queue(PREFETCH)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name='prefetch', daemon=True)
        self._thread.start()

    def __enter__(self) -> 'Prefetcher':
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._batches.close()

    def __iter__(self) -> Iterator[Any]:
        while True:
            start = time.perf_counter()
            item, error = self._ready.get()
            self.waited += time.perf_counter() - start
            if error:
                raise error
            if item is None:
                return
            yield item

    def _fill(self) -> None:
        try:
            for batch in self._batches:
                self._put((self._place(batch), None))
                if self._stop.is_set():
                    return
            self._put((None, None))
        except Exception as error:  # raised again where the batch is asked for
            self._put((None, error))

    def _put(self, entry: tuple[Any, Exception | None]) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
