"""Usage samples: one thread per host goes round its running containers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from container_manager.core.errors import HostFault
from container_manager.executors.base import Executor
from container_manager.worker.run import Run

logger = logging.getLogger("container_manager.worker")

#: Containers younger than this are left alone: most trivial jobs end sooner, and a sample costs the
#: engine more than they do.
FIRST_SAMPLE_SECONDS = 0.3


class Sampler:
    """Asks for one container's counters at a time, the one that waited longest first.

    The number of calls does not grow with the number of containers; a sample that fails is dropped. Only a
    container's first sample is taken without a pause, so that short jobs have a figure, too.
    """

    def __init__(
        self, name: str, executor: Executor, interval: float, running: Callable[[], Iterable[Run]]
    ) -> None:
        self._executor = executor
        self._interval = interval
        self._running = running
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End after the call in flight."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._pause()):
            run = self._next()
            if run is None:
                continue
            began = time.monotonic()
            try:
                self._sample(run)
            except Exception:
                # What an engine says of one container must not end the samples of all others.
                logger.exception("no usage sample of %s", run.spec.name)
            newcomer = self._next()
            if newcomer is None or newcomer.asked > 0:
                self._stop.wait(max(0.0, self._interval - (time.monotonic() - began)))

    def _sample(self, run: Run) -> None:
        try:
            sample = self._executor.usage(run.name)
        except HostFault as error:
            logger.debug("no usage sample of %s: %s", run.spec.name, error)
            sample = None
        finally:
            run.sampled_at = time.monotonic()
            run.asked += 1
        if sample is not None:
            run.take_sample(sample)

    def _next(self) -> Run | None:
        ripe = time.monotonic() - FIRST_SAMPLE_SECONDS
        due = [run for run in self._running() if run.running_since <= ripe]
        return min(due, key=lambda run: run.sampled_at, default=None)

    def _pause(self) -> float:
        return 0.0 if self._next() is not None else min(self._interval, FIRST_SAMPLE_SECONDS)
