"""The worker over the fake engine when something breaks: host, engine, worker, or a hand from outside."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import pytest
from django.utils import timezone

from container_manager import lifecycle
from container_manager.core.errors import (
    EngineFault,
    ExecutorError,
    HostFault,
    HostTimeout,
    ImageNotFound,
    NetworkNotFound,
    RegistryTrouble,
)
from container_manager.core.observation import EventAction, HostFacts, ImageFacts
from container_manager.core.spec import ContainerSpec
from container_manager.models import (
    ContainerJob,
    EngineLease,
    ExecutionMetadata,
    ExecutorHost,
    Installation,
    LogChunk,
)
from container_manager.models.admission import spec_of
from container_manager.testing import FakeClock, FakeContainer, FakeEngine, FakeExecutor, FakeRun, fake_engine
from tests.db.factories import hold, make_host, make_job
from tests.db.workers import (
    DEADLINE_SECONDS,
    QUICK,
    drain,
    held_run,
    stored,
    until,
    until_status,
    working,
)

pytestmark = pytest.mark.django_db(transaction=True)


def transitions(job: ContainerJob) -> list[str]:
    return [event.transition for event in job.events.all()]


# ------------------------------------------------------------------------------- the host, while launching


@pytest.mark.parametrize("verb", ["pull", "create"])
def test_a_job_whose_host_breaks_before_the_start_is_given_back_and_runs_later(
    engine: FakeEngine, host: ExecutorHost, verb: str
) -> None:
    engine.fail(verb, EngineFault("no space left on device"))
    job = make_job()
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("completed", 2)
    assert transitions(job) == ["create", "claim", "release", "claim", "start", "finish"]
    assert "no space left" in job.events.get(transition="release").message
    first, second = job.executions.order_by("attempt")
    assert "no space left" in first.exit_message
    assert first.recorded_at is not None
    assert second.exit_reason == "success"
    assert sum(engine.starts.values()) == 1


def test_a_create_whose_answer_was_lost_runs_once(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.fail("create", HostTimeout("no answer in 60 s"), after=True)
    job = make_job()
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("completed", 2)
    assert dict(engine.starts) == {job.container_name: 1}


def test_a_start_that_had_no_effect_is_found_out_and_given_back(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    engine.fail("start", HostTimeout("no answer in 60 s"))
    job = make_job()
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("completed", 2)
    assert dict(engine.starts) == {job.container_name: 1}
    assert engine.containers == {}  # nor can the first one start behind our back


def test_a_start_whose_answer_was_lost_is_found_running(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = held_run(b"it ran\n")
    engine.fail("start", HostTimeout("no answer in 60 s"), after=True)
    with working():
        job = until_status(make_job(), "running")
        engine.finish(job.container_name)
        until_status(job, "completed")
    assert (job.attempt, job.clean_output) == (1, "it ran\n")
    assert dict(engine.starts) == {job.container_name: 1}


def test_a_host_that_stays_broken_is_asked_less_and_less(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.fail("pull", EngineFault("no space left on device"), times=None)
    with working() as worker:
        job = make_job()
        until(lambda: job.executions.filter(recorded_at__isnull=False).count() == 1, "the first failure")
        (seat,) = worker._seats
        until(lambda: seat.breaker.failures == 1, "the breaker to open")
        assert seat.breaker.allowance(time.monotonic(), in_flight=0) == 0
        engine.heal("pull")
        until_status(job, "completed")
    assert job.attempt == 2


# ------------------------------------------------------------------------------- images that take their time


class SlowRegistry:
    """Lets the pulls of one image hang until the test lets them go on."""

    IMAGE = "slow:1"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.asked = 0
        pull = FakeExecutor.pull

        def slow(
            executor: FakeExecutor, image: str, *, progress: Callable[[str], None] | None = None
        ) -> ImageFacts:
            if image == self.IMAGE and not self.go_on.is_set():
                self.asked += 1
                self.reached.set()
                assert self.go_on.wait(30)
            return pull(executor, image, progress=progress)

        monkeypatch.setattr(FakeExecutor, "pull", slow)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.go_on.set()


def test_a_pull_that_takes_long_holds_up_neither_a_cancel_nor_a_deadline_nor_other_images(
    engine: FakeEngine, host: ExecutorHost, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "LAUNCH_CONCURRENCY": 2}
    with working(), SlowRegistry(monkeypatch) as registry:
        first, second, third = (make_job(docker_image=registry.IMAGE) for _ in range(3))
        hurried = make_job(docker_image=registry.IMAGE, deadline_seconds=1)
        assert registry.reached.wait(30)
        for job in (first, second, third):
            until_status(job, "launching")
        until_status(make_job(), "completed")
        assert first.cancel()
        until_status(first, "cancelled")  # the one for which the image is fetched
        assert second.cancel()
        until_status(second, "cancelled")
        assert until_status(hurried, "timeout").exit_reason == "deadline_exceeded"
        assert not registry.go_on.is_set()
        registry.go_on.set()
        until_status(third, "completed")
    assert registry.asked == 1
    assert engine.starts[third.container_name] == 1
    assert not any(engine.starts[job.container_name] for job in (first, second, hurried))


def test_a_worker_that_stops_gives_back_what_waits_for_its_image(
    engine: FakeEngine, host: ExecutorHost, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "SHUTDOWN_GRACE_SECONDS": 25.0}
    with SlowRegistry(monkeypatch) as registry:
        with working():
            jobs = [make_job(docker_image=registry.IMAGE) for _ in range(2)]
            for job in jobs:
                until_status(job, "launching")
            assert registry.reached.wait(30)
            stopped_at = time.monotonic()
        assert time.monotonic() - stopped_at < 15, "the pull was waited for"
        for job in jobs:
            until_status(job, "pending")
    assert drain() == []
    for job in jobs:
        assert until_status(job, "completed").attempt == 2
        assert engine.starts[job.container_name] == 1


def test_an_image_that_goes_away_before_the_create_is_fetched_once_more(
    engine: FakeEngine, host: ExecutorHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = FakeExecutor.create

    def create_late(self: FakeExecutor, spec: ContainerSpec) -> str:
        if engine.pulls[spec.image] == 1:
            engine.images.discard(spec.image)
        return create(self, spec)

    monkeypatch.setattr(FakeExecutor, "create", create_late)
    job = make_job()
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.attempt, engine.pulls["demo:1"]) == ("completed", 1, 2)


# ------------------------------------------------------------------------------------ the engine, away


def test_an_engine_that_goes_away_and_comes_back_costs_no_job(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = held_run(b"before\n")
    with working():
        job = until_status(make_job(), "running")
        until(lambda: stored(job) == b"before\n", "the log to be followed")
        engine.go_down()
        until(lambda: ExecutorHost.objects.get().health == "unreachable", "the host to be known as down")
        engine.write(job.container_name, b"meanwhile\n")
        waiting = make_job(docker_host=host, name="waiting")
        engine.come_back()
        until(lambda: ExecutorHost.objects.get().health == "healthy", "the host to be up again")
        assert until_status(job, "running")  # unreachable is not dead
        engine.write(job.container_name, b"after\n")
        engine.finish(job.container_name)
        until_status(job, "completed")
        engine.finish(until_status(waiting, "running").container_name)
        until_status(waiting, "completed")
    assert stored(job) == b"before\nmeanwhile\nafter\n"
    assert job.executions.get().logs_complete
    assert dict(engine.starts) == {job.container_name: 1, waiting.container_name: 1}


def test_a_container_that_ended_while_the_engine_was_away_is_recorded(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    engine.default = held_run(b"last words\n")
    with working():
        job = until_status(make_job(), "running")
        engine.go_down()
        until(lambda: ExecutorHost.objects.get().health == "unreachable", "the host to be known as down")
        engine.finish(job.container_name, 3)
        engine.come_back()
        until_status(job, "failed")
    assert (job.exit_reason, job.exit_code, stored(job)) == ("application_error", 3, b"last words\n")


def test_an_engine_that_was_stopped_under_the_job_is_named(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = held_run()
    with working():
        job = until_status(make_job(), "running")
        engine.go_down()
        until(lambda: ExecutorHost.objects.get().health == "unreachable", "the host to be known as down")
        engine.kill(job.container_name)
        engine.come_back()
        until_status(job, "failed")
    assert (job.exit_reason, job.exit_code) == ("engine_stopped", 137)


@contextmanager
def another_engine_at_the_address(engine: FakeEngine) -> Iterator[None]:
    """Calls reach an engine that knows of nothing, while the stream of events to the right one stands."""
    with engine.changed:
        containers, own_id = dict(engine.containers), engine.engine_id
        engine.engine_id = "fake-another"
        engine.containers.clear()
    yield
    with engine.changed:
        engine.engine_id = own_id
        engine.containers.update(containers)


def test_a_stream_that_stands_does_not_let_another_engine_end_a_job(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    engine.default = held_run(b"so far\n")
    with working():
        job = until_status(make_job(), "running")
        with another_engine_at_the_address(engine):
            until(lambda: ExecutorHost.objects.get().health == "mismatched", "the other one to be noticed")
            assert until_status(job, "running")
        until(lambda: ExecutorHost.objects.get().health == "healthy", "the host to be back")
        engine.finish(job.container_name, 3)
        until_status(job, "failed")
    assert (job.exit_reason, job.exit_code, stored(job)) == ("application_error", 3, b"so far\n")


def test_another_engine_behind_a_stream_that_stands_loses_the_host(
    engine: FakeEngine, host: ExecutorHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container_manager.worker.supervisor.HOSTS_SECONDS", 0.1)
    monkeypatch.setattr("container_manager.worker.upkeep.MISMATCH_SECONDS", 0.5)
    engine.default = held_run()
    with working():
        job = until_status(make_job(), "running")
        with another_engine_at_the_address(engine):
            until_status(job, "failed")
    assert job.exit_reason == "host_lost"
    assert "fake-another" in job.exit_message


@pytest.mark.parametrize(("verb", "error"), [("pull", ImageNotFound), ("create", NetworkNotFound)])
def test_what_another_engine_does_not_have_ends_no_job(
    engine: FakeEngine,
    host: ExecutorHost,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    error: type[ExecutorError],
) -> None:
    real = getattr(FakeExecutor, verb)
    asked = []

    def moved(self: FakeExecutor, *args: Any, **kwargs: Any) -> Any:
        if not asked:
            asked.append(verb)
            engine.engine_id = "fake-another"
            raise error("there is no such thing")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(FakeExecutor, verb, moved)
    with working():
        job = make_job()
        until(lambda: ExecutorHost.objects.get().health == "mismatched", "the other one to be noticed")
        engine.engine_id = "fake-one"
        until_status(job, "completed")
    assert job.attempt == 2


def test_an_end_without_an_event_is_found_by_the_comparison(
    engine: FakeEngine, host: ExecutorHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "publish", lambda action, container: None)  # every event gets lost
    job = make_job(command=["short"])
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.exit_code) == ("completed", 0)
    assert engine.events == []


def test_a_host_whose_driver_fails_at_the_probe_is_down_with_that_text_and_comes_back(
    engine: FakeEngine, host: ExecutorHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def health(self: FakeExecutor) -> HostFacts:
        raise ValueError("an odd answer")

    monkeypatch.setattr("container_manager.worker.hosts.PROBE_AGAIN_SECONDS", 0.1)
    with monkeypatch.context() as driver, working():
        driver.setattr(FakeExecutor, "health", health)
        job = make_job()
        until(lambda: ExecutorHost.objects.get().health == "unreachable", "the host to be known as down")
        assert "an odd answer" in ExecutorHost.objects.get().health_error
        driver.undo()
        until_status(job, "completed")
    assert "Traceback" in caplog.text


# ------------------------------------------------------------------------------------ a hand from outside


@pytest.mark.parametrize(
    ("act", "reason", "code"),
    [
        (FakeEngine.remove, "removed_externally", None),
        (FakeEngine.kill, "killed_externally", 137),
        (lambda engine, name: engine.kill(name, oom=True), "out_of_memory", 137),
    ],
    ids=["removed", "killed", "out-of-memory"],
)
def test_what_others_do_to_a_container_is_named(
    engine: FakeEngine,
    host: ExecutorHost,
    act: Callable[[FakeEngine, str], None],
    reason: str,
    code: int | None,
) -> None:
    engine.default = held_run(b"so far\n")
    with working():
        job = until_status(make_job(), "running")
        until(lambda: stored(job) == b"so far\n", "the log to be stored")
        act(engine, job.container_name)
        until_status(job, "failed")
    assert (job.exit_reason, job.exit_code) == (reason, code)
    assert stored(job) == b"so far\n"
    assert job.completed_at is not None


def test_a_container_removed_after_a_wish_to_cancel_is_a_cancel(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    engine.default = held_run(term_exit_code=None)
    with working():
        job = until_status(make_job(), "running")
        assert job.cancel()
        engine.remove(job.container_name)
        until_status(job, "cancelled")
    assert job.exit_reason == "cancelled"


def test_a_row_deleted_under_a_running_job_takes_its_container_along(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    engine.default = held_run(b"talks\n")
    with working():
        job = until_status(make_job(), "running")
        name = job.container_name
        ContainerJob.objects.all().delete()
        engine.write(name, b"and talks\n")
        until(lambda: not engine.containers, "the container to be removed")
        engine.default = FakeRun()
        until_status(make_job(), "completed")  # the worker goes on


# ------------------------------------------------------------------------------------------ other workers


def test_the_next_worker_adopts_what_runs_and_doubles_no_line(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = held_run(b"one\ntwo\n")
    with working():
        job = until_status(make_job(), "running")
        until(lambda: stored(job) == b"one\ntwo\n", "the log to be followed")
    assert engine.containers[job.container_name].alive
    assert EngineLease.holder("fake-one") == ""
    job.refresh_from_db()
    assert job.status == "running"

    engine.write(job.container_name, b"three\n")
    with working():
        until(lambda: "adopt" in transitions(job), "the job to be adopted")
        until(lambda: stored(job) == b"one\ntwo\nthree\n", "the log to be read on")
        engine.write(job.container_name, b"four\n")
        engine.finish(job.container_name)
        until_status(job, "completed")
        until(lambda: not engine.containers, "the container to be removed")
    assert stored(job) == b"one\ntwo\nthree\nfour\n"
    assert job.clean_output == "one\ntwo\nthree\nfour\n"
    assert dict(engine.starts) == {job.container_name: 1}
    assert LogChunk.objects.count() == job.executions.get().log_chunk_count
    assert transitions(job) == ["create", "claim", "start", "adopt", "finish"]
    assert "adopt" in job.docker_log
    assert "create" in job.docker_log  # what the first worker saw is kept


def test_a_container_that_ended_between_two_workers_is_recorded(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    engine.default = held_run(b"all of it\n")
    with working():
        job = until_status(make_job(timeout_seconds=60), "running")
    engine.finish(job.container_name, 4)
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.exit_code, stored(job)) == ("failed", 4, b"all of it\n")


def test_a_cancel_between_two_workers_is_carried_out(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = held_run()
    with working():
        job = until_status(make_job(), "running")
    assert job.cancel()
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.exit_code) == ("cancelled", 143)


def test_a_time_limit_goes_on_between_two_workers(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = held_run()
    with working():
        job = until_status(make_job(timeout_seconds=1), "running")
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.exit_reason) == ("timeout", "timeout")


def test_a_ceiling_lowered_meanwhile_does_not_end_what_runs(
    engine: FakeEngine, host: ExecutorHost, settings: Any
) -> None:
    engine.default = held_run(b"big\n")
    with working():
        job = until_status(make_job(memory_limit=1024), "running")
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "MAX_MEMORY_LIMIT": 512}
    with working():
        until(lambda: "adopt" in transitions(job), "the job to be adopted")
        engine.finish(job.container_name)
        until_status(job, "completed")
    assert stored(job) == b"big\n"


def test_a_job_left_launching_without_a_container_is_given_back(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    """A worker died between the intent and the act."""
    lease = hold()
    job = make_job()
    lifecycle.claim(lease, host, limit=1, worker="worker:dead")
    EngineLease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("completed", 2)
    assert transitions(job) == ["create", "claim", "adopt", "release", "claim", "start", "finish"]


def test_only_one_worker_serves_an_engine_and_the_other_takes_over(
    engine: FakeEngine, host: ExecutorHost, settings: Any
) -> None:
    engine.default = held_run(b"x\n")
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "LEASE_SECONDS": 240.0}  # it looks once in a minute
    with working() as first:
        job = until_status(make_job(), "running")
        settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "LEASE_SECONDS": 2.0}
        with working() as second:
            until(lambda: any(seat.reachable for seat in second._seats), "the second to reach the host")
            assert EngineLease.holder("fake-one") == first.name
            # As if the first had been silent for longer than its lease. It does not know yet.
            EngineLease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
            until(lambda: EngineLease.holder("fake-one") == second.name, "the second to take over")
            until(lambda: "adopt" in transitions(job), "the job to be adopted")
            engine.finish(job.container_name)
            until_status(job, "completed")
            later = until_status(make_job(), "running")
            engine.finish(later.container_name)
            until_status(later, "completed")
            until(lambda: not first._hands and not first._seats._tenures, "the first to let go")
    workers = set(ExecutionMetadata.objects.values_list("worker", flat=True))
    assert workers == {second.name}
    assert dict(engine.starts) == {job.container_name: 1, later.container_name: 1}
    assert stored(job) == stored(later) == b"x\n"


# ------------------------------------------------------------------------------ containers left behind


def keep(settings: Any, **further: Any) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "IMMEDIATE_CLEANUP": False, **further}


def test_without_immediate_cleanup_containers_stay_for_their_time(
    engine: FakeEngine, host: ExecutorHost, settings: Any
) -> None:
    keep(settings, CONTAINER_RETENTION_SECONDS=1800.0)
    engine.clock = FakeClock(datetime.now(UTC) - timedelta(hours=1))
    job = make_job()
    assert drain() == []
    job.refresh_from_db()
    assert job.status == "completed"
    assert list(engine.containers) == [job.container_name]
    assert job.executions.get().removed_at is None

    keep(settings, CONTAINER_RETENTION_SECONDS=7200.0)  # by the record it ended an hour ago
    engine.clock.advance(3600)
    lists = [verb for verb, _ in engine.calls].count("list_owned")
    with working():
        until(lambda: [verb for verb, _ in engine.calls].count("list_owned") >= lists + 3, "some comparisons")
    assert list(engine.containers) == [job.container_name]

    keep(settings, CONTAINER_RETENTION_SECONDS=1800.0)
    with working():
        until(lambda: not engine.containers, "the container to be removed")


def test_strays_go_and_what_is_not_ours_stays(engine: FakeEngine, host: ExecutorHost) -> None:
    clock = FakeClock(datetime.now(UTC) - timedelta(hours=1))
    engine.clock = clock
    mine = Installation.current()
    unknown = make_job(name="deleted")
    stray = spec_of(unknown, mine)
    foreign = spec_of(unknown, "somebody-else")
    object.__setattr__(foreign, "name", "theirs")
    ContainerJob.objects.all().delete()
    for spec in (stray, foreign):
        engine.add(spec)
    clock.advance(3600)
    young = make_job(name="deleted, too")
    engine.add(spec_of(young, mine))
    name = young.container_name
    ContainerJob.objects.all().delete()
    with working():
        until(lambda: stray.name not in engine.containers, "the stray to be removed")
        lists = [verb for verb, _ in engine.calls].count("list_owned")
        until(lambda: [verb for verb, _ in engine.calls].count("list_owned") >= lists + 3, "some comparisons")
    assert sorted(engine.containers) == sorted([name, "theirs"])  # the young one may be ahead of its row


def test_a_removal_that_failed_is_made_up_for(engine: FakeEngine, host: ExecutorHost, settings: Any) -> None:
    clock = FakeClock(datetime.now(UTC) - timedelta(hours=1))
    engine.clock = clock
    engine.fail("remove", HostFault("no answer"), times=1)
    job = make_job()
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "RESYNC_INTERVAL": 60.0}  # or a slow run makes up for it
    assert drain() == []
    job.refresh_from_db()
    assert job.status == "completed"
    assert list(engine.containers) == [job.container_name]
    settings.CONTAINER_MANAGER_SETTINGS = QUICK
    clock.advance(3600)
    with working():
        until(lambda: not engine.containers, "the container to be removed as a stray")


# ------------------------------------------------------------------------------------- hosts that change


def test_a_host_registered_while_the_worker_runs_is_served(
    engine: FakeEngine, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container_manager.worker.supervisor.HOSTS_SECONDS", 0.1)
    with working():
        host = make_host("one")
        job = until_status(make_job(), "completed")
    assert job.docker_host == host


def test_a_host_that_is_switched_off_finishes_what_it_has(
    engine: FakeEngine, host: ExecutorHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container_manager.worker.supervisor.HOSTS_SECONDS", 0.1)
    engine.default = held_run()
    ExecutorHost.objects.update(max_concurrent_jobs=1)
    with working() as worker:
        job = until_status(make_job(docker_host=host), "running")
        waiting = make_job(docker_host=host)
        ExecutorHost.objects.update(is_active=False)
        until(lambda: not any(seat.serving for seat in worker._seats), "the host to be left")
        engine.finish(job.container_name)
        until_status(job, "completed")
        until(lambda: not worker._seats, "the seat to be given up")
    waiting.refresh_from_db()
    assert (waiting.status, waiting.attempt) == ("pending", 0)


# ------------------------------------------------------------------- an engine whose clock is wrong


@pytest.fixture(params=[-300, 300])
def wrong_clock(request: pytest.FixtureRequest, engine: FakeEngine) -> FakeEngine:
    """The engine with its clock some minutes off."""
    engine.clock = lambda: time.time_ns() + request.param * 10**9
    return engine


def test_a_job_that_ends_before_its_deadline_succeeds(wrong_clock: FakeEngine, host: ExecutorHost) -> None:
    job = make_job(deadline_seconds=60)
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.exit_reason) == ("completed", "success")


def test_a_job_that_ended_before_its_owner_wanted_it_is_as_it_ended(
    wrong_clock: FakeEngine, host: ExecutorHost
) -> None:
    wrong_clock.default = held_run()
    with working():
        job = until_status(make_job(), "running")
    wrong_clock.finish(job.container_name)
    assert job.cancel()
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.exit_reason) == ("completed", "success")


def test_a_deadline_that_passed_unseen_before_the_end_is_told(
    wrong_clock: FakeEngine, host: ExecutorHost
) -> None:
    wrong_clock.default = held_run()
    with working():
        job = until_status(make_job(deadline_seconds=60), "running")
    # As if the minute had gone by while no worker was there.
    ContainerJob.objects.filter(pk=job.pk).update(deadline_at=timezone.now() - timedelta(seconds=5))
    wrong_clock.finish(job.container_name, 143)
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.exit_reason) == ("timeout", "deadline_exceeded")


# ------------------------------------------------------------------------- what comes at the wrong moment


def test_a_time_limit_that_passes_out_of_sight_is_no_timeout_of_what_had_ended(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    engine.default = held_run(b"in time\n")
    with working() as worker:
        job = until_status(make_job(timeout_seconds=1), "running")
        engine.go_down()
        engine.finish(job.container_name)
        (held,) = worker._hands
        until(lambda: held.run.intent, "its time limit to pass")
        engine.come_back()
        until_status(job, "completed", "timeout")
    assert (job.status, job.exit_reason, stored(job)) == ("completed", "success", b"in time\n")


def test_a_launch_in_flight_does_not_begin_once_the_row_is_gone(
    engine: FakeEngine, host: ExecutorHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container_manager.worker.supervisor.HOSTS_SECONDS", 0.05)
    reached, go_on = threading.Event(), threading.Event()
    create = FakeExecutor.create

    def slow(self: FakeExecutor, spec: ContainerSpec) -> str:
        reached.set()
        assert go_on.wait(30)
        return create(self, spec)

    monkeypatch.setattr(FakeExecutor, "create", slow)
    with working() as worker:
        make_job()
        assert reached.wait(30)
        ContainerJob.objects.all().delete()
        until(lambda: not worker._hands, "the job to be dropped")
        go_on.set()
        until_status(make_job(), "completed")
    assert list(engine.starts.values()) == [1]  # of the second job alone


def test_a_job_that_no_host_can_run_does_not_hold_up_the_others(
    engine: FakeEngine, host: ExecutorHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = FakeExecutor.create

    def damaged(self: FakeExecutor, spec: ContainerSpec) -> str:
        if spec.image == "damaged:1":
            raise EngineFault("layer does not exist")
        return create(self, spec)

    monkeypatch.setattr(FakeExecutor, "create", damaged)
    with working():
        bad = make_job(docker_image="damaged:1", priority=10)
        until(lambda: bad.executions.filter(recorded_at__isnull=False).exists(), "the first failure")
        until_status(make_job(), "completed")
        assert bad.cancel()


#: What no encoding and what PostgreSQL does not accept.
HOSTILE = "no \ud800 and no \0"


def test_what_a_registry_says_can_be_stored_whatever_it_is(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.fail("pull", RegistryTrouble("the registry is in trouble", detail=HOSTILE + "x" * 1_000_000))
    job = make_job()
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.exit_reason) == ("failed", "image_pull_failed")
    execution = job.executions.get()
    event = job.events.get(to_status="failed")
    for text in (job.exit_message, execution.exit_message, event.message, job.docker_log):
        assert "no ⟨U+D800⟩ and no ⟨NUL⟩" in text
        assert "characters are left out here" in text
        assert len(text) < 20_000


def test_what_an_engine_says_of_its_own_trouble_can_be_stored(
    engine: FakeEngine, host: ExecutorHost, caplog: pytest.LogCaptureFixture
) -> None:
    engine.fail("create", EngineFault(HOSTILE))
    job = make_job()
    assert drain() == []
    job.refresh_from_db()
    assert job.status == "completed"
    release = job.events.get(transition="release")
    first = job.executions.order_by("attempt").first()
    assert first is not None
    for text in (release.message, first.exit_message, first.docker_log, caplog.text):
        assert "no ⟨U+D800⟩ and no ⟨NUL⟩" in text


def test_a_note_about_what_is_over_can_be_stored(engine: FakeEngine, host: ExecutorHost) -> None:
    job = make_job()
    assert drain() == []
    lifecycle.note(job.executions.get(), "container_removed", HOSTILE, "worker")
    job.refresh_from_db()
    assert job.docker_log.endswith("no ⟨U+D800⟩ and no ⟨NUL⟩\n")


def test_a_log_that_cannot_be_read_does_not_keep_the_job_for_ever(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    engine.fail("logs", HostTimeout("no answer in 60 s"), times=None)
    job = make_job()
    assert drain() == []
    job.refresh_from_db()
    assert job.status == "completed"
    assert not job.executions.get().logs_complete
    assert "cannot read them" in job.docker_log


# --------------------------------------------------------------------------- a row that cannot be followed


def test_a_host_row_that_cannot_work_is_down_with_the_reason_and_the_others_go_on(
    engine: FakeEngine, host: ExecutorHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored past the checks, by SQL, while a job runs there; then mended."""
    monkeypatch.setattr("container_manager.worker.supervisor.HOSTS_SECONDS", 0.05)
    monkeypatch.setattr("container_manager.worker.hosts.PROBE_AGAIN_SECONDS", 0.05)
    fake_engine("two")
    two = make_host("two")
    engine.default = held_run()
    row = ExecutorHost.objects.filter(pk=host.pk)
    with working():
        job = until_status(make_job(docker_host=host), "running")
        row.update(executor_config={"timeout": "60s"})
        until_status(make_job(docker_host=two), "completed")
        engine.finish(job.container_name)
        until_status(job, "completed")
        until(lambda: row.filter(health="unreachable").exists(), "the host to be known as down")
        assert row.get().health_error == (
            "executor_config: timeout is '60s'; use a number of seconds above 0 and below 86400."
        )
        waiting = make_job(docker_host=host)
        until_status(make_job(docker_host=two), "completed")
        waiting.refresh_from_db()
        assert waiting.status == "pending"
        engine.default = FakeRun()
        row.update(executor_config={"timeout": 60})
        until_status(waiting, "completed")


