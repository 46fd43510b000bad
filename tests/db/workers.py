"""A worker in a thread of its own, over the public fake, and a way to wait for what it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db import connections

from container_manager.models import ContainerJob
from container_manager.testing import FakeEngine, FakeRun
from container_manager.worker.supervisor import Worker
from tests.db.factories import fake_settings

DEADLINE_SECONDS = 30.0
_T = TypeVar("_T")

#: A worker that looks often and loses patience soon, so that tests need not wait.
QUICK: dict[str, Any] = fake_settings(
    POLL_INTERVAL=0.1,
    RESYNC_INTERVAL=0.2,
    USAGE_INTERVAL=0.05,
    STOP_GRACE_SECONDS=0.2,
    SHUTDOWN_GRACE_SECONDS=5.0,
    LEASE_SECONDS=10.0,
)


def until(look: Callable[[], _T], what: str) -> _T:
    """The first true answer of `look`; fails after a deadline. The interval only says how often we ask."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (answer := look()):
        assert time.monotonic() < deadline, f"waited {DEADLINE_SECONDS:g} s in vain: {what}"
        time.sleep(0.01)
    return answer


def until_status(job: ContainerJob, *statuses: str) -> ContainerJob:
    """Wait until the row has one of the statuses; returns the job, read again."""
    until(
        lambda: ContainerJob.objects.filter(pk=job.pk, status__in=statuses).exists(),
        f"{job} to be {' or '.join(statuses)}; it is {ContainerJob.objects.get(pk=job.pk).status}",
    )
    job.refresh_from_db()
    return job


def drain(**options: Any) -> list[str]:
    """Run a worker here until nothing is left; returns what it had to leave behind."""
    return Worker(once=True, **options).run()


def held_run(stdout: bytes = b"", **further: Any) -> FakeRun:
    """A run that lasts until the test ends it."""
    return FakeRun(hold=threading.Event(), stdout=stdout, **further)


def stored(job: ContainerJob) -> bytes:
    """The stdout that is stored of a job."""
    return b"".join(job.iter_log("stdout"))


@contextmanager
def working(**options: Any) -> Iterator[Worker]:
    """A worker that runs until the block ends. What it raises, the block raises."""
    with at_work(Worker(**options)) as worker:
        yield worker


@contextmanager
def at_work(worker: Worker) -> Iterator[Worker]:
    """As `working`, for a worker that the test has made itself."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            errors.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run, name="worker-under-test")
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive(), "the worker did not stop"
        if errors:
            raise errors[0]


def most_at_once(engine: FakeEngine) -> int:
    """How many containers of the engine ran at the same time, by its own events."""
    running = most = 0
    for event in engine.events:
        running += {"start": 1, "die": -1}.get(event.action, 0)
        most = max(most, running)
    return most
