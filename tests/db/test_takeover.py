"""Whose engine it is: registry of workers, take-over from the dead and the silent, yielding, lost hosts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from container_manager import lifecycle
from container_manager.conf import Settings
from container_manager.core.logtext import BoundedLog
from container_manager.core.observation import STDERR, STDOUT, LogFrame
from container_manager.identity import ProcessIdentity
from container_manager.models import (
    ContainerJob,
    EngineLease,
    ExecutorHost,
    JobEvent,
    LogChunk,
    RegisteredWorker,
)
from container_manager.models.lease import HeldLease
from container_manager.records import Chunk, LogState
from container_manager.testing import FakeEngine, FakeRun, fake_engine, forget_fake_engines
from container_manager.worker.hosts import Absence
from container_manager.worker.leases import LeaseKeeper
from container_manager.worker.logs import LogBuffer
from container_manager.worker.messages import HostUp
from container_manager.worker.supervisor import Worker
from tests.db.factories import hold, make_host, make_job, start_job
from tests.db.workers import (
    DEADLINE_SECONDS,
    QUICK,
    drain,
    held_run,
    until,
    until_status,
    working,
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def engine(settings: Any) -> FakeEngine:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "LEASE_SECONDS": 240.0}  # nothing runs out meanwhile
    forget_fake_engines()
    return fake_engine("one")


@pytest.fixture
def host(engine: FakeEngine) -> ExecutorHost:
    return make_host("one")


@pytest.fixture
def mortal(host: ExecutorHost) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is registered as the worker "mortal" and holds the engine's lease."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    me = ProcessIdentity.current()
    stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    RegisteredWorker.objects.create(
        name="mortal",
        hostname=me.hostname,
        boot_id=me.boot_id,
        pid_namespace=me.pid_namespace,
        pid=process.pid,
        start_ticks=int(stat[19]),
    )
    hold("fake-one", "mortal")
    yield process
    process.kill()
    process.wait()


def test_a_worker_registers_beats_and_leaves(engine: FakeEngine, host: ExecutorHost) -> None:
    with working(concurrency=7) as worker:
        until(lambda: EngineLease.holder("fake-one") == worker.name, "the worker to serve the host")
        row = RegisteredWorker.objects.get()
        assert (row.name, row.slots, row.stopped_at) == (worker.name, 7, None)
        assert RegisteredWorker.identity_of(worker.name) == ProcessIdentity.current()
    row.refresh_from_db()
    assert row.stopped_at is not None


def test_who_is_proven_dead_is_followed_at_once(
    engine: FakeEngine, host: ExecutorHost, mortal: subprocess.Popen[bytes]
) -> None:
    (lease,) = EngineLease.objects.all()
    job = make_job()
    lifecycle.claim(hold_again(lease), host, limit=1, worker="mortal")
    with working() as worker:
        until(lambda: EngineLease.objects.get().wanted_by == worker.name, "the new worker to stand by")
        assert EngineLease.holder("fake-one") == "mortal"
        mortal.kill()
        until(lambda: EngineLease.holder("fake-one") == worker.name, "the take-over")
        until_status(job, "completed")
    assert EngineLease.objects.get().token == lease.token + 1
    assert JobEvent.objects.filter(transition="adopt").count() == 1


def hold_again(lease: EngineLease) -> Any:
    return HeldLease(lease.engine_id, lease.token)


def test_who_died_before_we_came_is_followed_at_once(
    engine: FakeEngine, host: ExecutorHost, mortal: subprocess.Popen[bytes]
) -> None:
    mortal.kill()
    mortal.wait()
    job = make_job()
    assert drain() == []
    job.refresh_from_db()
    assert job.status == "completed"


def test_who_only_sleeps_keeps_its_lease(
    engine: FakeEngine, host: ExecutorHost, mortal: subprocess.Popen[bytes]
) -> None:
    keeper = LeaseKeeper("worker:b", 240.0, lambda: None)
    assert keeper.acquire("fake-one") is None
    assert not keeper.may_try("fake-one")
    assert (keeper.retry_in(["fake-one"]) or 0) > 1
    keeper.close()
    assert EngineLease.objects.get().wanted_by == "worker:b"


def test_a_standby_comes_at_the_very_end_of_a_lease(engine: FakeEngine, host: ExecutorHost) -> None:
    EngineLease.acquire("fake-one", "silent", 2.0)
    keeper = LeaseKeeper("worker:b", 10.0, lambda: None)
    assert keeper.acquire("fake-one") is None
    wait = keeper.retry_in(["fake-one"])
    assert wait is not None
    assert 0.5 < wait < 2.1
    keeper.close()


def test_a_lease_whose_grant_got_lost_on_the_way_is_ours_all_the_same(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    EngineLease.acquire("fake-one", "worker:b", 240.0)
    keeper = LeaseKeeper("worker:b", 240.0, lambda: None)
    assert keeper.acquire("fake-one") is not None
    keeper.close()


def test_a_worker_for_one_job_yields_to_one_that_stays(
    engine: FakeEngine, host: ExecutorHost, settings: Any
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "LEASE_SECONDS": 2.0}
    engine.default = held_run(b"x\n")
    job = make_job()
    with working(only={job.pk}, once=True) as brief:
        until_status(job, "running")
        with working() as lasting:
            until(lambda: EngineLease.holder("fake-one") == lasting.name, "the other worker to take over")
            assert brief.yielded
            other = until_status(make_job(), "running")
            engine.finish(job.container_name)
            until_status(job, "completed")
            engine.finish(other.container_name)
            until_status(other, "completed")
    assert engine.starts == {job.container_name: 1, other.container_name: 1}


def test_an_orphan_of_our_own_is_adopted(engine: FakeEngine, host: ExecutorHost) -> None:
    """The commit of a claim came through and its answer did not: nobody else would ever look at the job."""
    with working() as worker:
        until(lambda: EngineLease.holder("fake-one") == worker.name, "the worker to serve the host")
        job = make_job(docker_host=host)
        until_status(job, "completed")
        engine.default = held_run()
        lost = until_status(make_job(docker_host=host), "running")
        (held,) = worker._hands
        held.seat.agent.forget(held.run)  # type: ignore[union-attr]
        worker._hands.drop(held)
        until(lambda: len(worker._hands), "the job to be adopted again")
        engine.finish(lost.container_name)
        until_status(lost, "completed")
    assert engine.starts[lost.container_name] == 1


def test_a_resting_host_is_served_while_it_has_jobs(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = held_run()
    with working():
        job = until_status(make_job(), "running")
    host.is_active = False
    host.save()
    engine.finish(job.container_name)
    with working():
        until_status(job, "completed")


def test_a_host_that_is_away_too_long_is_given_up_with_its_jobs(
    engine: FakeEngine, host: ExecutorHost, settings: Any
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "HOST_LOST_SECONDS": 1.0, "STRAY_GRACE_SECONDS": 0.0}
    engine.default = held_run(b"before\n")
    with working():
        job = until_status(make_job(), "running")
        until(lambda: b"".join(job.iter_log("stdout")) == b"before\n", "the log to be followed")
        engine.go_down()
        until_status(job, "failed")
        assert job.exit_reason == "host_lost"
        assert "HOST_LOST_SECONDS" in job.exit_message
        assert job.started_at is not None
        execution = job.executions.get()
        assert not execution.logs_complete
        engine.come_back()
        until(lambda: not engine.containers, "the lost container to be removed")
        assert execution.exit_reason == "host_lost"
        engine.default = FakeRun()
        until_status(make_job(), "completed")
    job.refresh_from_db()
    assert (job.status, job.exit_reason) == ("failed", "host_lost")


def test_a_worker_that_never_met_the_host_gives_it_up_as_well(
    engine: FakeEngine, host: ExecutorHost, settings: Any
) -> None:
    engine.default = held_run()
    with working():
        job = until_status(make_job(), "running")
    engine.go_down()
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "HOST_LOST_SECONDS": 1.0}
    with working():
        until_status(job, "failed")
    assert job.exit_reason == "host_lost"


def test_a_host_is_never_given_up_where_the_limit_is_zero(
    engine: FakeEngine, host: ExecutorHost, settings: Any
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "HOST_LOST_SECONDS": 0.0}
    engine.default = held_run()
    with working() as worker:
        job = until_status(make_job(), "running")
        engine.go_down()
        until(lambda: ExecutorHost.objects.get().health == "unreachable", "the host to be known as down")
        ExecutorHost.objects.update(health_since=timezone.now() - timedelta(days=365))
        worker._due["hosts"] = 0.0
        until(lambda: worker._due["hosts"] > 0.0, "a look at the hosts")
        job.refresh_from_db()
        assert job.status == "running"


def test_another_engine_at_the_same_address_ends_the_jobs_of_the_first(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    engine.default = held_run()
    with working():
        job = until_status(make_job(), "running")
        engine.go_down()
        until(lambda: ExecutorHost.objects.get().health == "unreachable", "the host to be known as down")
        engine.containers.clear()
        engine.engine_id = "fake-other"
        engine.come_back()
        until_status(job, "failed")
        assert job.exit_reason == "host_lost"
        assert "fake-other" in job.exit_message
        assert "fake-one" in job.exit_message
        assert ExecutorHost.objects.get().health == "mismatched"
        waiting = make_job(docker_host=host)
        engine.engine_id = "fake-one"  # the first one is back: nothing else was ever started
        engine.default = FakeRun()
        until_status(waiting, "completed")
    assert engine.starts == {job.container_name: 1, waiting.container_name: 1}


def test_a_host_that_is_fine_again_is_not_given_up_for_what_its_row_says(
    engine: FakeEngine, host: ExecutorHost, settings: Any
) -> None:
    """It was away while nobody looked: the next worker has to see for itself."""
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "HOST_LOST_SECONDS": 60.0}
    engine.default = held_run()
    with working():
        job = until_status(make_job(), "running")
    long_ago = timezone.now() - timedelta(hours=2)
    for health in ("unreachable", "mismatched"):
        ExecutorHost.objects.update(health=health, health_since=long_ago)
        with working():
            until(lambda: ExecutorHost.objects.get().health == "healthy", "the host to be seen")
    engine.finish(job.container_name)
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.exit_reason) == ("completed", "success")


def test_from_another_machine_the_same_address_is_another_engine_and_no_evidence(
    engine: FakeEngine, host: ExecutorHost, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container_manager.worker.supervisor.HOSTS_SECONDS", 0.05)
    monkeypatch.setattr("container_manager.worker.upkeep.MISMATCH_SECONDS", 0.1)
    settings.CONTAINER_MANAGER_SETTINGS = QUICK
    engine.default = held_run()
    with working():
        job = until_status(make_job(), "running")
    engine.engine_id = "fake-elsewhere"
    with working() as other:
        until(lambda: any(seat.absence() for seat in other._seats), "the other worker to look")
        (seat,) = other._seats
        until(lambda: (seat.absence() or _never).seconds > 0.5, "it to have looked for a while")
        job.refresh_from_db()
        assert job.status == "running"
        assert EngineLease.holder("fake-one") == ""
    engine.engine_id = "fake-one"
    engine.finish(job.container_name)
    assert drain() == []


def test_a_late_first_answer_takes_no_host_from_the_worker_that_was_first(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    """At B's machine another engine has the address; B asked before A bound the row, and hears after it."""
    engine.default = held_run()
    b = Worker()
    b._seats.read_hosts()
    (seat,) = b._seats
    engine.engine_id = "fake-elsewhere"
    seat.probe_if_due()
    answer = b._inbox.get(DEADLINE_SECONDS)
    assert isinstance(answer, HostUp)
    engine.engine_id = "fake-one"
    with working() as a:
        job = until_status(make_job(retry={"attempts": 2, "backoff_seconds": 0}), "running")
        b._apply(answer)
        assert not seat.serving
        assert EngineLease.holder("fake-one") == a.name
        assert list(ExecutorHost.objects.values_list("engine_id", "health")) == [("fake-one", "healthy")]
        engine.finish(job.container_name)
        until_status(job, "completed")
    seat.leave(patience=1.0)
    assert engine.starts == {job.container_name: 1}
    assert not JobEvent.objects.filter(transition="adopt").exists()


