"""What a worker does with the attempts that it holds: start, log, end, give back, take over.

All but `note` begin with the fence, which locks the worker's lease or raises LeaseLost. What engines and
registries say enters the records here, by way of `core.enginetext`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import QuerySet, TextField, Value
from django.db.models.functions import Concat
from django.utils import timezone

from container_manager.core.enginetext import log_text, message_text
from container_manager.core.errors import ExecutorError, InvalidJob, JobFault
from container_manager.core.outcome import ExitReason, Outcome, cancelled_before_start, rejected
from container_manager.core.retry import Again
from container_manager.core.states import ACTIVE, Status, Transition
from container_manager.lifecycle.moves import add_event, alias, all_jobs, lock, move
from container_manager.models import (
    ContainerJob,
    EngineLease,
    ExecutionMetadata,
    ExecutorHost,
    JobEvent,
)
from container_manager.models.clock import from_now
from container_manager.models.lease import HeldLease
from container_manager.records import (
    LOG_FIELDS,
    Chunk,
    LogState,
    Usage,
    apply_logs,
    job_record,
    log_columns,
    store_attempt,
    store_chunks,
)

_ACTIVE = [status.value for status in ACTIVE]
_STARTED_FIELDS = ["container_id", "started_at", "spec_hash", "image_id", "image_digest", "docker_log"]


def start(
    lease: HeldLease,
    job: ContainerJob,
    execution: ExecutionMetadata,
    *,
    at: datetime,
    worker: str,
    container_id: str,
    docker_log: str,
) -> bool:
    """The container runs: launching -> running. False when the job is not ours to move any more."""
    with transaction.atomic(using=alias()):
        EngineLease.fence(lease)
        docker_log = log_text(docker_log)
        fields = {"started_at": at, "docker_log": docker_log}
        event = move(job, Transition.START, Status.RUNNING, fields, lease=lease, actor=worker)
        if event is None:
            return False
        execution.container_id, execution.started_at = container_id, at
        execution.docker_log = docker_log
        execution.save(update_fields=_STARTED_FIELDS)
        return True


def finish(
    lease: HeldLease,
    job: ContainerJob,
    execution: ExecutionMetadata,
    outcome: Outcome,
    *,
    started_at: datetime | None,
    finished_at: datetime | None,
    worker: str,
    usage: Usage,
    logs: LogState,
    chunks: Sequence[Chunk],
    docker_log: str,
    again: Again | None = None,
) -> bool:
    """The attempt has ended: store its record, and move the job to its final status.

    With `again` the job goes back into the queue for another attempt, unless its owner wants it ended. A
    container that ended before it was seen running passes through `start` in the same transaction. When the
    job was given another status meanwhile (cancelled by its owner), the attempt's record is stored all the
    same and False is returned.
    """
    now = timezone.now()
    outcome = replace(outcome, message=message_text(outcome.message))
    docker_log = log_text(docker_log)
    with transaction.atomic(using=alias()):
        EngineLease.fence(lease)
        store_chunks(execution, chunks)
        execution.docker_log = docker_log
        store_attempt(execution, outcome, started_at, finished_at, now, usage, logs)
        record = job_record(execution, docker_log, logs)
        event = None
        if _is_ours_to_end(lease, job, outcome, started_at, actor=worker):
            if again is not None and not _cancel_is_wanted(job):
                event = _try_again(lease, job, outcome, again, record, actor=worker)
            else:
                times = {"completed_at": finished_at or now, **_known_start(started_at)}
                event = _end(lease, job, outcome, {**record, **times}, actor=worker)
        if event is None:
            _store_late_record(lease, job, outcome, {**record, **_known_start(started_at)})
        return event is not None


def release(
    lease: HeldLease,
    job: ContainerJob,
    execution: ExecutionMetadata,
    *,
    worker: str,
    message: str,
    docker_log: str,
    wait_seconds: float = 0.0,
) -> bool:
    """Give a job back that never ran, because of a fault of its host: launching -> pending.

    It is claimed again after `wait_seconds`. One that its owner wants ended does not go back into the queue:
    launching -> cancelled.
    """
    message, docker_log = message_text(message), log_text(docker_log)
    with transaction.atomic(using=alias()):
        EngineLease.fence(lease)
        execution.recorded_at, execution.exit_message = timezone.now(), message
        execution.docker_log = docker_log
        execution.save(update_fields=["recorded_at", "exit_message", "docker_log"])
        if job.status != Status.LAUNCHING:
            return False  # given back already, and the answer to that commit was lost
        if _cancel_is_wanted(job):
            fields = {"completed_at": execution.recorded_at, "docker_log": docker_log}
            moved = _end(lease, job, cancelled_before_start(), fields, actor=worker, message=message)
        else:
            not_before = from_now(wait_seconds) if wait_seconds else None
            fields = {"lease_token": None, "docker_log": docker_log, "not_before": not_before}
            moved = move(
                job, Transition.RELEASE, Status.PENDING, fields, lease=lease, actor=worker, message=message
            )
        return moved is not None


def refuse(
    lease: HeldLease,
    job: ContainerJob,
    execution: ExecutionMetadata,
    error: ExecutorError | InvalidJob,
    *,
    worker: str,
) -> None:
    """The job as asked for cannot run, and never did: launching -> failed.

    InvalidJob: it was admitted, and rules or its own row have changed since.
    """
    if isinstance(error, InvalidJob):
        reason, message, docker_log = ExitReason.POLICY_REFUSED, str(error), ""
    else:
        reason = error.reason if isinstance(error, JobFault) else ExitReason.CREATE_ERROR
        message, docker_log = error.explained(), error.detail
    finish(
        lease,
        job,
        execution,
        rejected(reason, message),
        started_at=None,
        finished_at=None,
        worker=worker,
        usage=Usage(),
        logs=LogState.empty(),
        chunks=(),
        docker_log=docker_log,
    )


def adopt(
    lease: HeldLease, host: ExecutorHost, *, worker: str, held: Collection[tuple[Any, int]] = ()
) -> list[tuple[ContainerJob, ExecutionMetadata]]:
    """Take every active job of this engine that is not in our hands, whoever had it before.

    `held`: the (id, attempt) of those that are. The others were left by another worker, or by ourselves when
    the answer to a commit got lost. Raises LeaseLost.
    """
    with transaction.atomic(using=alias()):
        EngineLease.fence(lease)
        active: QuerySet[ContainerJob] = all_jobs().filter(docker_host=host, status__in=_ACTIVE)
        known = set(held)
        missing = [key for key in active.values_list("pk", "attempt") if key not in known]
        pairs = []
        wanted = active.filter(pk__in=[pk for pk, _ in missing]).select_related("docker_host")
        for job in wanted.defer("stdout_log", "stderr_log").order_by("created_at"):
            rows = active.filter(pk=job.pk, status=job.status, attempt=job.attempt)
            if not rows.update(lease_token=lease.token):
                continue
            job.lease_token = lease.token
            execution = ExecutionMetadata.objects.using(alias()).get(job=job, attempt=job.attempt)
            execution.worker = worker
            execution.save(update_fields=["worker"])
            add_event(job, "adopt", source=job.status, actor=worker)
            pairs.append((job, execution))
        return pairs


def note(execution: ExecutionMetadata, what: str, message: str, worker: str) -> None:
    """Put into the record what was found of an attempt that is over; no status changes."""
    message = message_text(message)
    line = f"{timezone.now():%Y-%m-%dT%H:%M:%S}Z {message}\n"
    with transaction.atomic(using=alias()):
        job = execution.job
        execution.docker_log += line
        execution.save(update_fields=["docker_log"])
        row: QuerySet[ContainerJob] = all_jobs().filter(pk=job.pk, attempt=execution.attempt)
        row.update(docker_log=Concat("docker_log", Value(line), output_field=TextField()))
        add_event(job, what, source=job.status, actor=worker, message=message)


def store_logs(
    lease: HeldLease,
    job: ContainerJob,
    execution: ExecutionMetadata,
    chunks: Sequence[Chunk],
    logs: LogState,
) -> None:
    """Append chunks and move the cursor with them. Raises LeaseLost."""
    with transaction.atomic(using=alias()):
        EngineLease.fence(lease)
        store_chunks(execution, chunks)
        apply_logs(execution, logs)
        execution.save(update_fields=LOG_FIELDS)
        columns = log_columns(logs)
        if columns:
            all_jobs().filter(pk=job.pk, attempt=execution.attempt, lease_token=lease.token).update(**columns)


def _is_ours_to_end(
    lease: HeldLease, job: ContainerJob, outcome: Outcome, started_at: datetime | None, *, actor: str
) -> bool:
    """Whether the job still waits for its end. One that was not seen running yet passes through `start`."""
    if job.status not in ACTIVE:
        return False
    if job.status == Status.RUNNING or started_at is None or outcome.status is Status.CANCELLED:
        return True
    seen = _known_start(started_at)
    return move(job, Transition.START, Status.RUNNING, seen, lease=lease, actor=actor) is not None


def _known_start(started_at: datetime | None) -> dict[str, Any]:
    return {} if started_at is None else {"started_at": started_at}


def _end(
    lease: HeldLease,
    job: ContainerJob,
    outcome: Outcome,
    fields: dict[str, Any],
    *,
    actor: str,
    message: str = "",
) -> JobEvent | None:
    """Give the job its final status; `message` is what the event says where that is not the outcome's."""
    return move(
        job,
        _final_transition(Status(job.status), outcome.status),
        outcome.status,
        {
            "exit_code": outcome.exit_code,
            "exit_reason": outcome.reason.value,
            "exit_message": outcome.message,
            **fields,
        },
        lease=lease,
        actor=actor,
        reason=outcome.reason,
        message=message or outcome.message,
    )


