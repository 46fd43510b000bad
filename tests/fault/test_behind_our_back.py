"""Somebody else has hands on the engine: each of their acts has its name in the record."""

from __future__ import annotations

import contextlib
import signal
import threading
import uuid
from collections.abc import Iterator

import docker
import pytest
from docker.errors import APIError
from docker.models.containers import Container

from container_manager.core.spec import LABEL_JOB
from container_manager.models import ContainerJob, ExecutorHost, Installation
from container_manager.models.admission import spec_of
from tests.acceptance.running import register, stored, until, until_says, until_status
from tests.engines import BASE_IMAGE
from tests.fault import harm, jobs
from tools.engine import Engine

pytestmark = pytest.mark.engine

AGAIN = "started again from outside"


@pytest.fixture
def engine() -> Engine:
    return harm.engine("one")


@pytest.fixture
def client(transactional_db: None, engine: Engine) -> Iterator[docker.DockerClient]:
    with harm.seen(engine) as client:
        yield client
        harm.clear(client)


@pytest.fixture
def host(transactional_db: None, engine: Engine) -> ExecutorHost:
    return register(engine.url, "one")


def running(host: ExecutorHost) -> ContainerJob:
    job = jobs.make(host, jobs.counting())
    until_status(job, "running")
    return until_says(job, "line 3\n")


def test_row_25_paused_and_renamed(
    host: ExecutorHost, client: docker.DockerClient, child_environment: dict[str, str]
) -> None:
    with harm.worker(child_environment):
        paused, renamed = running(host), running(host)
        container = harm.container_of(client, paused)
        container.pause()
        until_status(jobs.make(host, "true"), "completed")  # a pause holds nobody else up
        assert stored(paused).status == "running"
        other = harm.container_of(client, renamed)
        other.rename(f"renamed-{other.short_id}")
        container.unpause()
        for each in (container, other):
            each.kill(signal=signal.SIGUSR1)
        for job in (paused, renamed):
            until_status(job, "completed", "failed")
        harm.nothing_left(client)
    for job in (paused, renamed):
        assert jobs.ended(job) == ("completed", "success", 0)
        jobs.ended_once(job)
        jobs.lines_are_whole(job)
    log = stored(paused).docker_log
    assert "event: pause" in log, f"nobody says that it was paused:\n{log}"
    assert "event: unpause" in log, f"nobody says that it was resumed:\n{log}"


def test_row_25_renamed_while_no_worker_watched(
    host: ExecutorHost, client: docker.DockerClient, child_environment: dict[str, str]
) -> None:
    with harm.worker(child_environment):
        job = running(host)
    container = harm.container_of(client, job)
    container.rename(f"renamed-{container.short_id}")
    with harm.worker(child_environment):
        container.kill(signal=signal.SIGUSR1)
        until_status(job, "completed", "failed")
        harm.nothing_left(client)
    assert jobs.ended(job) == ("completed", "success", 0)
    jobs.ended_once(job)
    jobs.lines_are_whole(job)


def test_row_25_paused_container_is_cancelled(
    host: ExecutorHost, client: docker.DockerClient, child_environment: dict[str, str]
) -> None:
    with harm.worker(child_environment):
        job = running(host)
        harm.container_of(client, job).pause()
        assert job.cancel(by="a test")
        until_status(job, "cancelled", "completed", "failed", seconds=20)
        harm.nothing_left(client)
    assert jobs.ended(job)[:2] == ("cancelled", "cancelled")
    jobs.ended_once(job)
    jobs.lines_are_right(job)


def test_row_25_stopped_killed_removed(
    host: ExecutorHost, client: docker.DockerClient, child_environment: dict[str, str]
) -> None:
    with harm.worker(child_environment):
        stopped, killed, removed = running(host), running(host), running(host)
        harm.container_of(client, stopped).stop(timeout=20)
        harm.container_of(client, killed).kill()
        harm.container_of(client, removed).remove(force=True)
        for job in (stopped, killed, removed):
            until_status(job, "completed", "failed")
        harm.nothing_left(client)
    assert jobs.ended(stopped) == ("failed", "killed_externally", 143)
    assert jobs.ended(killed) == ("failed", "killed_externally", 137)
    # Removal by force is a kill and then a removal: whichever is seen first.
    assert jobs.ended(removed) in {
        ("failed", "removed_externally", None),
        ("failed", "killed_externally", 137),
    }
    for job in (stopped, killed, removed):
        jobs.ended_once(job)
        jobs.lines_are_right(job)
        assert (
            "outside" in stored(job).exit_message
            or "without our doing" in stored(job).exit_message
            or ("did not send" in stored(job).exit_message)
        )


