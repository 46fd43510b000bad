"""What fails with one job or at one host stays there: the others go on, and no worker dies of it.

And nothing is lost of the one: what could not be stored is read again, by us or by the next worker.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import OperationalError

from container_manager import lifecycle
from container_manager.core.spec import ContainerSpec
from container_manager.models import (
    ContainerJob,
    EngineLease,
    ExecutionMetadata,
    ExecutorHost,
    JobEvent,
    LogChunk,
)
from container_manager.testing import FakeEngine, FakeRun, fake_engine
from container_manager.worker import hands, supervisor
from container_manager.worker.supervisor import Worker
from tests.db.factories import make_host, make_job
from tests.db.workers import (
    DEADLINE_SECONDS,
    QUICK,
    at_work,
    drain,
    held_run,
    stored,
    until,
    until_status,
    working,
)

pytestmark = pytest.mark.django_db(transaction=True)

UNSTORABLE = 2**70  # in no integer column of any database
FAILED = "failed in this worker's hands"


def records(caplog: pytest.LogCaptureFixture, text: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if text in record.getMessage()]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was laid aside is looked at again soon."""
    monkeypatch.setattr(hands, "FIRST_REST_SECONDS", 0.2)
    monkeypatch.setattr(supervisor, "HOSTS_SECONDS", 0.1)


@contextmanager
def stopped_when(meanwhile: Callable[[], None]) -> Iterator[Worker]:
    """A worker that is stopped at the end of the block; `meanwhile` happens between its work and its end."""
    worker = Worker()
    shut_down = worker._shut_down

    def first_this() -> None:
        meanwhile()
        shut_down()

    worker._shut_down = first_this  # type: ignore[method-assign]
    with at_work(worker):
        yield worker


# ------------------------------------------------------------------------------------------ at the stop


