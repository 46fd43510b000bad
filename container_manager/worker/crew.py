"""The threads that make the calls to one host, and the clock that sends them."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from container_manager.core.errors import ExecutorError, HostFault
from container_manager.worker.timer import Appointment, Timer

logger = logging.getLogger("container_manager.worker")

HARVEST_THREADS = 6
#: Each image that is pulled has one; further images wait.
PULL_THREADS = 16


class Pool:
    """Up to `size` threads, made when they are needed, that make calls in the order in which they came.

    Not those of `concurrent.futures`: the interpreter waits for these at its exit, and for every call that is
    still queued, so that a worker beside an engine that hangs would outlive its grace by minutes.
    """

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._calls: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closed = False

    def submit(self, call: Callable[[], None]) -> None:
        """Have a call made; it must not raise. Closed: it is dropped.

        Raises HostFault where there is nobody to make it.
        """
        with self._changed:
            if self._closed:
                return
            if len(self._calls) >= self._idle and len(self._threads) < self._size:
                self._grow()
            self._calls.append(call)
            self._changed.notify()

    def close(self, *, forget: bool) -> None:
        """Take no more, and `forget` what is queued; a thread without a call ends."""
        with self._changed:
            self._closed = True
            if forget:
                self._calls.clear()
            self._changed.notify_all()

    def join(self, deadline: float) -> None:
        """Wait until `deadline` (monotonic) for the calls; those that did not begin by then never do."""
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.close(forget=True)

    def _grow(self) -> None:
        name = f"{self._name}-{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the machine gives no more: those that there are make the call later
            if not self._threads:
                raise HostFault("this machine cannot start a thread for calls to the host") from error
            logger.warning("%s: %s; %d threads have to do", self._name, error, len(self._threads))
        else:
            self._threads.append(thread)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self._calls and not self._closed:
                    self._changed.wait()
                self._idle -= 1
                if not self._calls:
                    return
                call = self._calls.popleft()
            call()
            del call  # and what it holds


class Crew:
    """Pools, so that neither pulls hold up launches nor these the ends; a thread to compare; a timer."""

    def __init__(self, name: str, *, launch_threads: int) -> None:
        self.name = name
        self.stopping = threading.Event()
        self._launchers = Pool(f"{name}-launch", launch_threads)
        self._pullers = Pool(f"{name}-pull", PULL_THREADS)
        self._workers = Pool(f"{name}-work", HARVEST_THREADS)
        # On a thread of its own: how long it takes is what tells a slow engine from a busy worker.
        self._comparer = Pool(f"{name}-compare", 1)
        self._timer = Timer(f"{name}-timer")

    def launch(self, call: Callable[..., None], *args: object) -> None:
        """Have a launch made."""
        self._launchers.submit(partial(self.guarded(call), *args))

    def pull(self, call: Callable[..., None], *args: object) -> None:
        """Have an image pulled."""
        self._pullers.submit(partial(self.guarded(call), *args))

    def work(self, call: Callable[..., None], *args: object) -> None:
        """Have any other call made."""
        self._workers.submit(partial(self.guarded(call), *args))

    def compare(self, call: Callable[[], None]) -> None:
        """Have a comparison made."""
        self._comparer.submit(self.guarded(call))

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
        """Take no more; wait until `deadline` (monotonic) for calls in flight, and for queued ends."""
        self.stopping.set()
        self._timer.close()
        self._pullers.close(forget=True)  # not waited for: nobody starts any more what they bring
        pools = (self._launchers, self._workers, self._comparer)
        for pool in pools:
            pool.close(forget=pool is self._launchers)
        for pool in pools:
            pool.join(deadline)

    def guarded(self, call: Callable[..., None]) -> Callable[..., None]:
        """Log what would otherwise vanish, or end the thread; a host's fault is its state, not a surprise."""

        def guarded(*args: object) -> None:
            try:
                call(*args)
            except ExecutorError as error:
                logger.info("%s: %s: %s", self.name, call.__name__.strip("_"), error)
            except BaseException:
                logger.exception("%s: %s failed", self.name, call.__name__.strip("_"))

        return guarded