def move(host: ExecutorHost, address: str) -> None:
    """Give a host another address, as its owner may by SQL: it is bound anew at the next contact."""
    ExecutorHost.objects.filter(pk=host.pk).update(connection_string=address, engine_id="")


def test_a_job_on_an_engine_that_its_host_has_left_ends_as_lost(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    engine.default = held_run(b"before\n")
    with working():
        job = until_status(make_job(retry={"attempts": 2, "backoff_seconds": 0}), "running")
        until(lambda: b"".join(job.iter_log("stdout")) == b"before\n", "the log to be followed")
    move(host, "fake://two")
    with working():
        until_status(job, "failed")
        other = until_status(make_job(), "completed")
    assert job.exit_reason == "host_lost"
    assert "fake-one" in job.exit_message
    assert "fake-two" in job.exit_message
    assert b"".join(job.iter_log("stdout")) == b"before\n"
    assert engine.starts == {job.container_name: 1}
    assert fake_engine("two").starts == {other.container_name: 1}


def test_a_job_is_tried_again_elsewhere_only_where_its_policy_names_a_lost_host(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    engine.default = held_run()
    policy = {"attempts": 2, "backoff_seconds": 0, "rules": [{"action": "retry", "reasons": ["host_lost"]}]}
    with working():
        job = until_status(make_job(retry=policy), "running")
    first = job.container_name
    move(host, "fake://two")
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("completed", 2)
    assert engine.starts == {first: 1}
    assert fake_engine("two").starts == {job.container_name: 1}


def test_a_job_on_an_engine_that_its_host_has_left_is_left_to_the_worker_that_follows_it(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    engine.default = held_run()
    with working():
        job = until_status(make_job(), "running")
        move(host, "fake://two")
        with working() as other:
            until(lambda: EngineLease.holder("fake-two") == other.name, "the new engine to be served")
            other._due["hosts"] = 0.0
            until(lambda: other._due["hosts"] > 0.0, "a look at the jobs of the host")
            engine.finish(job.container_name, 3)
            until_status(job, "failed")
    assert (job.exit_reason, job.exit_code) == ("application_error", 3)
    assert not JobEvent.objects.filter(transition="adopt").exists()


def test_an_orphan_of_our_own_on_an_engine_that_its_host_has_left_is_no_longer_waited_for(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    """We hold both leases, so nobody else would ever end it."""
    old, new = hold("fake-one", "worker:b"), hold("fake-two", "worker:b")
    job = make_job()
    lifecycle.claim(old, host, limit=1, worker="worker:b")
    held = {(job.pk, 1)}
    assert lifecycle.adopt(new, host, worker="worker:b") == []
    assert lifecycle.adopt_stranded(new, host, worker="worker:b", held=held) == []
    assert lifecycle.adopt_stranded(new, host, worker="worker:c", held=()) == []
    ((mine, execution),) = lifecycle.adopt_stranded(new, host, worker="worker:b", held=())
    assert (mine.pk, mine.lease_token, execution.engine_id) == (job.pk, new.token, "fake-one")


_never = Absence(seconds=0.0, engine_was_met=False)


def test_a_tenure_that_was_ended_lets_nobody_act(engine: FakeEngine, host: ExecutorHost) -> None:
    keeper = LeaseKeeper("worker:b", 240.0, lambda: None)
    tenure = keeper.acquire("fake-one")
    assert tenure is not None
    assert tenure.is_valid()
    tenure.end()
    assert not tenure.is_valid()


# ------------------------------------------------------------------------- what was written before


def an_orphan_with_output(frames: list[LogFrame], *, flush_every: int) -> ContainerJob:
    """A running job whose worker is gone, with this output stored."""
    lease, job = hold(), make_job()
    execution = start_job(job, lease)

    def store(chunk: Chunk | None, state: LogState, block: bool) -> bool:
        lifecycle.store_logs(lease, job, execution, [] if chunk is None else [chunk], state)
        return True

    buffer = LogBuffer(column_bytes=Settings().LOG_COLUMN_BYTES, max_bytes=10**9, emit=store)
    for number, frame in enumerate(frames, start=1):
        buffer.add(frame)
        if number % flush_every == 0:
            assert buffer.flush()
    assert buffer.flush()
    EngineLease.release(lease)
    job.refresh_from_db()
    return job


def reads_of_output(queries: CaptureQueriesContext) -> list[str]:
    table = LogChunk._meta.db_table
    return [q["sql"] for q in queries if q["sql"].startswith("SELECT") and table in q["sql"]]


@pytest.mark.parametrize("chunks", [4, 60])
def test_a_take_over_reads_no_more_than_the_ends_of_a_log(
    engine: FakeEngine, host: ExecutorHost, chunks: int
) -> None:
    frames = [LogFrame(1 + n % 2, 10**18 + n, b"%059d\n" % n) for n in range(chunks * 3000)]
    job = an_orphan_with_output(frames, flush_every=3000)
    with CaptureQueriesContext(connection) as queries:
        drain()
    assert len(reads_of_output(queries)) == 2
    job.refresh_from_db()
    assert job.exit_reason == "removed_externally"
    execution = job.executions.get()
    for stream, name, column in ((STDOUT, "stdout", job.stdout_log), (STDERR, "stderr", job.stderr_log)):
        whole = BoundedLog(Settings().LOG_COLUMN_BYTES, name)
        for frame in frames:
            if frame.stream == stream:
                whole.add(frame)
        assert column == whole.text
    assert execution.stdout_bytes == execution.stderr_bytes == chunks * 3000 * 30
    assert execution.log_stored_bytes == sum(len(chunk.data) for chunk in execution.log_chunks.all())


def test_a_take_over_asks_for_many_small_chunks_at_once(engine: FakeEngine, host: ExecutorHost) -> None:
    frames = [LogFrame(STDOUT, 10**18 + n, b"%d\n" % n) for n in range(200)]
    job = an_orphan_with_output(frames, flush_every=1)
    before = job.stdout_log
    with CaptureQueriesContext(connection) as queries:
        drain()
    assert len(reads_of_output(queries)) <= 12
    job.refresh_from_db()
    assert job.stdout_log.startswith(before)
    assert job.clean_output == "".join(f"{n}\n" for n in range(200))


def test_a_log_that_was_cut_stays_cut_after_a_take_over(
    engine: FakeEngine, host: ExecutorHost, settings: Any
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "LOG_MAX_BYTES": 1000}
    engine.default = held_run(b"x" * 990 + b"\n" + b"y" * 100 + b"\n")
    with working():
        job = make_job()
        until_status(job, "running")
        until(lambda: job.executions.filter(logs_truncated=True).exists(), "the cap to be told")
    with working():
        until(lambda: JobEvent.objects.filter(job=job, transition="adopt").exists(), "the take-over")
        engine.write(job.container_name, b"z\n")
        engine.finish(job.container_name)
        until_status(job, "completed")
    execution = job.executions.get()
    assert (execution.logs_truncated, execution.logs_complete) == (True, False)
    assert b"".join(job.iter_log("stdout")) == b"x" * 990 + b"\n"
    assert "LOG_MAX_BYTES" in job.stdout_log
