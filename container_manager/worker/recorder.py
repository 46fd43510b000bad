"""Facts become rows: what the agents report about runs is applied to the database here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from django.utils import timezone

from container_manager import lifecycle
from container_manager.conf import Settings
from container_manager.core.errors import HostFault, JobFault
from container_manager.core.observation import ContainerState, OwnedContainer
from container_manager.core.outcome import ExitReason, Intent, Outcome, decide, rejected
from container_manager.core.reconcile import JobRecord, Verdict, judge
from container_manager.core.spec import LABEL_ATTEMPT, LABEL_JOB
from container_manager.core.states import Status
from container_manager.models import ContainerJob, ExecutionMetadata
from container_manager.models.lease import HeldLease
from container_manager.worker.hosts import HostSeat
from container_manager.worker.messages import Exited, Launched, LaunchFailed, LogBatch
from container_manager.worker.run import Run

logger = logging.getLogger("container_manager.jobs")

#: Containers younger than this are never taken for strays: the database may know them a moment later.
STRAY_GRACE_SECONDS = 60.0

_BY_ANOTHER_HAND = {ExitReason.KILLED_EXTERNALLY, ExitReason.REMOVED_EXTERNALLY}


@dataclass(slots=True, kw_only=True)
class Held:
    """A job in this worker's hands."""

    job: ContainerJob
    execution: ExecutionMetadata
    run: Run
    seat: HostSeat


