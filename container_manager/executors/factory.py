"""The public facade over one host, with plain values in and out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.db.models import F
from django.utils import timezone

from container_manager import lifecycle
from container_manager.core.errors import (
    ConfigurationError,
    ExecutorError,
    HostFault,
    HostMismatch,
    InvalidJob,
    Undecided,
)
from container_manager.core.observation import STDOUT
from container_manager.core.states import Status
from container_manager.executors.base import Executor
from container_manager.executors.registry import open_executor
from container_manager.models import (
    ContainerJob,
    EngineLease,
    ExecutionMetadata,
    ExecutorHost,
    Installation,
)
from container_manager.models.admission import spec_of
from container_manager.models.brief import temporary_lease
from container_manager.models.lease import HeldLease

if TYPE_CHECKING:
    from docker import DockerClient

LAUNCHER = "launch_job"  # as the events name it
LAUNCH_WAIT_SECONDS = 60.0
_LAUNCH_LEASE_SECONDS = 120.0


class ExecutorFactory:
    """Makes `HostExecutor` objects."""

    @staticmethod
    def create_executor(executor_type: str, config: Mapping[str, Any]) -> HostExecutor:
        """An executor for `config["docker_host"]`, an `ExecutorHost`. No network call is made yet.

        Raises ConfigurationError for an unknown type, a missing host, or a host of another type.
        """
        host = config.get("docker_host")
        if not isinstance(host, ExecutorHost):
            raise ConfigurationError(
                f"docker_host: {host!r} is not an ExecutorHost. Pass {{'docker_host': <ExecutorHost>}}."
            )
        if host.executor_type != executor_type:
            raise ConfigurationError(
                f"executor_type: {executor_type!r} was asked for, but the host {host.name!r} is of type "
                f"{host.executor_type!r}."
            )
        return HostExecutor(host, open_executor(executor_type, host.as_config()))


class HostExecutor:
    """One host with its executor: look at jobs, read their logs, launch and clean up by hand."""

    def __init__(self, host: ExecutorHost, executor: Executor) -> None:
        self.host = host
        self._executor = executor
        self._clock_offset = timedelta()

    def launch_job(self, job: ContainerJob) -> str:
        """Start a pending job now and return its execution identifier.

        Where a worker serves the host, it does the launching and this call waits for it; else it is done
        here, and the next worker adopts the running container. Raises JobFault or InvalidJob when the job
        cannot run (it is then `failed`), HostFault when the host cannot be reached (the job stays pending),
        Undecided when the answer to the start got lost (the job stays launching until a worker looks).
        """
        facts = self._executor.health()
        self.host.record_up(facts)
        self._clock_offset = facts.clock_offset
        with temporary_lease(facts.engine_id, LAUNCHER, _LAUNCH_LEASE_SECONDS) as lease:
            if lease is None:
                return self._wait_for_worker(job)
            try:
                self._launch_here(lease, job)
            finally:
                job.refresh_from_db()
        return job.get_execution_identifier()

    def check_status(self, execution_identifier: str) -> str:
        """The engine's word: "created", "running", "paused", "exited", "not-found", or "unknown"."""
        return str(self._executor.inspect(execution_identifier).state)

    def get_logs(self, execution_identifier: str) -> tuple[str, str]:
        """What the container has written so far, as (stdout, stderr). Raises ContainerGone."""
        stdout, stderr = bytearray(), bytearray()
        for frame in self._executor.logs(execution_identifier):
            (stdout if frame.stream == STDOUT else stderr).extend(frame.payload)
        return stdout.decode(errors="replace"), stderr.decode(errors="replace")

    def get_health_status(self) -> dict[str, Any]:
        """Ask the host now: `healthy`, `error`, `response_time` (seconds), `last_check`; also recorded."""
        began = time.monotonic()
        error = ""
        try:
            self.host.record_up(self._executor.health())
        except HostMismatch as fault:
            error = str(fault)
        except HostFault as fault:
            error = str(fault)
            self.host.record_down(fault)
        return {
            "healthy": not error,
            "error": error or None,
            "response_time": time.monotonic() - began,
            "last_check": self.host.health_checked_at or timezone.now(),
        }

    def cleanup(self, execution_identifier: str) -> bool:
        """End and remove a container; True when none of that name is left, also if there was none.

        The container of an active job ends that job: it counts as a request to cancel it.
        """
        for job in ContainerJob.objects.active().filter(
            docker_host=self.host,
            executions__attempt=F("attempt"),
            executions__container_name=execution_identifier,
        ):
            lifecycle.request_cancel(job, actor="cleanup")
        self._executor.remove(execution_identifier)
        return True

    def close(self) -> None:
        """Free the connections."""
        self._executor.close()

    def _get_client(self, host: ExecutorHost) -> DockerClient:
        """A docker-py client for the host. Raises ConfigurationError for hosts without Docker."""
        from container_manager.executors.docker.executor import DockerExecutor

        executor = (
            self._executor if host == self.host else open_executor(host.executor_type, host.as_config())
        )
        if not isinstance(executor, DockerExecutor):
            raise ConfigurationError(
                f"executor_type: the host {host.name!r} is {host.executor_type!r}, not Docker."
            )
        return executor.docker_client()

    def _launch_here(self, lease: HeldLease, job: ContainerJob) -> None:
        self._mind_slots()
        claimed = lifecycle.claim(lease, self.host, limit=1, worker=LAUNCHER, only=[job.pk])
        if not claimed:
            job.refresh_from_db()
            raise ConfigurationError(
                f"status: the job is {job.status!r} on {job.docker_host}, not waiting here."
            )
        mine, execution = claimed[0]
        self._start(lease, mine, execution)

    def _mind_slots(self) -> None:
        """Nobody serves the host, so its running jobs are all that take slots. Raises ConfigurationError."""
        used = ContainerJob.objects.active().filter(docker_host=self.host).count()
        if used >= self.host.max_concurrent_jobs:
            raise ConfigurationError(
                f"max_concurrent_jobs: all {used} slots of the host {self.host.name!r} are taken, by jobs "
                "that no worker follows. Start one with: python manage.py process_container_jobs"
            )

    def _start(self, lease: HeldLease, job: ContainerJob, execution: ExecutionMetadata) -> None:
        try:
            spec = spec_of(job, Installation.current())
            execution.spec_hash = spec.digest()
            image = self._executor.pull(spec.image)
            execution.image_id, execution.image_digest = image.image_id, image.digest
            container_id = self._executor.create(spec)
            EngineLease.renew(lease, _LAUNCH_LEASE_SECONDS)  # a long pull may have cost us the engine
            self._start_once(container_id)
        except HostFault as error:
            lifecycle.release(lease, job, execution, worker=LAUNCHER, message=str(error), docker_log="")
            raise
        except (ExecutorError, InvalidJob) as error:
            lifecycle.refuse(lease, job, execution, error, worker=LAUNCHER)
            raise
        lifecycle.start(
            lease,
            job,
            execution,
            at=timezone.now() + self._clock_offset,
            worker=LAUNCHER,
            container_id=container_id,
            docker_log="",
        )

    def _start_once(self, container_id: str) -> None:
        """Start it. Raises HostFault only where it is sure that the program did not begin, and never will."""
        try:
            self._executor.start(container_id)
        except HostFault as error:
            try:
                began = not self._executor.withdraw(container_id)
            except HostFault as silence:
                raise Undecided(
                    f"whether the program began cannot be told now: {error}. The job stays 'launching'; the "
                    "next worker finds out"
                ) from silence
            if not began:
                raise

    def _wait_for_worker(self, job: ContainerJob) -> str:
        lifecycle.wake()
        deadline = time.monotonic() + LAUNCH_WAIT_SECONDS
        while time.monotonic() < deadline:
            job.refresh_from_db()
            if job.status not in (Status.PENDING, Status.LAUNCHING):
                return job.get_execution_identifier()
            time.sleep(0.1)  # another process works on it; its only sign is the row
        raise HostFault(
            f"the worker that serves {self.host.name!r} did not launch the job within "
            f"{LAUNCH_WAIT_SECONDS:g} s; it may have no free slot"
        )