def _try_again(
    lease: HeldLease, job: ContainerJob, outcome: Outcome, again: Again, record: dict[str, Any], *, actor: str
) -> JobEvent | None:
    fields = {
        **record,
        "lease_token": None,
        "not_before": from_now(again.wait_seconds),
        "failed_attempts": job.failed_attempts + again.counted,
    }
    count = "" if again.counted else ", not counted"
    return move(
        job,
        Transition.RETRY,
        Status.PENDING,
        fields,
        lease=lease,
        actor=actor,
        reason=outcome.reason,
        message=f"Attempt {job.attempt} ended{count}; the next one follows in {again.wait_seconds:.3g} s. "
        f"{outcome.message}",
    )


def _cancel_is_wanted(job: ContainerJob) -> bool:
    """Locked: a wish that comes between this look and the move would get lost in the queue."""
    lock(job)
    row: QuerySet[ContainerJob] = all_jobs().filter(pk=job.pk)
    return row.filter(cancel_requested_at__isnull=False).exists()


def _final_transition(source: Status, target: Status) -> Transition:
    if target is Status.CANCELLED:
        return Transition.CANCEL
    if source is Status.RUNNING:
        return Transition.FINISH
    return Transition.EXPIRE if target is Status.TIMEOUT else Transition.REJECT


def _store_late_record(lease: HeldLease, job: ContainerJob, outcome: Outcome, record: dict[str, Any]) -> None:
    """The job was ended by its owner before we could say how its container ended: keep the facts."""
    ours = all_jobs().filter(pk=job.pk, attempt=job.attempt, lease_token=lease.token)
    ours.filter(status=Status.CANCELLED).update(**record, exit_code=outcome.exit_code)
