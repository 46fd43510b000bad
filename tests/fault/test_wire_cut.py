"""A host on TCP whose wire is pulled out: unreachable is not dead, until the limit says so."""

from __future__ import annotations

import signal

import pytest

from container_manager.models import ContainerJob
from tests.acceptance.running import register, stored, until_says, until_status
from tests.fault import harm, jobs

pytestmark = pytest.mark.engine

#: How soon a host that does not answer has to be recorded as unreachable.
NOTICED_SECONDS = 20.0
HOST_LOST_SECONDS = 6.0


def running(job: ContainerJob) -> ContainerJob:
    until_status(job, "running")
    return until_says(job, "line 3\n")


def test_row_15_wire_cut_for_a_while(transactional_db: None, child_environment: dict[str, str]) -> None:
    engine = harm.engine("one")
    host = register(engine.tcp_url, "far")
    outlives, ends = jobs.make(host, jobs.counting(code=5)), jobs.make(host, jobs.counting(code=6))
    with harm.seen(engine) as client, harm.worker(child_environment):
        running(outlives)
        running(ends)
        processes = {job: harm.main_process(harm.container_of(client, job)) for job in (outlives, ends)}
        with harm.cut(engine) as since:
            harm.until_health(host, "unreachable", seconds=NOTICED_SECONDS)
            waiting = jobs.make(host, "true")
            processes[ends].signal(signal.SIGUSR1)
            assert processes[ends].wait(30)
            harm.hold_for(harm.pick(8, 30), since=since)
            for job in (outlives, ends):
                assert stored(job).status == "running", "unreachable is not dead"
            assert stored(waiting).status == "pending"
        harm.until_health(host, "healthy", seconds=NOTICED_SECONDS)
        until_status(ends, "completed", "failed")
        until_status(waiting, "completed", "failed")
        assert stored(outlives).status == "running"
        processes[outlives].signal(signal.SIGUSR1)
        until_status(outlives, "completed", "failed")
        harm.nothing_left(client)
    assert jobs.ended(outlives) == ("failed", "application_error", 5)
    assert jobs.ended(ends) == ("failed", "application_error", 6)
    assert jobs.ended(waiting) == ("completed", "success", 0)
    for job in (outlives, ends):
        assert stored(job).attempt == 1
        jobs.ended_once(job)
        jobs.lines_are_whole(job)  # the engine was well all the time: nothing may be missing


def test_row_16_wire_cut_for_longer_than_the_limit(
    transactional_db: None, child_environment: dict[str, str]
) -> None:
    engine = harm.engine("one")
    host = register(engine.tcp_url, "far")
    outlives, ends = jobs.make(host, jobs.counting()), jobs.make(host, jobs.counting())
    with harm.seen(engine) as client, harm.worker(child_environment, HOST_LOST_SECONDS=HOST_LOST_SECONDS):
        running(outlives)
        running(ends)
        processes = {job: harm.main_process(harm.container_of(client, job)) for job in (outlives, ends)}
        with harm.cut(engine):
            harm.until_health(host, "unreachable", seconds=NOTICED_SECONDS)
            for job in (outlives, ends):
                jobs.not_ended(job)
            for job in (outlives, ends):
                until_status(job, "failed", "completed", seconds=HOST_LOST_SECONDS + 20)
                assert jobs.ended(job) == ("failed", "host_lost", None)
            processes[ends].signal(signal.SIGUSR1)
            assert processes[ends].wait(30)
            assert processes[outlives].alive
        harm.until_health(host, "healthy", seconds=NOTICED_SECONDS)
        harm.nothing_left(client)
        assert processes[outlives].wait(10), "its container is removed and its process goes on"
        after = jobs.make(host, "true")
        until_status(after, "completed")
    for job in (outlives, ends):
        assert jobs.ended(job) == ("failed", "host_lost", None), "there is a second result"
        assert stored(job).attempt == 1
        assert "unreachable" in stored(job).exit_message or "reach" in stored(job).exit_message
        jobs.ended_once(job)
        jobs.lines_are_right(job)
        assert not stored(job).executions.get().logs_complete


def test_row_16_a_worker_that_comes_later_keeps_the_limit_too(
    transactional_db: None, child_environment: dict[str, str]
) -> None:
    engine = harm.engine("one")
    host = register(engine.tcp_url, "far")
    job = jobs.make(host, jobs.counting())
    with harm.seen(engine) as client:
        with harm.worker(child_environment, HOST_LOST_SECONDS=HOST_LOST_SECONDS):
            running(job)
        with harm.cut(engine), harm.worker(child_environment, HOST_LOST_SECONDS=HOST_LOST_SECONDS):
            until_status(job, "failed", "completed", seconds=HOST_LOST_SECONDS + NOTICED_SECONDS + 20)
        with harm.worker(child_environment, HOST_LOST_SECONDS=HOST_LOST_SECONDS):
            harm.nothing_left(client)
    assert jobs.ended(job) == ("failed", "host_lost", None)
    jobs.ended_once(job)
    jobs.lines_are_right(job)


def test_row_16_no_limit_where_it_is_zero(transactional_db: None, child_environment: dict[str, str]) -> None:
    engine = harm.engine("one")
    host = register(engine.tcp_url, "far")
    job = jobs.make(host, jobs.counting())
    with harm.seen(engine) as client, harm.worker(child_environment, HOST_LOST_SECONDS=0):
        running(job)
        process = harm.main_process(harm.container_of(client, job))
        with harm.cut(engine) as since:
            harm.until_health(host, "unreachable", seconds=NOTICED_SECONDS)
            harm.hold_for(HOST_LOST_SECONDS * 2, since=since)
            jobs.not_ended(job)
        process.signal(signal.SIGUSR1)
        until_status(job, "completed", "failed")
        harm.nothing_left(client)
    assert jobs.ended(job) == ("completed", "success", 0)
    jobs.lines_are_whole(job)
