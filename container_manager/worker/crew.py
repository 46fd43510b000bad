"""The threads that make the calls to one host, and the clock that sends them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from container_manager.core.errors import ExecutorError
from container_manager.worker.timer import Appointment, Timer

logger = logging.getLogger("container_manager.worker")

HARVEST_THREADS = 6


class Crew:
    """Two pools, so that slow launches do not hold up ends; a thread for comparisons; a timer."""

    def __init__(self, name: str, *, launch_threads: int) -> None:
        self.name = name
        self.stopping = threading.Event()
        self._launchers = ThreadPoolExecutor(launch_threads, thread_name_prefix=f"{name}-launch")
        self._workers = ThreadPoolExecutor(HARVEST_THREADS, thread_name_prefix=f"{name}-work")
        # On a thread of its own: how long it takes is what tells a slow engine from a busy worker.
        self._comparer = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-compare")
        self._timer = Timer(f"{name}-timer")

    def launch(self, call: Callable[..., None], *args: object) -> None:
        """Have a launch made."""
        self._submit(self._launchers, call, args)

    def work(self, call: Callable[..., None], *args: object) -> None:
        """Have any other call made."""
        self._submit(self._workers, call, args)

    def compare(self, call: Callable[[], None]) -> None:
        """Have a comparison made."""
        self._submit(self._comparer, call, ())

    def at(self, moment: float, call: Callable[..., None], *args: object) -> Appointment:
        """Have a call made by a worker at a time of the monotonic clock, or at once if that has passed."""
        return self._timer.at(moment, lambda: self.work(call, *args))

    def after(self, seconds: float, call: Callable[..., None], *args: object) -> Appointment:
        """Have a call made by a worker in so many seconds."""
        return self._timer.after(seconds, lambda: self.work(call, *args))

    def tick(self, seconds: float, call: Callable[[], None]) -> None:
        """Call in the timer's own thread in so many seconds; it must not block."""
        self._timer.after(seconds, call)

    def close(self, deadline: float) -> None:
        """Take no more; wait until `deadline` (monotonic) for calls in flight."""
        self.stopping.set()
        self._timer.close()
        for pool in (self._launchers, self._workers, self._comparer):
            pool.shutdown(wait=False, cancel_futures=pool is self._launchers)
        prefixes = tuple(f"{self.name}-{kind}" for kind in ("launch", "work", "compare"))
        for thread in threading.enumerate():
            if thread.name.startswith(prefixes):
                thread.join(max(0.0, deadline - time.monotonic()))

    def guarded(self, call: Callable[..., None]) -> Callable[..., None]:
        """Log what would otherwise vanish with the thread; a host's fault is its state, not a surprise."""

        def guarded(*args: object) -> None:
            try:
                call(*args)
            except ExecutorError as error:
                logger.info("%s: %s: %s", self.name, call.__name__.strip("_"), error)
            except BaseException:
                logger.exception("%s: %s failed", self.name, call.__name__.strip("_"))
                raise

        return guarded

    def _submit(self, pool: ThreadPoolExecutor, call: Callable[..., None], args: tuple[object, ...]) -> None:
        try:
            pool.submit(self.guarded(call), *args)
        except RuntimeError:
            if not self.stopping.is_set():
                raise