def test_output_that_could_not_be_stored_at_the_stop_is_read_by_the_next_worker(
    engine: FakeEngine, host: ExecutorHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end that comes behind it must not be stored: its cursor would say that the output is."""
    store, away, tried = lifecycle.store_logs, threading.Event(), threading.Event()
    away.set()

    def store_if_there(*args: Any) -> None:
        if away.is_set():
            tried.set()
            raise OperationalError("server closed the connection unexpectedly")
        store(*args)

    monkeypatch.setattr(lifecycle, "store_logs", store_if_there)
    output = b"".join(b"%05d\n" % number for number in range(1000))
    engine.default = held_run(output)
    with stopped_when(away.clear) as worker:
        job = until_status(make_job(), "running")
        assert tried.wait(DEADLINE_SECONDS)
        engine.finish(job.container_name)
        until(lambda: worker._inbox._queue.qsize() > 0, "the end to be reported")
    job.refresh_from_db()
    assert job.status == "running"
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, stored(job)) == ("completed", output)
    assert job.executions.get().logs_complete


def test_a_job_that_is_deleted_at_the_stop_keeps_no_lease(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = held_run()
    job = make_job()

    def delete_and_end() -> None:
        name = ContainerJob.objects.get().container_name
        JobEvent.objects.all().delete()
        ExecutionMetadata.objects.all().delete()
        ContainerJob.objects.all().delete()
        engine.finish(name)

    with stopped_when(delete_and_end):
        until_status(job, "running")
    assert EngineLease.holder("fake-one") == ""


@pytest.mark.parametrize("running", [0, 1, 2])
def test_at_its_end_a_worker_says_what_it_leaves(
    engine: FakeEngine, host: ExecutorHost, caplog: pytest.LogCaptureFixture, running: int
) -> None:
    engine.default = held_run()
    with caplog.at_level(logging.INFO), working():
        for job in [make_job() for _ in range(running)]:
            until_status(job, "running")
    (said,) = records(caplog, "stopped; ")
    assert (
        said.getMessage()
        == [
            "stopped; nothing was running",
            "stopped; 1 job runs on and is adopted by the next worker",
            "stopped; 2 jobs run on and are adopted by the next worker",
        ][running]
    )


def test_a_job_that_hangs_in_its_launch_does_not_run_on(
    engine: FakeEngine, host: ExecutorHost, caplog: pytest.LogCaptureFixture, settings: Any
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "SHUTDOWN_GRACE_SECONDS": 0.2}
    go = threading.Event()

    def hang(spec: ContainerSpec) -> FakeRun:
        go.wait(DEADLINE_SECONDS)
        return FakeRun()

    engine.runs = hang
    try:
        with caplog.at_level(logging.INFO), working():
            until_status(make_job(), "launching")
            until(lambda: ("create", ContainerJob.objects.get().container_name) in engine.calls, "the create")
    finally:
        go.set()
    (said,) = records(caplog, "stopped; ")
    assert said.getMessage() == ("stopped; 1 job was being launched and is looked after by the next worker")


# -------------------------------------------------------------------------------------------- one job


def test_a_result_that_cannot_be_stored_ends_no_worker(
    engine: FakeEngine, host: ExecutorHost, caplog: pytest.LogCaptureFixture
) -> None:
    engine.runs = {("bad",): FakeRun(exit_code=UNSTORABLE), ("good",): FakeRun()}
    bad = make_job(command=["bad"])
    for _ in range(2):  # nor the next one, which adopts it
        with working():
            until(lambda: records(caplog, FAILED), "the job to be laid aside")
            until_status(make_job(command=["good"]), "completed")
        (told,) = records(caplog, FAILED)
        assert str(bad.pk) in told.getMessage()
        assert told.exc_info is not None  # with its traceback
        caplog.clear()
    bad.refresh_from_db()
    assert bad.status in {"launching", "running"}
    assert bad.container_name in engine.containers  # all that is left to tell how it ended


def test_what_fails_is_tried_less_and_less_and_ends_when_it_can_be_stored(
    engine: FakeEngine, host: ExecutorHost, caplog: pytest.LogCaptureFixture, impatient: None
) -> None:
    engine.default = FakeRun(exit_code=UNSTORABLE, stdout=b"all of it\n")
    with working():
        job = make_job()
        until(lambda: len(records(caplog, FAILED)) == 3, "three trials")
        engine.containers[until_status(job, "launching", "running").container_name].exit_code = 0
        until_status(job, "completed")
    waits = [str(record.getMessage()).rpartition(" in ")[2] for record in records(caplog, FAILED)]
    assert waits[:3] == ["0.2 s", "0.4 s", "0.8 s"]
    assert stored(job) == b"all of it\n"
    assert sum(engine.starts.values()) == 1


def test_once_leaves_a_job_behind_that_fails_in_its_hands(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = FakeRun(exit_code=UNSTORABLE)
    job = make_job()
    assert drain() == [f"job {job.pk}: it {FAILED}"]


def test_output_whose_storing_failed_is_read_again_and_nothing_twice(
    engine: FakeEngine, host: ExecutorHost, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    """The reader of the first run may still be at work when the second one begins."""
    store, fail = lifecycle.store_logs, threading.Event()

    def store_or_fail(*args: Any) -> None:
        if fail.is_set():
            fail.clear()
            raise OverflowError("as a driver raises it")
        store(*args)

    monkeypatch.setattr(lifecycle, "store_logs", store_or_fail)
    engine.default = held_run(b"one\n")
    with working():
        job = until_status(make_job(), "running")
        until(lambda: stored(job) == b"one\n", "the first line")
        fail.set()
        engine.write(job.container_name, b"two\n")
        until(lambda: not fail.is_set(), "the second one to fail")
        engine.write(job.container_name, b"three\n")
        until(lambda: stored(job) == b"one\ntwo\nthree\n", "both to be stored")
        engine.write(job.container_name, b"four\n")
        engine.finish(job.container_name)
        until_status(job, "completed")
    assert stored(job) == b"one\ntwo\nthree\nfour\n"
    assert job.clean_output == "one\ntwo\nthree\nfour\n"
    assert job.executions.get().logs_complete


def test_a_record_that_cannot_be_read_is_left_alone_and_the_others_are_adopted(
    engine: FakeEngine, host: ExecutorHost, caplog: pytest.LogCaptureFixture
) -> None:
    engine.default = held_run(b"said\n")
    with working():
        jobs = [until_status(make_job(), "running") for _ in range(2)]
        until(lambda: all(stored(job) for job in jobs), "their output to be stored")
    LogChunk.objects.filter(execution__job=jobs[0]).update(data=b"no frames")
    with working():
        engine.finish(jobs[1].container_name)
        until_status(jobs[1], "completed")
        until(lambda: records(caplog, FAILED), "the other one to be laid aside")
        assert engine.containers[jobs[0].container_name].alive
    assert EngineLease.holder("fake-one") == ""


def test_a_row_that_is_no_job_does_not_hold_up_the_queue(
    engine: FakeEngine, host: ExecutorHost, caplog: pytest.LogCaptureFixture
) -> None:
    odd = make_job(priority=9)
    ContainerJob.objects.filter(pk=odd.pk).update(environment=5)
    with working():
        until_status(make_job(), "completed")
        until(lambda: records(caplog, FAILED), "the odd one to be laid aside")
    assert all(name != odd.container_name for name in engine.starts)


# ------------------------------------------------------------------------------------------- one host


def test_a_host_whose_row_cannot_be_read_is_down_with_the_reason(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    broken = make_host("two")
    ExecutorHost.objects.filter(pk=broken.pk).update(executor_config={"timeout": "60s"})
    with working():
        until_status(make_job(docker_host=host), "completed")
        until(lambda: ExecutorHost.objects.get(name="two").health == "unreachable", "the host to be down")
        assert "60s" in ExecutorHost.objects.get(name="two").health_error
        ExecutorHost.objects.filter(pk=broken.pk).update(executor_config={})
        until(lambda: ExecutorHost.objects.get(name="two").health == "healthy", "the mended row to be read")


def test_a_host_whose_facts_cannot_be_stored_is_down_and_the_others_go_on(
    engine: FakeEngine,
    host: ExecutorHost,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("container_manager.worker.seats.FAILED_PROBE_SECONDS", 0.1)
    odd = fake_engine("two")
    odd.memory_bytes = UNSTORABLE
    make_host("two")
    with working():
        until_status(make_job(docker_host=host), "completed")
        until(lambda: ExecutorHost.objects.get(name="two").health == "unreachable", "the host to be down")
        assert "the worker failed at it" in ExecutorHost.objects.get(name="two").health_error
        (told,) = records(caplog, "host two failed")
        assert told.exc_info is not None
        odd.memory_bytes = 1
        until(lambda: ExecutorHost.objects.get(name="two").health == "healthy", "the host to be up again")
    assert len(records(caplog, "host two failed")) == 1


def test_a_host_at_which_the_worker_fails_is_not_given_up(
    engine: FakeEngine,
    host: ExecutorHost,
    settings: Any,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("container_manager.worker.seats.FAILED_PROBE_SECONDS", 0.3)
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "HOST_LOST_SECONDS": 0.2}
    engine.default = held_run()
    with working():
        job = until_status(make_job(), "running")
    engine.memory_bytes = UNSTORABLE
    with working() as worker:
        until(
            lambda: any((seen := seat.absence()) and seen.seconds > 1 for seat in worker._seats),
            "the host to be down for longer than the rule says",
        )
        engine.memory_bytes = 1
        until(lambda: job.events.filter(transition="adopt").exists(), "the job to be adopted")
        engine.finish(job.container_name)
        until_status(job, "completed")


def test_two_ways_to_one_engine_leave_a_cancelled_program_its_grace(
    engine: FakeEngine, host: ExecutorHost, settings: Any
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "STOP_GRACE_SECONDS": 1.5}
    make_host("again", connection_string="fake://one")
    engine.default = held_run(term_exit_code=None)
    with working() as worker:
        job = until_status(make_job(docker_host=host), "running")
        until(lambda: all(seat.agent is not None for seat in worker._seats), "both rows to be served")
        job.status = "cancelled"
        job.save()
        until(lambda: job.container_name not in engine.containers, "the container to go")
    acts = [verb for verb, _ in engine.calls if verb in {"stop", "remove"}]
    assert acts == ["stop", "stop", "remove"]  # asked, after its grace killed, and then taken away


# ------------------------------------------------------------------------------- a worker that only waits


def test_a_worker_without_a_host_says_how_to_register_one(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture, impatient: None
) -> None:
    with caplog.at_level(logging.INFO), working():
        until(lambda: records(caplog, "no host is registered"), "it to be told")
        make_host("one")
        until_status(make_job(), "completed")
    (told,) = records(caplog, "no host")  # once
    assert "register_local_host" in told.getMessage()


def test_a_worker_beside_another_one_says_that_it_stands_by(
    engine: FakeEngine, host: ExecutorHost, caplog: pytest.LogCaptureFixture, settings: Any
) -> None:
    with working() as first:
        until(lambda: EngineLease.holder("fake-one") == first.name, "the first to serve the host")
        settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "LEASE_SECONDS": 1.0}  # it tries often
        with caplog.at_level(logging.INFO), working() as second:
            until(lambda: records(caplog, "standing by"), "it to be told")
            due = second._leases._retry_at["fake-one"]
            until(lambda: second._leases._retry_at["fake-one"] > due, "it to try again")
            until_status(make_job(), "completed")
        (told,) = records(caplog, "standing by")
    assert told.getMessage() == f"host one is served by {first.name}; standing by"


def test_a_draining_worker_says_how_much_is_left(
    engine: FakeEngine, host: ExecutorHost, caplog: pytest.LogCaptureFixture
) -> None:
    engine.default = held_run()
    with caplog.at_level(logging.INFO), working(drain=True) as worker:
        jobs = [until_status(make_job(), "running") for _ in range(2)]
        worker.stop()
        until(lambda: records(caplog, "draining: 2 jobs left"), "it to be told")
        engine.finish(jobs[0].container_name)
        until(lambda: records(caplog, "draining: 1 job left"), "it to be told again")
        engine.finish(jobs[1].container_name)
        until(lambda: records(caplog, "stopped; nothing was running"), "the end")
    assert len(records(caplog, "draining:")) == 2
