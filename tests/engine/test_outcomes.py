"""How every way to end reads in a job's record: status, reason, and a message that a person can act on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass

import docker
import pytest
from pytest_django import Settings

from container_manager.core.errors import BadUser, InvalidJob
from container_manager.core.observation import ContainerState
from container_manager.core.outcome import REASONS, ExitReason
from container_manager.core.spec import ContainerSpec
from container_manager.executors.registry import open_executor
from container_manager.models import ContainerJob, ExecutorHost, Installation
from container_manager.models.admission import spec_of
from tests.acceptance.running import (
    OBEDIENT_PROGRAM,
    connect,
    finished,
    register,
    signal_job,
    stored,
    unique,
    until,
    until_says,
    until_status,
    worker_process,
    worker_thread,
)
from tests.engines import BASE_IMAGE
from tools.engine import Engine

pytestmark = pytest.mark.engine

OOM_CHILD = 'sh -c \'python -c "x = b\\"x\\" * (400 << 20)"; exit 0\''
STUBBORN = """
import signal
signal.signal(signal.SIGTERM, lambda *_: print("no", flush=True))
print("ready", flush=True)
while True:
    signal.pause()
"""
READY = "import signal; print('ready', flush=True); signal.pause()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A command, and what its job's record says in the end. `words` are parts of the message."""

    command: str | list[str]
    status: str
    reason: ExitReason
    code: int | None
    words: tuple[str, ...] = ()
    memory_limit: int = 256
    started: bool = True


PYTHON = ["python", "-c"]

CASES = {
    "success": Case(command="true", status="completed", reason=ExitReason.SUCCESS, code=0),
    "application error": Case(
        command="sh -c 'exit 3'",
        status="failed",
        reason=ExitReason.APPLICATION_ERROR,
        code=3,
        words=("exit code 3", "stderr"),
    ),
    "main process out of memory": Case(
        command=[*PYTHON, "x = b'x' * (400 << 20)"],
        memory_limit=64,
        status="failed",
        reason=ExitReason.OUT_OF_MEMORY,
        code=137,
        words=("64 MB", "memory_limit"),
    ),
    "child out of memory, parent content": Case(
        command=OOM_CHILD,
        memory_limit=64,
        status="completed",
        reason=ExitReason.SUCCESS,
        code=0,
        words=("child", "out of memory"),
    ),
    "killed by itself": Case(
        # Process 1 cannot be killed from inside its own namespace: it is the parent that says 137.
        command="sh -c 'kill -9 $$'; exit $?",
        status="failed",
        reason=ExitReason.KILLED_EXTERNALLY,
        code=137,
        words=("SIGKILL",),
    ),
    "binary missing": Case(
        command="no-such-program --flag",
        status="failed",
        reason=ExitReason.COMMAND_NOT_FOUND,
        code=127,
        words=("no-such-program", "image"),
        started=False,
    ),
    "not executable": Case(
        command="/etc/passwd",
        status="failed",
        reason=ExitReason.COMMAND_NOT_EXECUTABLE,
        code=126,
        words=("/etc/passwd", "execut"),
        started=False,
    ),
    **{
        f"the program itself says {code}": Case(
            command=f"sh -c 'exit {code}'",
            status="failed",
            reason=ExitReason.APPLICATION_ERROR,
            code=code,
            words=(f"exit code {code}",),
        )
        for code in (125, 126, 127, 255)
    },
}


def must_say(job: ContainerJob, *words: str) -> None:
    """The message is a sentence for a person: it holds these words, and the remedy of its reason."""
    for word in (*words, REASONS[ExitReason(job.exit_reason)].remedy):
        assert word in job.exit_message, job.exit_message


def ended(job: ContainerJob) -> tuple[str, str, int | None]:
    return (job.status, job.exit_reason, job.exit_code)