def test_row_25_started_again_after_its_end(
    host: ExecutorHost, client: docker.DockerClient, child_environment: dict[str, str]
) -> None:
    settings = {"IMMEDIATE_CLEANUP": False, "CONTAINER_RETENTION_SECONDS": 3600.0}
    with harm.worker(child_environment, **settings):
        job = running(host)
        container = harm.container_of(client, job)
        container.kill(signal=signal.SIGUSR1)
        until_status(job, "completed", "failed")
        first = stored(job)
        container.start()
        harm.until_record(job, lambda job: AGAIN in job.docker_log, f"{AGAIN!r} in the record")
        until(lambda: harm.is_gone(container), "the second run to be ended, and its container removed")
        completed = jobs.make(host, "true")
        until_status(completed, "completed")
    again = stored(job)
    assert jobs.ended(job) == ("completed", "success", 0)
    assert (again.started_at, again.completed_at) == (first.started_at, first.completed_at)
    jobs.ended_once(job)
    jobs.lines_are_whole(job)


def test_row_25_started_again_in_the_middle(
    host: ExecutorHost, client: docker.DockerClient, child_environment: dict[str, str]
) -> None:
    with harm.worker(child_environment):
        job = running(host)
        container = harm.container_of(client, job)
        container.restart(timeout=20)
        for _ in range(3):  # time for the worker to see it
            until_status(jobs.make(host, "true"), "completed")
        if not stored(job).is_finished:
            container.kill(signal=signal.SIGUSR1)
        until_status(job, "completed", "failed")
        harm.nothing_left(client)
    jobs.ended_once(job)
    # Where the worker was quicker it never saw the second run: then it recorded the end of the first.
    of_the_first = jobs.starts(job) == 1 and jobs.ended(job) == ("failed", "killed_externally", 143)
    log = stored(job).docker_log
    assert AGAIN in log or of_the_first, f"{jobs.ended(job)}, and the record keeps silent:\n{log}"
    assert stored(job).attempt == 1


def test_row_25_started_again_while_no_worker_watched(
    host: ExecutorHost, client: docker.DockerClient, child_environment: dict[str, str]
) -> None:
    with harm.worker(child_environment):
        job = running(host)
    container = harm.container_of(client, job)
    container.restart(timeout=20)
    until(lambda: container.logs().count(b"begin") == 2, "the second run to listen")
    with harm.worker(child_environment):
        container.kill(signal=signal.SIGUSR1)
        until_status(job, "completed", "failed", seconds=20)
        harm.nothing_left(client)
    jobs.ended_once(job)
    log = stored(job).docker_log
    assert AGAIN in log, f"{jobs.ended(job)}, and the record keeps silent:\n{log}"
    assert stored(job).attempt == 1


def test_row_25_killed_and_started_again_between_two_looks(
    host: ExecutorHost, client: docker.DockerClient, child_environment: dict[str, str]
) -> None:
    """The end may already be on its way into the record: one result, whichever run it tells of."""
    with harm.worker(child_environment):
        some = [running(host) for _ in range(3)]
        containers = [harm.container_of(client, job) for job in some]
        threads = [threading.Thread(target=_kill_and_start, args=(each,)) for each in containers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for _ in range(3):  # time for the worker to see it
            until_status(jobs.make(host, "true"), "completed")
        for job in some:
            if not stored(job).is_finished:
                job.cancel(by="a test")
        for job in some:
            until_status(job, "completed", "failed", "cancelled")
        harm.nothing_left(client)
    for job in some:
        jobs.ended_once(job)
        assert AGAIN in stored(job).docker_log or jobs.starts(job) == 1, stored(job).docker_log


def _kill_and_start(container: Container) -> None:
    with contextlib.suppress(APIError):  # the worker may be quicker, and remove it
        container.kill()
        container.start()


FOREIGN_LABELS: dict[str, dict[str, str]] = {
    "no labels": {},
    "another job's": {LABEL_JOB: str(uuid.uuid4())},
    "no job's at all": {LABEL_JOB: "a label that is no job's id"},  # it may not even trouble the worker
}


@pytest.mark.parametrize("kind", FOREIGN_LABELS)
def test_row_28_name_taken_by_a_foreign_container(
    host: ExecutorHost, client: docker.DockerClient, child_environment: dict[str, str], kind: str
) -> None:
    job = jobs.make(host, "echo mine")
    attempt = stored(job)
    attempt.attempt = 1  # as the worker will count it
    spec = spec_of(attempt, Installation.current())
    labels = {**spec.labels(), **FOREIGN_LABELS[kind]} if FOREIGN_LABELS[kind] else {}
    foreign = client.containers.run(
        BASE_IMAGE, jobs.counting(), name=spec.name, labels=labels, detach=True, network_mode="none"
    )
    try:
        before = _look(foreign)
        with harm.worker(child_environment):
            until_status(job, "failed", "completed")
            until_status(jobs.make(host, "true"), "completed")
            assert _look(foreign) == before, "the foreign container was touched"
        assert jobs.ended(job) == ("failed", "name_taken", None)
        assert spec.name in stored(job).exit_message
        assert "left alone" in stored(job).exit_message
        jobs.ended_once(job)
        assert not jobs.starts(job)
    finally:
        foreign.remove(force=True)


def _look(container: Container) -> tuple[object, ...]:
    container.reload()
    state = container.attrs["State"]
    return (container.id, container.name, state["Status"], state["StartedAt"], state["Pid"])
