"""Row 23: a worker whose clock is an hour wrong, beside one whose clock is right.

Only the worker's process is told another time (libfaketime); engine and database have the machine's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.db import connection
from pytest_django import DjangoDbBlocker

from container_manager.models import ContainerJob, EngineLease, ExecutionMetadata, Installation
from tests import engines
from tests.acceptance.running import OBEDIENT_PROGRAM, WAITING_PROGRAM
from tests.fault.parts import (
    Database,
    EngineWatch,
    WorkerProcess,
    audit,
    local_host,
    until,
    until_cleaned,
    until_ended,
)
from tests.fault.server import Server
from tools import apt
from tools.postgres import Cluster
from tools.private_server import ServerError

pytestmark = pytest.mark.engine

#: How far a right time may be from ours: the machine is busy, but not for minutes.
NEAR = timedelta(seconds=60)


@pytest.fixture(scope="module")
def library() -> Path:
    """libfaketime for programs with threads."""
    found = _library()
    if found is None:
        try:
            apt.install(["faketime"])
        except apt.CannotInstallError as error:
            engines.missing("libfaketime", str(error))
        found = _library()
    return found or engines.missing("libfaketime", "it is not in the package faketime")


def _library() -> Path | None:
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    cluster = Cluster(name=f"clock-{os.getpid()}")
    try:
        yield Server(cluster)
    except ServerError as error:
        engines.missing("a PostgreSQL of the tests' own", str(error))
    finally:
        cluster.stop()


@pytest.fixture
def database(server: Server, django_db_blocker: DjangoDbBlocker) -> Iterator[Database]:
    one = server.new_database()
    with django_db_blocker.unblock(), one.in_use():
        yield one


def wrong_clock(library: Path, hours: int) -> dict[str, str]:
    """The environment of a process whose clock is wrong; its monotonic clock is not."""
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{hours:+d}h",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


def says_now(worker: WorkerProcess) -> datetime:
    """The time that the worker's own log shows."""
    line = worker.log.splitlines()[0]
    return datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)


def program(text: str, *, timeout: int) -> ContainerJob:
    return ContainerJob.objects.create_job(
        engines.BASE_IMAGE, ["python", "-c", text], timeout_seconds=timeout
    )


def must_be_by_the_right_clock(job: ContainerJob) -> None:
    """Whatever the engine or the database dates is near our time."""
    now = datetime.now(UTC)
    execution = ExecutionMetadata.objects.get(job=job)
    times = {
        "created_at": job.created_at,
        "started_at": job.started_at,
        "completed_at": job.completed_at,
        "attempt started_at": execution.started_at,
        "attempt finished_at": execution.finished_at,
    }
    for name, value in times.items():
        assert value is not None, name
        assert abs(now - value) < NEAR, f"{name} is {value}, and it is {now} now"


@pytest.mark.parametrize("hours", [-1, 1])
def test_row_23_timeouts_and_durations_are_right_by_a_wrong_clock(
    database: Database, docker_url: str, library: Path, hours: int
) -> None:
    local_host(docker_url)
    with EngineWatch(docker_url, Installation.current()) as watch:
        short = program("import time; print('short', flush=True); time.sleep(2)", timeout=60)
        endless = program(OBEDIENT_PROGRAM, timeout=2)
        began = time.monotonic()
        with WorkerProcess(database, "--poll-interval", "0.2", **wrong_clock(library, hours)) as worker:
            until_ended([short, endless])
            took = time.monotonic() - began
            until_cleaned(watch)
            wrong_by = says_now(worker) - datetime.now(UTC)
            assert abs(wrong_by - timedelta(hours=hours)) < NEAR, f"its clock is wrong by {wrong_by}"
            assert not worker.complaints
        assert took < 60, f"a job with a time limit of 2 s and one that runs 2 s took {took:.0f} s"
        assert audit(watch, [short, endless], clocks_agree=False) == []
        for job in (short, endless):
            job.refresh_from_db()
            must_be_by_the_right_clock(job)
            (started,), (died,) = watch.of(job).starts, watch.of(job).deaths
            assert job.duration is not None
            assert abs(job.duration.total_seconds() - (died - started)) < 1
        assert (short.status, short.exit_reason) == ("completed", "success"), (
            f"killed early: {short.exit_message}\n{short.docker_log}"
        )
        assert (endless.status, endless.exit_reason) == ("timeout", "timeout"), endless.exit_message
        assert endless.duration is not None
        assert 2 <= endless.duration.total_seconds() < 30


def test_row_23_a_clock_ahead_does_not_take_a_lease_that_is_held(
    database: Database, docker_url: str, library: Path
) -> None:
    hand_over(database, docker_url, {}, wrong_clock(library, 1))


def test_row_23_a_clock_behind_does_not_lose_the_lease_that_it_holds(
    database: Database, docker_url: str, library: Path
) -> None:
    hand_over(database, docker_url, wrong_clock(library, -1), {})


def hand_over(
    database: Database, docker_url: str, first_clock: dict[str, str], second_clock: dict[str, str]
) -> None:
    """The first worker holds the lease while the second stands by; then it stops, and the second adopts."""
    local_host(docker_url)
    with EngineWatch(docker_url, Installation.current()) as watch:
        jobs = [program(WAITING_PROGRAM, timeout=60) for _ in range(3)]
        with WorkerProcess(database, "--poll-interval", "0.2", **first_clock) as first:
            until_all_say(jobs, "first words")
            with WorkerProcess(database, "--poll-interval", "0.2", **second_clock) as second:
                must_stand_by(second, first)
                watch.signal(jobs[0], "SIGUSR1")
                until_ended(jobs[:1])
                first.stop()
                second.until_it_says("serving host")
                watch.signal(jobs[1], "SIGUSR1")
                until_ended(jobs[:2])
                watch.signal(jobs[2], "SIGUSR1")
                until_ended(jobs)
                until_cleaned(watch)
                assert [*first.complaints, *second.complaints] == []
        assert audit(watch, jobs, clocks_agree=False) == []
        for job in jobs:
            job.refresh_from_db()
            assert (job.status, job.exit_reason) == ("completed", "success"), job.exit_message
            assert job.clean_output == "first words\nlast words\n"
            assert len(watch.of(job).starts) == 1
            must_be_by_the_right_clock(job)


def until_all_say(jobs: list[ContainerJob], words: str) -> None:
    ids = [job.pk for job in jobs]
    until(
        lambda: ContainerJob.objects.filter(pk__in=ids, stdout_log__contains=words).count() == len(ids),
        f"{len(ids)} jobs to say {words!r}",
    )


def must_stand_by(worker: WorkerProcess, holder: WorkerProcess) -> None:
    """The lease stays where it is while the other worker runs, and asks for it as often as it is renewed."""
    until(lambda: listeners() == 2, "the second worker to listen for wake-ups")
    renewals = {EngineLease.objects.get().expires_at}

    def look() -> bool:
        lease = EngineLease.objects.get()
        assert f":{holder.process.pid}:" in lease.worker, f"the lease went to {lease.worker}\n{worker.log}"
        renewals.add(lease.expires_at)
        return len(renewals) > 2

    until(look, "the holder to renew its lease twice")
    assert "serving host" not in worker.log, worker.log


def listeners() -> int:
    """How many workers wait for notifications of this database."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND query LIKE 'LISTEN%'"
        )
        return int(cursor.fetchone()[0])
