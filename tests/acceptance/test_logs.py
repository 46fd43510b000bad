"""Guide: Log Volume Management, Container Logs, Log Processing."""

from __future__ import annotations

import re

import docker
import pytest

from container_manager.executors.factory import ExecutorFactory
from container_manager.models import ContainerJob, ExecutorHost
from tests.acceptance.running import (
    WAITING_PROGRAM,
    finished,
    signal_job,
    stored,
    until_says,
    worker_thread,
)

pytestmark = pytest.mark.engine

TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z ")


def test_both_streams_are_kept_apart_with_the_engines_timestamps(local_host: ExecutorHost) -> None:
    job = ContainerJob.objects.create_job(
        image="alpine:latest", command="echo one; echo trouble >&2; echo two; exit 0"
    )
    job = finished(job)
    for text, words in ((job.stdout_log, ["one", "two"]), (job.stderr_log, ["trouble"])):
        lines = text.splitlines()
        assert [TIMESTAMP.sub("", line) for line in lines] == words
        assert all(TIMESTAMP.match(line) for line in lines)
    assert (b"".join(job.iter_log("stdout")), b"".join(job.iter_log("stderr"))) == (
        b"one\ntwo\n",
        b"trouble\n",
    )


def test_clean_output_has_neither_timestamps_nor_terminal_escapes(local_host: ExecutorHost) -> None:
    program = r"print('\033[1;32mgreen\033[0m \033]0;title\007and plain')"
    job = finished(ContainerJob.objects.create_job(image="python:3.11", command=["python", "-c", program]))
    assert job.clean_output == "green and plain\n"


@pytest.mark.parametrize(
    ("output", "parsed"),
    [
        ('{"rows": 3, "names": ["a", "b"]}', {"rows": 3, "names": ["a", "b"]}),
        ('{\n  "rows": 3\n}', {"rows": 3}),
        ('working\nstill working\n{"rows": 3}', {"rows": 3}),
        ("just words", None),
        ("", None),
    ],
)
def test_parsed_output_is_the_json_that_a_job_prints(
    local_host: ExecutorHost, output: str, parsed: object
) -> None:
    job = ContainerJob.objects.create_job(
        image="python:3.11", command=["python", "-c", "import sys; print(sys.argv[1])", output]
    )
    job = finished(job)
    assert job.parsed_output == parsed
    assert ContainerJob.objects.get(id=job.id, status="completed").parsed_output == parsed


def test_a_running_job_can_be_watched(local_host: ExecutorHost, engine: docker.DockerClient) -> None:
    job = ContainerJob.objects.create_job(
        image="python:3.11", command=["python", "-c", WAITING_PROGRAM], name="watched"
    )
    with worker_thread():
        job = until_says(job, "first words")
        executor = ExecutorFactory.create_executor("docker", {"docker_host": job.docker_host})
        assert executor.check_status(job.get_execution_identifier()) == "running"
        assert job.status == "running"
        stdout, stderr = executor.get_logs(job.get_execution_identifier())
        assert (stdout[-500:], stderr) == ("first words\n", "first complaint\n")
        signal_job(engine, job, "SIGUSR1")
    assert stored(job).clean_output == "first words\nlast words\n"
    assert executor.check_status(job.get_execution_identifier()) == "not-found"
    executor.close()


def test_output_arrives_in_the_record_while_the_job_runs(
    local_host: ExecutorHost, engine: docker.DockerClient
) -> None:
    job = ContainerJob.objects.create_job(image="python:3.11", command=["python", "-c", WAITING_PROGRAM])
    with worker_thread():
        live = until_says(job, "first words")
        assert live.status == "running"
        assert live.completed_at is None
        assert b"".join(live.iter_log("stdout")) == b"first words\n"
        assert live.duration is None
        signal_job(engine, job, "SIGUSR1")
    done = stored(job)
    assert b"".join(done.iter_log("stdout")) == b"first words\nlast words\n"
    assert done.latest_execution is not None
    assert done.latest_execution.logs_complete


def test_the_logs_stay_when_the_container_is_gone(
    local_host: ExecutorHost, engine: docker.DockerClient
) -> None:
    job = finished(ContainerJob.objects.create_job(image="alpine:latest", command="echo for ever"))
    with pytest.raises(docker.errors.NotFound):
        engine.containers.get(job.get_execution_identifier())
    assert stored(job).clean_output == "for ever\n"


def test_the_engine_log_tells_what_the_engine_did(local_host: ExecutorHost) -> None:
    job = finished(ContainerJob.objects.create_job(image="alpine:latest", command="sh -c 'exit 3'"))
    assert re.search(r"create", job.docker_log)
    assert re.search(r"start", job.docker_log)
    assert "exit code 3" in job.docker_log
    assert all(re.match(r"\d{4}-\d\d-\d\d", line) for line in job.docker_log.splitlines())
