"""An engine without room on its disk: the record says so, the host rests, and the others go on."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from container_manager.models import ContainerJob, ExecutionMetadata
from tests.acceptance.running import register, stored, until, until_status
from tests.fault import harm, jobs
from tools.engine import Engine

pytestmark = pytest.mark.engine

DISK_MB = 320
#: Attempts closer together than this belong to one opening of the host.
ONE_OPENING_SECONDS = 0.4


@pytest.fixture
def small() -> Engine:
    """An engine with a small disk that is not full."""
    engine = harm.engine("small", disk_mb=DISK_MB)
    for left in engine.data.glob("ballast-*"):
        left.unlink()
    return engine


@contextmanager
def full(engine: Engine) -> Iterator[None]:
    """Not a byte is left on the engine's disk."""
    ballast = engine.data / f"ballast-{uuid.uuid4().hex[:8]}"
    try:
        with ballast.open("wb") as file:
            for size in (1 << 20, 1 << 12):
                _fill(file.fileno(), size)
        yield
    finally:
        ballast.unlink(missing_ok=True)


def _fill(descriptor: int, size: int) -> None:
    block = b"\0" * size
    while True:
        try:
            os.write(descriptor, block)
        except OSError:
            return


def messages(job: ContainerJob) -> list[str]:
    """What the record says about each time the job went back to the queue."""
    return list(job.events.filter(transition="release").values_list("message", flat=True))


def openings(attempts: list[ExecutionMetadata]) -> list[list[ExecutionMetadata]]:
    """The attempts, grouped by the times at which the worker gave the host a chance."""
    groups: list[list[ExecutionMetadata]] = []
    for attempt in attempts:
        if groups and (attempt.created_at - groups[-1][-1].created_at).total_seconds() < ONE_OPENING_SECONDS:
            groups[-1].append(attempt)
        else:
            groups.append([attempt])
    return groups


def test_row_20_job_waits_for_its_host_and_completes_when_there_is_room(
    transactional_db: None, child_environment: dict[str, str], small: Engine
) -> None:
    host = register(small.url, "small", max_concurrent_jobs=1)
    with harm.seen(small) as client, harm.worker(child_environment):
        until_status(jobs.make(host, "true"), "completed")
        with full(small):
            job = jobs.make(host, "true")
            until(lambda: len(messages(job)) >= 3, "the job to be given back three times")
            assert stored(job).status in {"pending", "launching"}
            assert harm.health_of(host) == "healthy", "a full disk is not an unreachable host"
        until_status(job, "completed")
        harm.nothing_left(client)
    for message in messages(job):
        assert "disk" in message, message
        assert "full" in message, message
        assert "space" in message, f"no remedy: {message}"
    first = job.executions.earliest("attempt")
    assert "disk is full" in first.exit_message
    moments = [attempt.created_at for attempt in job.executions.order_by("attempt")]
    waits = [(after - before).total_seconds() for before, after in itertools.pairwise(moments)]
    assert waits[1] > waits[0] * 1.4, f"the waits do not grow: {waits}"
    jobs.ended_once(job)


def test_row_20_after_a_pause_one_job_tries(
    transactional_db: None, child_environment: dict[str, str], small: Engine
) -> None:
    host = register(small.url, "small", max_concurrent_jobs=4)
    with harm.seen(small) as client, harm.worker(child_environment):
        until_status(jobs.make(host, "true"), "completed")
        with full(small):
            waiting = [jobs.make(host, "true") for _ in range(6)]
            of_these = ExecutionMetadata.objects.filter(job__in=waiting).order_by("created_at")
            until(lambda: len(openings(list(of_these.all()))) >= 4, "the host to be tried four times")
            tries = openings(list(of_these.all()))
        for job in waiting:
            until_status(job, "completed")
        harm.nothing_left(client)
    sizes = [len(group) for group in tries]
    # The first two: what was on its way to the engine before the first refusal came back.
    assert set(sizes[2:]) == {1}, (
        f"jobs that tried at each opening of a host that is known to be full: {sizes}"
    )
    for job in waiting:
        jobs.ended_once(job)


def test_row_20_other_hosts_go_on(
    transactional_db: None, child_environment: dict[str, str], small: Engine
) -> None:
    sound = harm.engine("one")
    small_host = register(small.url, "small", max_concurrent_jobs=4, weight=1000)
    sound_host = register(sound.url, "sound", max_concurrent_jobs=4, weight=1)
    with harm.seen(small) as client, harm.seen(sound) as sound_client, harm.worker(child_environment):
        until_status(jobs.make(small_host, "true"), "completed")
        until_status(jobs.make(sound_host, "true"), "completed")
        with full(small):
            placed = [jobs.make(None, "true") for _ in range(6)]
            assert small_host.pk in {job.docker_host_id for job in placed}, "the case needs one there"
            for job in placed:
                until_status(job, "completed")
        harm.nothing_left(client)
        harm.nothing_left(sound_client)
    moved = [job for job in placed if job.docker_host_id == small_host.pk]
    for job in placed:
        assert stored(job).docker_host_id == sound_host.pk
        jobs.ended_once(job)
    assert any("disk is full" in message for job in moved for message in messages(job))
