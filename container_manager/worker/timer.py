"""One thread that calls things later."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger("container_manager.worker")


SWEEP_ENTRIES = 1000


class Appointment:
    """A call to come. Cancelled, it lets go of whatever the call holds."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    @property
    def is_cancelled(self) -> bool:
        """Whether nothing will be called."""
        return self._call is None

    def cancel(self) -> None:
        """Do not call; a second time, or afterwards, has no effect."""
        self._call = None

    def keep(self) -> None:
        """Call, unless it was cancelled."""
        call, self._call = self._call, None
        if call is not None:
            call()


class Timer:
    """Runs short callables at a time of the monotonic clock, so that a stepping wall clock does no harm."""

    def __init__(self, name: str) -> None:
        self._heap: list[tuple[float, int, Appointment]] = []
        self._order = itertools.count()
        self._sweep_at = SWEEP_ENTRIES
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def at(self, when: float, call: Callable[[], None]) -> Appointment:
        """Call at `time.monotonic() == when`, or at once if that has passed. Callables must not block."""
        appointment = Appointment(call)
        with self._changed:
            self._sweep()
            heapq.heappush(self._heap, (when, next(self._order), appointment))
            if self._heap[0][0] >= when:
                self._changed.notify()
        return appointment

    def after(self, seconds: float, call: Callable[[], None]) -> Appointment:
        """Call in `seconds`."""
        return self.at(time.monotonic() + seconds, call)

    def close(self) -> None:
        """Forget what is still to come, and end the thread."""
        with self._changed:
            self._closed = True
            self._heap.clear()
            self._changed.notify()

    def _sweep(self) -> None:
        """Forget what was cancelled, now and then: a deadline may lie days ahead."""
        if len(self._heap) < self._sweep_at:
            return
        self._heap = [entry for entry in self._heap if not entry[2].is_cancelled]
        heapq.heapify(self._heap)
        self._sweep_at = max(SWEEP_ENTRIES, 2 * len(self._heap))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (not self._heap or self._heap[0][0] > time.monotonic()):
                    wait = self._heap[0][0] - time.monotonic() if self._heap else None
                    self._changed.wait(None if wait is None else max(wait, 0))
                if self._closed:
                    return
                _, _, appointment = heapq.heappop(self._heap)
            try:
                appointment.keep()
            except Exception:
                logger.exception("a timed call failed")