def test_late_news_of_the_first_start_is_no_second_start_and_news_of_the_second_is(
    engine: FakeEngine, host: ExecutorHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, remove = FakeEngine.publish, FakeExecutor.remove
    started: list[FakeContainer] = []
    may_go = threading.Event()

    def late(self: FakeEngine, action: EventAction, container: FakeContainer) -> None:
        if action is EventAction.START:
            started.append(container)
        else:
            publish(self, action, container)

    def held_up(self: FakeExecutor, container_id: str) -> None:
        assert may_go.wait(DEADLINE_SECONDS)
        remove(self, container_id)

    monkeypatch.setattr(FakeEngine, "publish", late)
    monkeypatch.setattr(FakeExecutor, "remove", held_up)
    with working():
        job = until_status(make_job(), "completed")
        for _ in range(2):
            with engine.changed:
                publish(engine, EventAction.START, started[0])  # its time is now, behind the end
        until(lambda: job.events.filter(transition="started_again").exists(), "the second start to be told")
        may_go.set()
    assert job.events.filter(transition="started_again").count() == 1


def test_a_second_start_of_an_adopted_run_is_told(
    engine: FakeEngine, host: ExecutorHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, may_go = FakeExecutor.remove, threading.Event()

    def held_up(self: FakeExecutor, container_id: str) -> None:
        assert may_go.wait(DEADLINE_SECONDS)
        remove(self, container_id)

    monkeypatch.setattr(FakeExecutor, "remove", held_up)
    engine.default = held_run()
    with working():
        job = until_status(make_job(), "running")
    with working():
        until(lambda: job.events.filter(transition="adopt").exists(), "the adoption")
        engine.finish(job.container_name)
        until_status(job, "completed")
        engine.clock = lambda: time.time_ns() + 60 * 10**9
        with engine.changed:
            engine.publish(EventAction.START, engine.containers[job.container_name])
        until(lambda: job.events.filter(transition="started_again").exists(), "the second start to be told")
        may_go.set()