class Recorder:
    """Applies facts. Each method may be repeated after a database error: a second time changes nothing."""

    def __init__(self, worker: str, settings: Settings) -> None:
        self._worker = worker
        self._settings = settings

    def launched(self, held: Held, fact: Launched) -> bool:
        """The program runs. False when the job was taken from us meanwhile."""
        execution = held.execution
        execution.spec_hash = held.run.spec.digest()
        if fact.image is not None:
            execution.image_id, execution.image_digest = fact.image.image_id, fact.image.digest
        if held.job.status != Status.LAUNCHING:
            return held.job.status == Status.RUNNING  # adopted in this state
        moved = lifecycle.start(
            _lease(held),
            held.job,
            execution,
            at=fact.started_at,
            worker=self._worker,
            container_id=fact.container_id,
            docker_log=held.run.engine_log_text(),
        )
        self._log(held, "started" if moved else "was ended by its owner while it was started")
        return moved

    def launch_failed(self, held: Held, fact: LaunchFailed) -> None:
        """The program never ran: back to the queue when the host is at fault, else the end of the job."""
        if fact.intent is not Intent.CANCEL and isinstance(fact.error, HostFault):
            lifecycle.release(
                _lease(held),
                held.job,
                held.execution,
                worker=self._worker,
                message=str(fact.error),
                docker_log=held.run.engine_log_text(),
            )
            self._log(held, f"given back: {fact.error}", level=logging.WARNING)
            return
        reason = fact.error.reason if isinstance(fact.error, JobFault) else ExitReason.CREATE_ERROR
        outcome = rejected(reason, fact.error.explained())
        if fact.intent is Intent.CANCEL:
            outcome = Outcome(
                status=Status.CANCELLED,
                reason=ExitReason.CANCELLED,
                exit_code=None,
                message="The job was cancelled before it was started.",
            )
        elif fact.exit_code is not None:
            outcome = Outcome(
                status=outcome.status,
                reason=outcome.reason,
                exit_code=fact.exit_code,
                message=outcome.message,
            )
        self._finish(held, outcome, None)

    def exited(self, held: Held, fact: Exited) -> None:
        """The container has ended and was read to its end."""
        outcome = decide(
            fact.observation,
            intent=fact.intent,
            timeout_seconds=held.job.timeout_seconds,
            memory_limit_mb=held.job.memory_limit,
            engine_interrupted=fact.engine_interrupted,
        )
        if outcome.reason in _BY_ANOTHER_HAND and _cancel_was_requested(held.job):
            # The owner asked for the end and removed the container before we could stop it.
            outcome = decide(fact.observation, intent=Intent.CANCEL)
        if held.execution.image_id == "":
            held.execution.image_id = fact.observation.image_id
        self._finish(held, outcome, fact)

    def logs(self, held: Held, batch: LogBatch) -> None:
        """Output of a running job."""
        chunks = [] if batch.chunk is None else [batch.chunk]
        lifecycle.store_logs(_lease(held), held.job, held.execution, chunks, batch.state)

    def removed(self, executions: Sequence[ExecutionMetadata]) -> None:
        """Containers of ended attempts are gone."""
        ExecutionMetadata.objects.filter(pk__in=[execution.pk for execution in executions]).update(
            removed_at=timezone.now()
        )

    def useless(self, containers: Sequence[OwnedContainer], engine_now: datetime) -> list[str]:
        """Which of these containers of ours may be removed, by id. Their age is by the engine's clock."""
        now = timezone.now()
        labelled = {c.container_id: _labels(c) for c in containers}
        ids = [job_id for job_id, _ in labelled.values() if job_id]
        records = {
            str(pk): JobRecord(
                status=Status(status),
                attempt=attempt,
                finished_seconds_ago=None if ended is None else (now - ended).total_seconds(),
            )
            for pk, status, attempt, ended in ContainerJob.objects.filter(pk__in=ids).values_list(
                "pk", "status", "attempt", "completed_at"
            )
        }
        useless = []
        for container in containers:
            job_id, attempt = labelled[container.container_id]
            age = (
                None if container.created_at is None else (engine_now - container.created_at).total_seconds()
            )
            verdict = judge(
                attempt=attempt,
                age_seconds=age,
                record=records.get(job_id),
                retention_seconds=0.0
                if self._settings.IMMEDIATE_CLEANUP
                else self._settings.CONTAINER_RETENTION_SECONDS,
                grace_seconds=STRAY_GRACE_SECONDS,
            )
            if verdict is Verdict.REMOVE:
                useless.append(container.container_id)
        return useless

    def _finish(self, held: Held, outcome: Outcome, fact: Exited | None) -> None:
        seen = fact.observation if fact is not None else None
        started = seen.started_at if seen is not None else None
        if seen is not None and seen.state is ContainerState.NOT_FOUND:
            started = held.job.started_at  # what we saw ourselves is all there is
        done = lifecycle.finish(
            _lease(held),
            held.job,
            held.execution,
            outcome,
            started_at=started,
            finished_at=seen.finished_at if seen is not None else None,
            worker=self._worker,
            usage=_usage(held, outcome, fact),
            logs=fact.logs if fact is not None else held.run.logs.rest()[1],
            chunks=[fact.chunk] if fact is not None and fact.chunk is not None else [],
            docker_log=held.run.engine_log_text(),
        )
        if done:
            self._log(held, f"{outcome.status} ({outcome.reason}), exit code {outcome.exit_code}")
        else:
            self._log(held, "had been ended by its owner; its record was stored")

    def _log(self, held: Held, text: str, level: int = logging.INFO) -> None:
        logger.log(
            level,
            "job %s (%s) %s",
            held.job.pk,
            held.job.name or "unnamed",
            text,
            extra={
                "job_id": str(held.job.pk),
                "execution_id": held.run.spec.name,
                "docker_host": held.seat.host.name,
            },
        )


def _lease(held: Held) -> HeldLease:
    assert held.seat.tenure is not None  # noqa: S101 - a held job's seat has one until it is left
    return held.seat.tenure.lease


def _usage(held: Held, outcome: Outcome, fact: Exited | None) -> lifecycle.Usage:
    """What samples tell; that a job died at its memory limit tells its peak even where none was taken."""
    if fact is None:
        return lifecycle.Usage()
    if outcome.reason is not ExitReason.OUT_OF_MEMORY:
        return fact.usage
    limit = held.run.spec.memory_bytes
    peak = max(limit, fact.usage.max_memory_bytes or 0)
    return replace(fact.usage, max_memory_bytes=peak, memory_source="limit")


def _cancel_was_requested(job: ContainerJob) -> bool:
    wanted = ContainerJob.objects.filter(pk=job.pk, cancel_requested_at__isnull=False)
    return bool(wanted.exists())


def _labels(container: OwnedContainer) -> tuple[str, int]:
    attempt = container.labels.get(LABEL_ATTEMPT, "")
    return container.labels.get(LABEL_JOB, ""), int(attempt) if attempt.isdigit() else 0
