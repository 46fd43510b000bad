"""Rows for the tests of the database, made the way callers make them; add to it, and keep what is there."""

from __future__ import annotations

from typing import Any

from django.utils import timezone

from container_manager import lifecycle
from container_manager.core.logframes import encode
from container_manager.core.logtext import render
from container_manager.core.observation import STDERR, STDOUT, ContainerState, LogFrame, Observation
from container_manager.core.outcome import Intent, decide
from container_manager.models import ContainerJob, EngineLease, ExecutionMetadata, ExecutorHost
from container_manager.models.lease import HeldLease
from container_manager.records import Chunk, LogState, Usage

WORKER = "worker:test"

#: `CONTAINER_MANAGER_SETTINGS` of the tests that run on the public fake.
FAKE_SETTINGS: dict[str, Any] = {
    "EXECUTORS": {"fake": "container_manager.testing.FakeExecutor"},
    "ALLOW_PROCESS_EXECUTOR": True,
}


def fake_settings(**further: Any) -> dict[str, Any]:
    """Settings with the fake executor, and with what a test adds."""
    return {**FAKE_SETTINGS, **further}


def make_host(name: str = "one", **fields: Any) -> ExecutorHost:
    """A host on the fake engine of that name. The settings must know the executor: `FAKE_SETTINGS`."""
    values = {"executor_type": "fake", "connection_string": f"fake://{name}", **fields}
    host: ExecutorHost = ExecutorHost.objects.create(name=name, **values)
    return host


def make_job(**fields: Any) -> ContainerJob:
    """A pending job; without a host among the fields one must be registered."""
    image = fields.pop("docker_image", "demo:1")
    job: ContainerJob = ContainerJob.objects.create_job(image, **fields)
    return job


def hold(engine_id: str = "fake-one", worker: str = "worker:test") -> HeldLease:
    """The lease of an engine that nobody holds."""
    lease = EngineLease.acquire(engine_id, worker, 600.0)
    assert lease is not None, f"{engine_id} is held by {EngineLease.holder(engine_id)}"
    return lease


def start_job(job: ContainerJob, lease: HeldLease | None = None) -> ExecutionMetadata:
    """Claim a pending job and see it running, as its worker would."""
    held = lease or hold(job.docker_host.engine_id or f"fake-{job.docker_host.name}")
    claimed = lifecycle.claim(held, job.docker_host, limit=1, worker=WORKER, only=[job.pk])
    assert len(claimed) == 1, f"the job {job.pk} was not there to be claimed"
    mine, execution = claimed[0]
    assert lifecycle.start(
        held, mine, execution, at=timezone.now(), worker=WORKER, container_id="c" * 64, docker_log="started"
    )
    job.refresh_from_db()
    return execution


def finish_job(
    job: ContainerJob,
    *,
    exit_code: int = 0,
    stdout: bytes = b"",
    stderr: bytes = b"",
    oom_killed: bool = False,
    intent: Intent = Intent.NONE,
    usage: Usage | None = None,
    docker_log: str = "exited",
) -> ExecutionMetadata:
    """Take a pending job to its end with this output, as its worker would; the lease is given back."""
    lease = hold(job.docker_host.engine_id or f"fake-{job.docker_host.name}")
    execution = start_job(job, lease)
    end = timezone.now()
    frames = [LogFrame(STDOUT, 1_900_000_000_000_000_000, stdout)] if stdout else []
    frames += [LogFrame(STDERR, 1_900_000_000_000_000_001, stderr)] if stderr else []
    outcome = decide(
        Observation(state=ContainerState.EXITED, exit_code=exit_code, oom_killed=oom_killed, started_at=end),
        intent=intent,
        timeout_seconds=job.timeout_seconds,
        memory_limit_mb=job.memory_limit,
    )
    stored = lifecycle.finish(
        lease,
        job,
        execution,
        outcome,
        started_at=execution.started_at,
        finished_at=end,
        worker=WORKER,
        usage=usage or Usage(),
        logs=LogState(
            chunk_count=1 if frames else 0,
            cursor=None,
            stdout_bytes=len(stdout),
            stderr_bytes=len(stderr),
            complete=True,
            truncated=False,
            stdout_text=render(frame for frame in frames if frame.stream == STDOUT),
            stderr_text=render(frame for frame in frames if frame.stream == STDERR),
        ),
        chunks=[Chunk(0, encode(frames), frames[-1].timestamp_ns)] if frames else [],
        docker_log=docker_log,
    )
    assert stored
    EngineLease.release(lease)
    job.refresh_from_db()
    return execution
