"""The queue: which waiting job is taken next, and how long a job may wait."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, TypeVar

from django.db import connections, transaction
from django.db.models import F, Q, QuerySet
from django.utils import timezone

from container_manager.core.outcome import deadline_exceeded
from container_manager.core.states import Status, Transition
from container_manager.lifecycle.moves import alias, all_jobs, announce, move, wake
from container_manager.models import (
    ContainerJob,
    EngineLease,
    ExecutionMetadata,
    ExecutorHost,
    JobEvent,
)
from container_manager.models.clock import Now, time_until
from container_manager.models.lease import HeldLease

#: What an attempt left on the job's own row goes when the next one begins; its own row keeps it.
_BLANK_RECORD: dict[str, Any] = {
    "started_at": None,
    "stdout_log": "",
    "stderr_log": "",
    "docker_log": "",
    "max_memory_usage": None,
    "cpu_usage_percent": None,
}

_OfAttempt = TypeVar("_OfAttempt", ExecutionMetadata, JobEvent)


def claim(
    lease: HeldLease,
    host: ExecutorHost,
    *,
    limit: int,
    worker: str,
    only: Collection[Any] | None = None,
    from_hosts: Collection[int] = (),
) -> list[tuple[ContainerJob, ExecutionMetadata]]:
    """Take up to `limit` waiting jobs for a host: by priority, then age. The intent is stored.

    `from_hosts`: other hosts' jobs that were placed there by us and may run here instead. `only`: job
    ids to choose from. A job of the host's own is taken even where it asks for more CPUs than there are:
    somebody has to refuse it. Raises LeaseLost.
    """
    place = Q(docker_host=host)
    if from_hosts:
        movable = Q(docker_host__in=list(from_hosts), host_pinned=False)
        if host.cpus:
            movable &= Q(cpu_limit__lte=host.cpus)
        place |= movable
    with transaction.atomic(using=alias()):
        EngineLease.fence(lease)
        waiting: QuerySet[ContainerJob] = all_jobs().filter(
            place, status=Status.PENDING, not_before__isnull=True
        )
        if only is not None:
            waiting = waiting.filter(pk__in=list(only))
        jobs = _lock_best(waiting, limit)
        if not jobs:
            return []
        now = timezone.now()
        all_jobs().filter(pk__in=[job.pk for job in jobs], status=Status.PENDING).update(
            status=Status.LAUNCHING,
            docker_host=host,
            attempt=F("attempt") + 1,
            lease_token=lease.token,
            launched_at=now,
            **_BLANK_RECORD,
        )
        executions, events = [], []
        for job in jobs:
            job.status, job.docker_host, job.launched_at = Status.LAUNCHING.value, host, now
            job.attempt, job.lease_token = job.attempt + 1, lease.token
            for name, value in _BLANK_RECORD.items():
                setattr(job, name, value)
            job.mark_stored()
            executions.append(
                ExecutionMetadata(
                    job=job,
                    attempt=job.attempt,
                    docker_host=host,
                    engine_id=lease.engine_id,
                    worker=worker,
                    container_name=job.container_name,
                )
            )
            events.append(
                JobEvent(
                    job=job,
                    attempt=job.attempt,
                    transition=Transition.CLAIM,
                    from_status=Status.PENDING,
                    to_status=Status.LAUNCHING,
                    actor=worker,
                )
            )
        _insert_for_attempts(executions)
        _insert_for_attempts(events, transition=Transition.CLAIM)
        for job, event in zip(jobs, events, strict=True):
            announce(job, event, ("status", "docker_host", "attempt", "launched_at"))
    return list(zip(jobs, executions, strict=True))


def admit_due() -> int:
    """Let jobs be claimed again whose wait for another attempt is over; returns how many."""
    waiting: QuerySet[ContainerJob] = all_jobs().filter(status=Status.PENDING)
    due = waiting.filter(not_before__lte=Now()).update(not_before=None)
    if due:
        wake()
    return due


def expire_waiting(*, actor: str, limit: int = 100) -> int:
    """End waiting jobs whose total deadline has passed: pending -> timeout; returns how many."""
    late: QuerySet[ContainerJob] = all_jobs().filter(status=Status.PENDING, deadline_at__lte=Now())
    ended = 0
    for job in late.defer("stdout_log", "stderr_log").order_by("deadline_at")[:limit]:
        outcome = deadline_exceeded()
        with transaction.atomic(using=alias()):
            moved = move(
                job,
                Transition.EXPIRE,
                outcome.status,
                {
                    "completed_at": timezone.now(),
                    "exit_reason": outcome.reason.value,
                    "exit_message": outcome.message,
                    "not_before": None,
                },
                actor=actor,
                reason=outcome.reason,
                message=outcome.message,
            )
            ended += moved is not None
    return ended


def deadline_left(job: ContainerJob) -> float | None:
    """Seconds until the job's total deadline, by the database's clock; None where it has none."""
    if job.deadline_at is None:
        return None
    row = all_jobs().filter(pk=job.pk).annotate(left=time_until("deadline_at"))
    left = row.values_list("left", flat=True).first()
    return None if left is None else float(left.total_seconds())


def _lock_best(waiting: QuerySet[ContainerJob], limit: int) -> list[ContainerJob]:
    """Lock the first `limit` jobs by priority, then age, that nobody else has locked; they are in order.

    Chosen without a lock and then locked by their keys and nothing else. MySQL and MariaDB lock every row
    that a query reads: with a condition beside the key they may read by another index, and to sort they read
    all that wait. Rivals would find nothing left, or worse jobs than there are.
    """
    features = connections[alias()].features
    locking: QuerySet[ContainerJob] = all_jobs().defer("stdout_log", "stderr_log")
    if features.has_select_for_update:
        locking = locking.select_for_update(skip_locked=features.has_select_for_update_skip_locked)
    best = waiting.order_by("-priority", "created_at", "pk")
    taken: list[ContainerJob] = []
    tried: list[Any] = []
    while wanted := limit - len(taken):
        chosen = list(best.exclude(pk__in=tried)[:wanted].values_list("pk", "docker_host_id", "host_pinned"))
        tried += [key for key, *_ in chosen]
        locked = locking.order_by().in_bulk([key for key, *_ in chosen])
        for key, *place in chosen:
            job = locked.get(key)
            # Between the look and the lock somebody may have claimed, ended, delayed or moved it.
            if job is None or job.status != Status.PENDING or job.not_before is not None:
                continue
            if [job.docker_host_id, job.host_pinned] == place:
                taken.append(job)
        if len(chosen) < wanted:
            break
    return taken


def _insert_for_attempts(rows: Sequence[_OfAttempt], **further: str) -> None:
    """Store rows in one go, of which an attempt has one; with `further`, one of that kind.

    MySQL does not tell the keys of rows that were inserted together: they are read back by the attempt.
    """
    table: QuerySet[_OfAttempt] = QuerySet(type(rows[0]))
    table.bulk_create(rows)
    if not connections[alias()].features.can_return_rows_from_bulk_insert:
        stored = table.filter(job__in=[row.job_id for row in rows], **further)
        keys = {(job, attempt): key for job, attempt, key in stored.values_list("job_id", "attempt", "pk")}
        for row in rows:
            row.pk = keys[row.job_id, row.attempt]
