"""The daemon dies by SIGKILL: with live-restore, without it, and together with all that it had started."""

from __future__ import annotations

import signal

import pytest

from container_manager.models import ContainerJob
from tests.acceptance.running import register, stored, until, until_says, until_status
from tests.fault import harm, jobs

pytestmark = pytest.mark.engine


def running(job: ContainerJob) -> ContainerJob:
    """Wait until the job runs and its output is being followed."""
    until_status(job, "running")
    return until_says(job, "line 3\n")


def test_row_11_daemon_killed_with_live_restore(
    transactional_db: None, child_environment: dict[str, str]
) -> None:
    engine = harm.engine("steady", flags=("--live-restore",))
    host = register(engine.url, "steady")
    outlives, ends = jobs.make(host, jobs.counting(code=7)), jobs.make(host, jobs.counting(code=9))
    with harm.seen(engine) as client, harm.worker(child_environment):
        running(outlives)
        running(ends)
        processes = {job: harm.main_process(harm.container_of(client, job)) for job in (outlives, ends)}
        harm.kill_daemon(engine)
        try:
            harm.until_health(host, "unreachable")
            processes[ends].signal(signal.SIGUSR1)
            assert processes[ends].wait(30), "the program did not end while the daemon was away"
            assert processes[outlives].alive, "live-restore did not keep the program alive"
            for job in (outlives, ends):
                jobs.not_ended(job)
        finally:
            engine.resume()
        harm.until_health(host, "healthy")
        until_status(ends, "completed", "failed")
        assert stored(outlives).status == "running"
        processes[outlives].signal(signal.SIGUSR1)
        until_status(outlives, "completed", "failed")
        harm.nothing_left(client)
    assert jobs.ended(outlives) == ("failed", "application_error", 7)
    assert jobs.ended(ends) == ("failed", "application_error", 9)
    for job in (outlives, ends):
        jobs.ended_once(job)
        jobs.lines_are_right(job)


def test_row_12_daemon_killed_without_live_restore(
    transactional_db: None, child_environment: dict[str, str]
) -> None:
    engine = harm.engine("one")
    host = register(engine.url, "one")
    job = jobs.make(host, jobs.counting())
    with harm.seen(engine) as client, harm.worker(child_environment):
        running(job)
        harm.kill_daemon(engine)
        try:
            harm.until_health(host, "unreachable")
            jobs.not_ended(job)
        finally:
            engine.resume()  # at its start the daemon stops what survived it
        until_status(job, "completed", "failed", "cancelled")
        harm.nothing_left(client)
    job = stored(job)
    assert (job.status, job.exit_reason) == ("failed", "engine_stopped"), job.exit_message
    assert job.exit_code in {137, 143}
    assert "engine" in job.exit_message.lower()
    assert "daemon" in job.exit_message.lower()
    jobs.ended_once(job)
    jobs.lines_are_right(job)


def test_row_12_a_new_job_runs_after_the_daemon_is_back(
    transactional_db: None, child_environment: dict[str, str]
) -> None:
    engine = harm.engine("one")
    host = register(engine.url, "one")
    with harm.seen(engine) as client, harm.worker(child_environment):
        harm.until_health(host, "healthy")
        harm.kill_daemon(engine)
        try:
            harm.until_health(host, "unreachable")
            job = jobs.make(host, "true")
        finally:
            engine.resume()
        until_status(job, "completed")
        harm.nothing_left(client)
    jobs.ended_once(job)
    assert stored(job).attempt == 1


def test_row_13_daemon_shims_and_processes_killed(
    transactional_db: None, child_environment: dict[str, str]
) -> None:
    engine = harm.engine("one")
    host = register(engine.url, "one")
    crashed = [jobs.make(host, jobs.counting()) for _ in range(2)]
    with harm.seen(engine) as client, harm.worker(child_environment):
        for job in crashed:
            running(job)
        ids = {str(harm.container_of(client, job).id) for job in crashed}
        harm.crash(engine, ids)
        try:
            harm.until_health(host, "unreachable")
            for job in crashed:
                jobs.not_ended(job)
        finally:
            engine.resume()
        for job in crashed:
            until_status(job, "completed", "failed", "cancelled")
        harm.nothing_left(client)
    for job in crashed:
        assert jobs.ended(job) == ("failed", "host_crashed", 255), stored(job).docker_log
        assert "crashed" in stored(job).exit_message
        jobs.ended_once(job)
        jobs.lines_are_right(job)


def test_row_13_a_crash_while_no_worker_watched(
    transactional_db: None, child_environment: dict[str, str]
) -> None:
    engine = harm.engine("one")
    host = register(engine.url, "one")
    job = jobs.make(host, jobs.counting())
    with harm.seen(engine) as client:
        with harm.worker(child_environment):
            running(job)
        harm.crash(engine, {str(harm.container_of(client, job).id)})
        engine.resume()
        until(lambda: harm.container_of(client, job).status == "exited", "the engine to see the crash")
        with harm.worker(child_environment):
            until_status(job, "completed", "failed", "cancelled")
            harm.nothing_left(client)
    assert jobs.ended(job) == ("failed", "host_crashed", 255), stored(job).docker_log
    jobs.ended_once(job)
    jobs.lines_are_right(job)
