"""Retry policies and deadlines with the real worker, over the fake engine."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from container_manager.core.errors import CommandNotFound, InvalidJob
from container_manager.models import ContainerJob, ExecutorHost
from container_manager.testing import FakeEngine, FakeRun
from tests.db.factories import make_job
from tests.db.workers import QUICK, drain, until, until_status, working

pytestmark = pytest.mark.django_db(transaction=True)

AT_ONCE: dict[str, Any] = {"attempts": 3, "backoff_seconds": 0, "jitter": 0}


def plan(engine: FakeEngine, *runs: FakeRun) -> None:
    """The runs of one container after the other."""
    left = list(runs)
    engine.runs = lambda spec: left.pop(0) if len(left) > 1 else left[0]


def transitions(job: ContainerJob) -> list[str]:
    return [event.transition for event in job.events.all()]


def test_without_a_policy_a_failure_is_the_end(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = FakeRun(exit_code=1)
    job = make_job()
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.attempt, job.failed_attempts) == ("failed", 1, 0)


def test_each_attempt_keeps_its_own_record_and_the_job_shows_the_last(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    plan(
        engine,
        FakeRun(exit_code=1, stdout=b"first\n", stderr=b"no\n"),
        FakeRun(exit_code=137, oom_killed=True, stdout=b"second\n"),
        FakeRun(stdout=b"third\n"),
    )
    job = make_job(retry=AT_ONCE)
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.exit_reason, job.attempt, job.failed_attempts) == ("completed", "success", 3, 2)
    assert (job.clean_output, job.stderr_log) == ("third\n", "")
    attempts = list(job.executions.order_by("attempt"))
    assert [one.exit_reason for one in attempts] == ["application_error", "out_of_memory", "success"]
    assert [one.exit_code for one in attempts] == [1, 137, 0]
    assert [b"".join(one.iter_log("stdout")) for one in attempts] == [b"first\n", b"second\n", b"third\n"]
    assert b"".join(attempts[0].iter_log("stderr")) == b"no\n"
    assert all("create" in one.docker_log for one in attempts)
    turn = ["claim", "start", "retry"]
    assert transitions(job) == ["create", *turn, *turn, "claim", "start", "finish"]
    assert [event.reason for event in job.events.filter(transition="retry")] == [
        "application_error",
        "out_of_memory",
    ]
    assert sorted(engine.starts.values()) == [1, 1, 1]
    assert engine.containers == {}


def test_when_the_attempts_are_used_up_the_last_failure_is_the_jobs(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    engine.default = FakeRun(exit_code=7)
    job = make_job(retry={**AT_ONCE, "attempts": 2})
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.exit_reason, job.exit_code, job.attempt) == ("failed", "application_error", 7, 2)


def test_a_start_that_failed_is_tried_again_only_by_name(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = FakeRun(error=CommandNotFound("no such program"))
    unnamed = make_job(retry=AT_ONCE)
    named = make_job(retry={**AT_ONCE, "rules": [{"action": "retry", "reasons": ["command_not_found"]}]})
    assert drain() == []
    unnamed.refresh_from_db()
    named.refresh_from_db()
    assert (unnamed.status, unnamed.attempt) == ("failed", 1)
    assert (named.status, named.exit_reason, named.attempt) == ("failed", "command_not_found", 3)


def test_the_wait_is_kept_and_shown(engine: FakeEngine, host: ExecutorHost) -> None:
    plan(engine, FakeRun(exit_code=1), FakeRun())
    with working():
        job = make_job(retry={"attempts": 2, "backoff_seconds": 3600, "jitter": 0})
        until(lambda: job.events.filter(transition="retry").exists(), "the first attempt to fail")
        job.refresh_from_db()
        assert job.status == "pending"
        assert job.not_before is not None
        assert timedelta(minutes=59) < job.not_before - timezone.now() <= timedelta(hours=1)
        assert "3.6e+03 s" in job.events.get(transition="retry").message
        assert job.exit_reason == ""
        ContainerJob.objects.filter(pk=job.pk).update(not_before=timezone.now())  # an hour later
        until_status(job, "completed")
    assert job.not_before is None
    assert job.attempt == 2


def test_a_job_that_waits_for_its_next_attempt_can_be_cancelled(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    engine.default = FakeRun(exit_code=1)
    with working():
        job = make_job(retry={"attempts": 2, "backoff_seconds": 3600})
        until(lambda: job.events.filter(transition="retry").exists(), "the first attempt to fail")
        assert job.cancel()
        until_status(job, "cancelled")
    assert job.attempt == 1


def test_a_job_that_its_owner_wants_ended_is_not_tried_again(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = FakeRun(hold=threading.Event(), term_exit_code=1)
    with working():
        job = until_status(make_job(retry=AT_ONCE), "running")
        assert job.cancel()
        until_status(job, "cancelled")
    assert job.attempt == 1


def test_an_ignored_end_does_not_count(engine: FakeEngine, host: ExecutorHost) -> None:
    plan(engine, FakeRun(exit_code=75), FakeRun(exit_code=75), FakeRun(exit_code=75), FakeRun())
    job = make_job(
        retry={"attempts": 1, "backoff_seconds": 0, "rules": [{"action": "ignore", "exit_codes": [75]}]}
    )
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.attempt, job.failed_attempts) == ("completed", 4, 0)


def test_however_its_policy_counts_a_job_has_a_last_attempt(
    engine: FakeEngine, host: ExecutorHost, settings: Any
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "MAX_JOB_ATTEMPTS": 4}
    engine.default = FakeRun(exit_code=75)
    job = make_job(retry={"backoff_seconds": 0, "rules": [{"action": "ignore", "exit_codes": [75]}]})
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("failed", 4)


def test_the_deadline_ends_a_running_job(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = FakeRun(hold=threading.Event(), stdout=b"so far\n")
    with working():
        job = make_job(deadline_seconds=1, timeout_seconds=60, retry=AT_ONCE)
        until_status(job, "timeout")
    assert (job.exit_reason, job.attempt, job.clean_output) == ("deadline_exceeded", 1, "so far\n")
    assert job.executions.get().exit_reason == "deadline_exceeded"


def test_the_deadline_ends_a_job_that_waits(engine: FakeEngine, host: ExecutorHost) -> None:
    host.max_concurrent_jobs = 1
    host.save()
    engine.default = FakeRun(hold=threading.Event())
    with working():
        first = until_status(make_job(), "running")
        late = make_job(deadline_seconds=1)
        until_status(late, "timeout")
        assert (late.exit_reason, late.attempt) == ("deadline_exceeded", 0)
        assert late.events.get(transition="expire").from_status == "pending"
        engine.finish(first.container_name)
        until_status(first, "completed")


def test_an_attempt_that_could_begin_only_after_the_deadline_does_not_follow(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    engine.default = FakeRun(exit_code=1)
    job = make_job(deadline_seconds=60, retry={"attempts": 3, "backoff_seconds": 120, "jitter": 0})
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.exit_reason, job.attempt) == ("failed", "application_error", 1)
    assert "No other attempt follows: it could begin only after the job's deadline." in job.exit_message


def test_a_deadline_is_counted_from_the_creation(engine: FakeEngine, host: ExecutorHost) -> None:
    job = make_job(deadline_seconds=100)
    assert job.deadline_at - job.created_at < timedelta(seconds=100.1)
    ContainerJob.objects.filter(pk=job.pk).update(deadline_at=timezone.now() - timedelta(seconds=1))
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("timeout", 0)


@pytest.mark.parametrize("deadline", [0, -1, True, 1.5, "10"])
def test_a_deadline_that_is_none_is_refused(host: ExecutorHost, deadline: object) -> None:
    with pytest.raises(InvalidJob, match="deadline_seconds"):
        make_job(deadline_seconds=deadline)


def test_a_policy_may_change_while_the_job_waits(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = FakeRun(exit_code=1)
    job = make_job()
    job.retry, job.deadline_seconds = 2, 3600
    job.retry = {"attempts": 2, "backoff_seconds": 0}
    job.save()
    job.refresh_from_db()
    assert job.deadline_at is not None
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("failed", 2)
