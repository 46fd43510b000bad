"""Guide: API Integration (cancel), and what follows from it."""

from __future__ import annotations

import docker
import pytest

from container_manager.core.errors import IllegalTransition
from container_manager.executors.factory import ExecutorFactory
from container_manager.models import ContainerJob, ExecutorHost
from tests.acceptance.running import (
    OBEDIENT_PROGRAM,
    WAITING_PROGRAM,
    drain,
    finished,
    our_containers,
    stored,
    until_says,
    until_status,
    worker_thread,
)

pytestmark = pytest.mark.engine

POLITE_PROGRAM = """
import signal, sys
def leave(*_):
    print("cleaning up", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("first words", flush=True)
signal.pause()
"""


def waiting_job() -> ContainerJob:
    return ContainerJob.objects.create_job(image="python:3.11", command=["python", "-c", WAITING_PROGRAM])


def test_cleanup_and_a_saved_status_cancel_a_running_job(
    local_host: ExecutorHost, engine: docker.DockerClient
) -> None:
    job = waiting_job()
    with worker_thread():
        until_says(job, "first words")
        job = ContainerJob.objects.get(pk=job.pk)
        assert job.status in ["running", "launching"]
        executor = ExecutorFactory.create_executor("docker", {"docker_host": job.docker_host})
        assert executor.cleanup(job.get_execution_identifier()) is True
        job.status = "cancelled"
        job.save()
        assert stored(job).status == "cancelled"
    job = stored(job)
    assert (job.status, job.exit_reason) == ("cancelled", "cancelled")
    assert job.clean_output == "first words\n"
    assert our_containers(engine) == []
    assert executor.cleanup(job.get_execution_identifier()) is True  # once more does no harm
    executor.close()


def test_a_saved_status_alone_ends_the_container_too(
    local_host: ExecutorHost, engine: docker.DockerClient
) -> None:
    job = ContainerJob.objects.create_job(image="python:3.11", command=["python", "-c", OBEDIENT_PROGRAM])
    with worker_thread():
        until_says(job, "first words")
        job = ContainerJob.objects.get(pk=job.pk)
        job.status = "cancelled"
        job.save()
    assert stored(job).status == "cancelled"
    assert our_containers(engine) == []


def test_cancel_ends_a_running_job_gently_and_keeps_its_record(local_host: ExecutorHost) -> None:
    job = ContainerJob.objects.create_job(image="python:3.11", command=["python", "-c", POLITE_PROGRAM])
    with worker_thread():
        job = until_says(job, "first words")
        assert job.cancel(by="a person") is True
        job = until_status(job, "cancelled")
    assert (job.exit_reason, job.cancel_requested_by) == ("cancelled", "a person")
    assert job.clean_output == "first words\ncleaning up\n"
    assert job.duration is not None
    assert "SIGTERM" in job.docker_log
    assert "SIGKILL" not in job.docker_log.splitlines()[-1]
    who = [event.actor for event in job.events.filter(transition="cancel_requested")]
    assert who == ["a person"]


def test_a_pending_job_is_cancelled_at_once_and_never_runs(local_host: ExecutorHost) -> None:
    job = waiting_job()
    assert job.cancel() is True
    assert stored(job).status == "cancelled"
    drain()
    assert stored(job).started_at is None
    assert stored(job).get_execution_identifier() == ""


def test_a_finished_job_cannot_be_cancelled(local_host: ExecutorHost) -> None:
    job = finished(ContainerJob.objects.create_job(image="alpine:3.18", command="true"))
    assert job.cancel() is False
    job.status = "cancelled"
    with pytest.raises(IllegalTransition, match="completed"):
        job.save()
    assert stored(job).status == "completed"


def test_a_caller_cannot_write_any_other_status(local_host: ExecutorHost) -> None:
    job = waiting_job()
    job.status = "completed"
    with pytest.raises(IllegalTransition, match="completed"):
        job.save()
    assert stored(job).status == "pending"


def test_a_job_can_be_launched_by_hand_and_is_finished_by_the_next_worker(
    local_host: ExecutorHost, engine: docker.DockerClient
) -> None:
    job = ContainerJob.objects.create_job(image="alpine:3.18", command="echo by hand")
    executor = ExecutorFactory.create_executor("docker", {"docker_host": local_host})
    identifier = executor.launch_job(job)
    assert identifier == job.get_execution_identifier()
    assert executor.check_status(identifier) in {"running", "exited"}
    job = finished(job)
    assert (job.status, job.clean_output) == ("completed", "by hand\n")
    assert our_containers(engine) == []
    executor.close()