def test_each_end_has_its_reason(host: ExecutorHost) -> None:
    jobs = {
        name: ContainerJob.objects.create_job(BASE_IMAGE, case.command, memory_limit=case.memory_limit)
        for name, case in CASES.items()
    }
    finished(jobs["success"])
    seen = {name: ended(stored(job)) for name, job in jobs.items()}
    assert seen == {name: (case.status, case.reason, case.code) for name, case in CASES.items()}
    for name, case in CASES.items():
        job = stored(jobs[name])
        must_say(job, *case.words)
        assert (job.started_at is not None) is case.started, name
        assert job.completed_at is not None
        assert job.duration is None or job.duration.total_seconds() >= 0  # the engine itself may say less
        execution = job.executions.get()
        assert (execution.exit_code, execution.exit_reason) == (case.code, case.reason)
        assert job.events.filter(to_status=case.status, reason=case.reason).count() == 1
        assert job.docker_log


def test_a_user_that_is_not_numeric_cannot_be_asked_for(host: ExecutorHost) -> None:
    with pytest.raises(InvalidJob, match="user"):
        ContainerJob.objects.create_job(BASE_IMAGE, "true", user="nobody-we-know")
    assert not ContainerJob.objects.exists()


def test_the_driver_would_name_an_unknown_user(host: ExecutorHost, engine: docker.DockerClient) -> None:
    # No job can ask for it; should it ever reach the engine, the answer is not mistaken for the program's.
    job = ContainerJob(
        pk=ContainerJob().pk, docker_image=BASE_IMAGE, command="true", command_form="exec", attempt=1
    )
    spec = spec_of(job, Installation.current())
    values = {name: getattr(spec, name) for name in ContainerSpec.__dataclass_fields__}
    executor = open_executor("docker", host.as_config())
    try:
        container = executor.create(ContainerSpec(**{**values, "user": "nobody-we-know"}))
        with pytest.raises(BadUser, match="nobody-we-know"):
            executor.start(container)
        assert executor.inspect(container).state is ContainerState.CREATED
        assert not executor.inspect(container).ever_started
        assert executor.remove(container) is True
    finally:
        executor.close()


@pytest.mark.parametrize(("name", "code"), [("SIGKILL", 137), ("SIGTERM", 143)])
def test_a_signal_from_outside_is_not_taken_for_ours(
    host: ExecutorHost, engine: docker.DockerClient, name: str, code: int
) -> None:
    job = ContainerJob.objects.create_job(
        BASE_IMAGE, "trap 'exit 143' TERM; echo ready; while :; do sleep 0.1; done"
    )
    with worker_thread():
        until_says(job, "ready")
        signal_job(engine, job, name)
    job = stored(job)
    assert ended(job) == ("failed", "killed_externally", code)
    must_say(job, name)
    assert job.clean_output == "ready\n"


def test_a_container_removed_behind_our_back(host: ExecutorHost, engine: docker.DockerClient) -> None:
    job = ContainerJob.objects.create_job(BASE_IMAGE, [*PYTHON, READY])
    with worker_thread():
        until_says(job, "ready")
        engine.containers.get(stored(job).get_execution_identifier()).remove(force=True)
    job = stored(job)
    # Removing kills first: which of the two the worker sees depends on who is faster, and both are true.
    assert job.status == "failed"
    assert (job.exit_reason, job.exit_code) in [("removed_externally", None), ("killed_externally", 137)]
    must_say(job)
    assert job.clean_output == "ready\n"


def test_time_runs_out_for_a_job_that_obeys(host: ExecutorHost) -> None:
    job = finished(
        ContainerJob.objects.create_job(BASE_IMAGE, [*PYTHON, OBEDIENT_PROGRAM], timeout_seconds=1)
    )
    assert job.status == job.exit_reason == "timeout"
    must_say(job, "time limit of 1 s", "timeout_seconds")
    assert job.clean_output == "first words\n"
    assert job.duration is not None
    assert job.duration.total_seconds() >= 1


def test_time_runs_out_for_a_job_that_ignores_sigterm(host: ExecutorHost, settings: Settings) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {"STOP_GRACE_SECONDS": 1}
    job = finished(ContainerJob.objects.create_job(BASE_IMAGE, [*PYTHON, STUBBORN], timeout_seconds=1))
    assert ended(job) == ("timeout", "timeout", 137)
    assert job.clean_output == "ready\nno\n"
    assert "SIGTERM" in job.docker_log
    assert "SIGKILL" in job.docker_log
    must_say(job, "time limit of 1 s")


