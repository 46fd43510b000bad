"""One thread that calls things later."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger("container_manager.worker")


class Timer:
    """Runs short callables at a time of the monotonic clock, so that a stepping wall clock does no harm."""

    def __init__(self, name: str) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Call at `time.monotonic() == when`, or at once if that has passed. Callables must not block."""
        with self._changed:
            heapq.heappush(self._heap, (when, next(self._order), call))
            if self._heap[0][0] >= when:
                self._changed.notify()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call in `seconds`."""
        self.at(time.monotonic() + seconds, call)

    def close(self) -> None:
        """Forget what is still to come, and end the thread."""
        with self._changed:
            self._closed = True
            self._heap.clear()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (not self._heap or self._heap[0][0] > time.monotonic()):
                    wait = self._heap[0][0] - time.monotonic() if self._heap else None
                    self._changed.wait(None if wait is None else max(wait, 0))
                if self._closed:
                    return
                _, _, call = heapq.heappop(self._heap)
            try:
                call()
            except Exception:
                logger.exception("a timed call failed: %r", call)