def test_a_cancel_of_a_job_that_ignores_sigterm(host: ExecutorHost, settings: Settings) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {"STOP_GRACE_SECONDS": 1}
    job = ContainerJob.objects.create_job(BASE_IMAGE, [*PYTHON, STUBBORN])
    with worker_thread():
        assert until_says(job, "ready").cancel()
    job = stored(job)
    assert ended(job) == ("cancelled", "cancelled", 137)
    assert "SIGKILL" in job.docker_log
    must_say(job, "cancelled")


def test_a_cancel_is_a_cancel_even_if_the_program_then_succeeds(host: ExecutorHost) -> None:
    job = ContainerJob.objects.create_job(
        BASE_IMAGE, "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    )
    with worker_thread():
        assert until_says(job, "ready").cancel()
    assert ended(stored(job)) == ("cancelled", "cancelled", 0)


def test_what_is_not_on_the_host(host: ExecutorHost) -> None:
    host.auto_pull_images = False
    host.save()
    image = f"{unique('nowhere')}:1"
    job = finished(ContainerJob.objects.create_job(image, "true"))
    assert ended(job) == ("failed", "image_not_found", None)
    must_say(job, image)


def test_a_daemon_that_dies_takes_its_containers_along(
    transactional_db: None,
    engine_of_my_own: Callable[..., Engine],
    child_environment: dict[str, str],
) -> None:
    mine = engine_of_my_own()
    register(mine.url, "mortal")
    job = ContainerJob.objects.create_job(BASE_IMAGE, [*PYTHON, READY])
    with worker_process(child_environment):
        until_says(job, "ready")
        daemon = mine.daemon
        assert daemon is not None
        daemon.signal(signal.SIGKILL)
        assert daemon.wait(10)
        # Unreachable is not dead: the host is reported down, the job stays what it was.
        until(lambda: ExecutorHost.objects.get(name="mortal").health == "unreachable", "the host to be down")
        assert stored(job).status == "running"
        mine.resume()  # without live-restore the daemon stops what survived it
        job = until_status(job, "failed", "completed", seconds=120)
    assert job.exit_reason in {"engine_stopped", "host_crashed"}
    assert job.exit_code in {137, 143, 255}
    must_say(job, "engine")
    assert job.clean_output == "ready\n"


def test_a_daemon_restart_under_live_restore_is_survived(
    transactional_db: None,
    engine_of_my_own: Callable[..., Engine],
    child_environment: dict[str, str],
) -> None:
    mine = engine_of_my_own(flags=("--live-restore",))
    register(mine.url, "steady")
    program = "trap 'echo told; exit 7' USR1; echo ready; while :; do sleep 0.1; done"
    job = ContainerJob.objects.create_job(BASE_IMAGE, program)
    with worker_process(child_environment):
        until_says(job, "ready")
        daemon = mine.daemon
        assert daemon is not None
        daemon.signal(signal.SIGKILL)
        assert daemon.wait(10)
        until(lambda: ExecutorHost.objects.get(name="steady").health == "unreachable", "the host to be down")
        mine.resume()
        until(lambda: ExecutorHost.objects.get(name="steady").health == "healthy", "the host to be back")
        assert stored(job).status == "running"
        client = connect(mine.url)
        signal_job(client, job, "SIGUSR1")
        client.close()
        job = until_status(job, "failed", "completed")
    assert ended(job) == ("failed", "application_error", 7)
    assert job.clean_output == "ready\ntold\n"


def test_threads_of_a_finished_worker_are_gone(host: ExecutorHost) -> None:
    before = set(threading.enumerate())
    assert finished(ContainerJob.objects.create_job(BASE_IMAGE, "true")).status == "completed"
    until(lambda: set(threading.enumerate()) <= before, "the worker's threads to end", seconds=10)
