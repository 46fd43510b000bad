"""The state machine on the database: the only module that writes `ContainerJob.status`.

Each function is one short transaction: the fence (for a worker), a conditional UPDATE that names the
expected status and, for a worker, its lease token, the attempt's row, and an event. An UPDATE that
matches no row means that somebody else was faster; the function then writes nothing and says so.
Signals go out after the commit.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from django.db import connections, router, transaction
from django.db.models import F, Q, QuerySet, TextField, Value
from django.db.models.functions import Concat
from django.db.models.signals import post_save
from django.utils import timezone

from container_manager import signals
from container_manager.core.errors import ExecutorError, IllegalTransition, InvalidJob, JobFault
from container_manager.core.outcome import ExitReason, Outcome, deadline_exceeded, rejected
from container_manager.core.retry import Again
from container_manager.core.states import ACTIVE, FINAL, MOVES, Status, Transition, is_legal
from container_manager.models import (
    ContainerJob,
    EngineLease,
    ExecutionMetadata,
    ExecutorHost,
    JobEvent,
)
from container_manager.models.admission import Desk
from container_manager.models.clock import Now, from_now, time_until
from container_manager.models.job import NOTE_FIELDS, SPEC_FIELDS
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

logger = logging.getLogger("container_manager.jobs")

WAKE_CHANNEL = "container_manager_wake"

_ACTIVE = [status.value for status in ACTIVE]
#: What an attempt left on the job's own row goes when the next one begins; its own row keeps it.
_BLANK_RECORD: dict[str, Any] = {
    "started_at": None,
    "stdout_log": "",
    "stderr_log": "",
    "docker_log": "",
    "max_memory_usage": None,
    "cpu_usage_percent": None,
}
_STARTED_FIELDS = ["container_id", "started_at", "spec_hash", "image_id", "image_digest", "docker_log"]

_OfAttempt = TypeVar("_OfAttempt", ExecutionMetadata, JobEvent)


# ---------------------------------------------------------------------------------------- callers


def create(job: ContainerJob, insert: Callable[[], None]) -> None:
    """Admit one new job and store it with its first event. Raises InvalidJob; nothing is stored then."""
    _check_new(job)
    Desk().admit(job)
    with transaction.atomic(using=_alias()):
        insert()
        _event(job, "create", source="", actor=_person(job))
        wake()


def create_many(
    jobs: list[ContainerJob], insert: Callable[[list[ContainerJob]], list[ContainerJob]]
) -> list[ContainerJob]:
    """Store admitted jobs and their first events in one transaction."""
    for job in jobs:
        _check_new(job)
    with transaction.atomic(using=_alias()):
        stored = insert(jobs)
        JobEvent.objects.bulk_create(
            [
                JobEvent(job=job, transition="create", to_status=job.status, actor=_person(job))
                for job in stored
            ]
        )
        wake()
    for job in stored:
        job.mark_stored()
    return stored


def change(job: ContainerJob, update_fields: Collection[str] | None, save: Callable[..., None]) -> None:
    """Store what a caller changed on an existing job. Raises IllegalTransition, InvalidJob."""
    wanted = None if update_fields is None else {_attribute(name) for name in update_fields}
    if wanted is not None:
        unknown = {
            name
            for name in wanted - {*NOTE_FIELDS, *SPEC_FIELDS, "status"}
            if not job.is_time_as_stored(name)
        }
        if unknown:
            raise IllegalTransition(
                f"{', '.join(sorted(unknown))}: written by the worker alone. "
                f"A caller may save {', '.join(sorted((*NOTE_FIELDS, 'status')))}."
            )
    with transaction.atomic(using=_alias()):
        changed = [name for name in job.changed_spec_fields() if wanted is None or name in wanted]
        columns = set(NOTE_FIELDS)
        if changed:
            # A claim between our read and this write must win: lock the row, or find it claimed.
            still_pending = _jobs().filter(pk=job.pk, status=Status.PENDING).update(attempt=F("attempt"))
            if not still_pending:
                raise IllegalTransition(
                    f"{', '.join(changed)}: fixed once the job was claimed. Create a new job instead."
                )
            if "docker_host_id" in changed:
                job.host_pinned = True  # the caller's choice, unless it is to have none
            if "command" in changed and "command_form" not in changed:
                job.command_form = ""  # by looking at the new one, as at its creation
            Desk().admit(job)
            columns.update(SPEC_FIELDS)
        if wanted is not None:
            columns &= wanted | ({"environment", "host_pinned", "deadline_at"} if changed else set())
        loaded = columns & job.__dict__.keys()
        if loaded:
            save(update_fields=[name.removesuffix("_id") for name in sorted(loaded)])
            job.mark_stored(loaded)
        if "status" in job.__dict__ and (wanted is None or "status" in wanted):
            _change_status(job)


def request_cancel(job: ContainerJob, *, actor: str = "") -> bool:
    """End a pending job, or ask the worker to end an active one; False when it has ended already."""
    with transaction.atomic(using=_alias()):
        if _cancel_now(job, [Status.PENDING], actor=actor):
            return True
        now = timezone.now()
        asked = (
            _jobs()
            .filter(pk=job.pk, status__in=_ACTIVE, cancel_requested_at__isnull=True)
            .update(cancel_requested_at=now, cancel_requested_by=actor)
        )
        if asked:
            job.cancel_requested_at, job.cancel_requested_by = now, actor
            job.status = _jobs().values_list("status", flat=True).get(pk=job.pk)
            job.mark_stored(["status"])
            _event(job, "cancel_requested", source=job.status, actor=actor)
            wake()
            return True
        return _jobs().filter(pk=job.pk, status__in=_ACTIVE).exists()


def _check_new(job: ContainerJob) -> None:
    if job.status != Status.PENDING:
        raise IllegalTransition(
            f"status: a new job starts as 'pending', not {job.status!r}. Leave status out."
        )


def _change_status(job: ContainerJob) -> None:
    """Carry out `job.status = ...; job.save()`; a status that the caller did not touch is not a wish."""
    target = job.status
    if target == job.stored_status:
        return
    stored = _jobs().values_list("status", flat=True).get(pk=job.pk)
    if target == stored:
        job.mark_stored(["status"])
        return
    if target != Status.CANCELLED:
        legal = ", ".join(
            sorted({str(t) for move in MOVES.values() if stored in move.sources for t in move.targets})
        )
        raise IllegalTransition(
            f"status: {stored!r} cannot become {target!r} by save(). A caller may only set 'cancelled'; "
            f"the worker moves a {stored!r} job to {legal or 'nothing, it has ended'}."
        )
    if not _cancel_now(job, [Status.PENDING, *ACTIVE], actor="code"):
        raise IllegalTransition(
            f"status: the job is {stored!r} and has ended; it cannot be cancelled any more."
        )


def _cancel_now(job: ContainerJob, sources: Sequence[str], *, actor: str) -> bool:
    now = timezone.now()
    # Locked, so that the event names the status that the UPDATE found.
    _lock(job)
    before = _jobs().filter(pk=job.pk).values_list("status", flat=True).first() or ""
    rows = (
        _jobs()
        .filter(pk=job.pk, status__in=[str(source) for source in sources])
        .update(
            status=Status.CANCELLED,
            completed_at=now,
            exit_reason=ExitReason.CANCELLED,
            exit_message="The job was cancelled.",
            cancel_requested_at=now,
            cancel_requested_by=actor,
        )
    )
    if not rows:
        return False
    job.status, job.completed_at = Status.CANCELLED.value, now
    job.exit_reason, job.exit_message = ExitReason.CANCELLED.value, "The job was cancelled."
    job.cancel_requested_at, job.cancel_requested_by = now, actor
    job.mark_stored(["status"])
    event = _event(job, Transition.CANCEL, source=before, actor=actor, reason=ExitReason.CANCELLED)
    _announce(job, event, ("status", "completed_at", "exit_reason", "exit_message", "cancel_requested_at"))
    wake()
    return True


# ----------------------------------------------------------------------------------------- worker


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
    with transaction.atomic(using=_alias()):
        EngineLease.fence(lease)
        waiting: QuerySet[ContainerJob] = _jobs().filter(
            place, status=Status.PENDING, not_before__isnull=True
        )
        if only is not None:
            waiting = waiting.filter(pk__in=list(only))
        jobs = _lock_best(waiting, limit)
        if not jobs:
            return []
        now = timezone.now()
        _jobs().filter(pk__in=[job.pk for job in jobs], status=Status.PENDING).update(
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
            _blank(job)
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
            _announce(job, event, ("status", "docker_host", "attempt", "launched_at"))
    return list(zip(jobs, executions, strict=True))


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
    with transaction.atomic(using=_alias()):
        EngineLease.fence(lease)
        fields = {"started_at": at, "docker_log": docker_log}
        event = _move(lease, job, Transition.START, Status.RUNNING, fields, actor=worker)
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
    target = outcome.status
    with transaction.atomic(using=_alias()):
        EngineLease.fence(lease)
        store_chunks(execution, chunks)
        execution.docker_log = docker_log
        store_attempt(execution, outcome, started_at, finished_at, now, usage, logs)
        record = job_record(execution, docker_log, logs)
        result = {
            "completed_at": finished_at or now,
            "exit_code": outcome.exit_code,
            "exit_reason": outcome.reason.value,
            "exit_message": outcome.message,
            **record,
        }
        if started_at is not None:
            result["started_at"] = started_at
        ours = job.status in ACTIVE
        if job.status == Status.LAUNCHING and started_at is not None and target is not Status.CANCELLED:
            seen = {"started_at": started_at}
            ours = _move(lease, job, Transition.START, Status.RUNNING, seen, actor=worker) is not None
        event = None
        if ours and again is not None and not _cancel_is_wanted(job):
            event = _try_again(lease, job, outcome, again, record, actor=worker)
        elif ours:
            transition = _final_transition(Status(job.status), target)
            event = _move(
                lease,
                job,
                transition,
                target,
                result,
                actor=worker,
                reason=outcome.reason,
                message=outcome.message,
            )
        if event is None:
            _store_late_record(lease, job, outcome, record, started_at)
            return False
        return True


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
    return _move(
        lease,
        job,
        Transition.RETRY,
        Status.PENDING,
        fields,
        actor=actor,
        reason=outcome.reason,
        message=f"Attempt {job.attempt} ended{count}; the next one follows in {again.wait_seconds:.3g} s. "
        f"{outcome.message}",
    )


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
    with transaction.atomic(using=_alias()):
        EngineLease.fence(lease)
        execution.recorded_at, execution.exit_message = timezone.now(), message
        execution.docker_log = docker_log
        execution.save(update_fields=["recorded_at", "exit_message", "docker_log"])
        if job.status != Status.LAUNCHING:
            return False  # given back already, and the answer to that commit was lost
        if _cancel_is_wanted(job):
            moved = _move(
                lease,
                job,
                Transition.CANCEL,
                Status.CANCELLED,
                {
                    "completed_at": execution.recorded_at,
                    "exit_reason": ExitReason.CANCELLED.value,
                    "exit_message": "The job was cancelled before it was started.",
                    "docker_log": docker_log,
                },
                actor=worker,
                reason=ExitReason.CANCELLED,
                message=message,
            )
        else:
            not_before = from_now(wait_seconds) if wait_seconds else None
            fields = {"lease_token": None, "docker_log": docker_log, "not_before": not_before}
            moved = _move(
                lease, job, Transition.RELEASE, Status.PENDING, fields, actor=worker, message=message
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
    nothing = LogState(
        chunk_count=0, cursor=None, stdout_bytes=0, stderr_bytes=0, complete=False, truncated=False
    )
    finish(
        lease,
        job,
        execution,
        rejected(reason, message),
        started_at=None,
        finished_at=None,
        worker=worker,
        usage=Usage(),
        logs=nothing,
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
    with transaction.atomic(using=_alias()):
        EngineLease.fence(lease)
        active: QuerySet[ContainerJob] = _jobs().filter(docker_host=host, status__in=_ACTIVE)
        known = set(held)
        missing = [key for key in active.values_list("pk", "attempt") if key not in known]
        pairs = []
        wanted = active.filter(pk__in=[pk for pk, _ in missing]).select_related("docker_host")
        for job in wanted.defer("stdout_log", "stderr_log").order_by("created_at"):
            rows = active.filter(pk=job.pk, status=job.status, attempt=job.attempt)
            if not rows.update(lease_token=lease.token):
                continue
            job.lease_token = lease.token
            execution = ExecutionMetadata.objects.using(_alias()).get(job=job, attempt=job.attempt)
            execution.worker = worker
            execution.save(update_fields=["worker"])
            _event(job, "adopt", source=job.status, actor=worker)
            pairs.append((job, execution))
        return pairs


def note(execution: ExecutionMetadata, what: str, message: str, worker: str) -> None:
    """Put into the record what was found of an attempt that is over; no status changes."""
    line = f"{timezone.now():%Y-%m-%dT%H:%M:%S}Z {message}\n"
    with transaction.atomic(using=_alias()):
        job = execution.job
        execution.docker_log += line
        execution.save(update_fields=["docker_log"])
        row: QuerySet[ContainerJob] = _jobs().filter(pk=job.pk, attempt=execution.attempt)
        row.update(docker_log=Concat("docker_log", Value(line), output_field=TextField()))
        _event(job, what, source=job.status, actor=worker, message=message)


def admit_due() -> int:
    """Let jobs be claimed again whose wait for another attempt is over; returns how many."""
    waiting: QuerySet[ContainerJob] = _jobs().filter(status=Status.PENDING)
    due = waiting.filter(not_before__lte=Now()).update(not_before=None)
    if due:
        wake()
    return due


def expire_waiting(*, actor: str, limit: int = 100) -> int:
    """End waiting jobs whose total deadline has passed: pending -> timeout; returns how many."""
    late: QuerySet[ContainerJob] = _jobs().filter(status=Status.PENDING, deadline_at__lte=Now())
    ended = 0
    for job in late.defer("stdout_log", "stderr_log").order_by("deadline_at")[:limit]:
        outcome = deadline_exceeded()
        result = {
            "status": outcome.status.value,
            "completed_at": timezone.now(),
            "exit_reason": outcome.reason.value,
            "exit_message": outcome.message,
            "not_before": None,
        }
        with transaction.atomic(using=_alias()):
            if not _jobs().filter(pk=job.pk, status=Status.PENDING).update(**result):
                continue
            for name, value in result.items():
                setattr(job, name, value)
            job.mark_stored()
            event = _event(
                job,
                Transition.EXPIRE,
                source=Status.PENDING,
                actor=actor,
                reason=outcome.reason,
                message=outcome.message,
            )
            _announce(job, event, result)
            ended += 1
    return ended


def deadline_left(job: ContainerJob) -> float | None:
    """Seconds until the job's total deadline, by the database's clock; None where it has none."""
    if job.deadline_at is None:
        return None
    row = _jobs().filter(pk=job.pk).annotate(left=time_until("deadline_at"))
    left = row.values_list("left", flat=True).first()
    return None if left is None else float(left.total_seconds())


def store_logs(
    lease: HeldLease,
    job: ContainerJob,
    execution: ExecutionMetadata,
    chunks: Sequence[Chunk],
    logs: LogState,
) -> None:
    """Append chunks and move the cursor with them. Raises LeaseLost."""
    with transaction.atomic(using=_alias()):
        EngineLease.fence(lease)
        store_chunks(execution, chunks)
        apply_logs(execution, logs)
        execution.save(update_fields=LOG_FIELDS)
        columns = log_columns(logs)
        if columns:
            _jobs().filter(pk=job.pk, attempt=execution.attempt, lease_token=lease.token).update(**columns)


def wake() -> None:
    """Tell idle workers that there is something to do, with the commit of the current transaction.

    PostgreSQL delivers it; elsewhere workers see the change themselves (SQLite's data version) or poll.
    """
    connection = connections[_alias()]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, '')", [WAKE_CHANNEL])


# ---------------------------------------------------------------------------------------- insides


def _move(
    lease: HeldLease,
    job: ContainerJob,
    transition: Transition,
    target: Status,
    fields: dict[str, Any],
    *,
    actor: str,
    reason: str = "",
    message: str = "",
) -> JobEvent | None:
    source = Status(job.status)
    if not is_legal(transition, source, target):
        raise IllegalTransition(f"status: {transition} does not lead from {source!r} to {target!r}.")
    rows = (
        _jobs()
        .filter(pk=job.pk, status=source, attempt=job.attempt, lease_token=lease.token)
        .update(status=target, **fields)
    )
    if not rows:
        return None
    job.status = target.value
    computed = [name for name, value in fields.items() if hasattr(value, "resolve_expression")]
    for name, value in fields.items():
        if name not in computed:
            setattr(job, name, value)
    if computed:
        job.refresh_from_db(fields=computed)
    job.mark_stored()
    event = _event(job, transition, source=source, actor=actor, reason=reason, message=message)
    _announce(job, event, ("status", *fields))
    return event


def _cancel_is_wanted(job: ContainerJob) -> bool:
    """Locked: a wish that comes between this look and the move would get lost in the queue."""
    _lock(job)
    row: QuerySet[ContainerJob] = _jobs().filter(pk=job.pk)
    return row.filter(cancel_requested_at__isnull=False).exists()


def _lock(job: ContainerJob) -> None:
    """Hold the row until the commit. A write, as SQLite knows no other lock and refuses one after a read."""
    _jobs().filter(pk=job.pk).update(attempt=F("attempt"))


def _blank(job: ContainerJob) -> None:
    for name, value in _BLANK_RECORD.items():
        setattr(job, name, value)


def _final_transition(source: Status, target: Status) -> Transition:
    if target is Status.CANCELLED:
        return Transition.CANCEL
    if source is Status.RUNNING:
        return Transition.FINISH
    return Transition.EXPIRE if target is Status.TIMEOUT else Transition.REJECT


def _lock_best(waiting: QuerySet[ContainerJob], limit: int) -> list[ContainerJob]:
    """Lock the first `limit` jobs by priority, then age, that nobody else has locked; they are in order.

    Chosen without a lock and then locked by their keys and nothing else. MySQL and MariaDB lock every row
    that a query reads: with a condition beside the key they may read by another index, and to sort they read
    all that wait. Rivals would find nothing left, or worse jobs than there are.
    """
    features = connections[_alias()].features
    locking: QuerySet[ContainerJob] = _jobs().defer("stdout_log", "stderr_log")
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
    if not connections[_alias()].features.can_return_rows_from_bulk_insert:
        stored = table.filter(job__in=[row.job_id for row in rows], **further)
        keys = {(job, attempt): key for job, attempt, key in stored.values_list("job_id", "attempt", "pk")}
        for row in rows:
            row.pk = keys[row.job_id, row.attempt]


def _store_late_record(
    lease: HeldLease, job: ContainerJob, outcome: Outcome, record: dict[str, Any], started_at: datetime | None
) -> None:
    """The job was ended by its owner before we could say how its container ended: keep the facts."""
    fields = {**record, "exit_code": outcome.exit_code}
    if started_at is not None:
        fields["started_at"] = started_at
    _jobs().filter(pk=job.pk, attempt=job.attempt, lease_token=lease.token, status=Status.CANCELLED).update(
        **fields
    )


def _event(
    job: ContainerJob, transition: str, *, source: str, actor: str, reason: str = "", message: str = ""
) -> JobEvent:
    return JobEvent.objects.create(
        job=job,
        attempt=job.attempt,
        transition=transition,
        from_status=source,
        to_status=job.status,
        actor=actor,
        reason=reason,
        message=message,
    )


def _announce(job: ContainerJob, event: JobEvent, fields: Iterable[str]) -> None:
    """Tell receivers after the commit. A receiver that raises is logged; the record stands."""
    names = frozenset(fields)
    snapshot = copy.copy(job)  # two moves in one transaction show their own status to each receiver

    def send() -> None:
        outcomes = post_save.send_robust(
            sender=ContainerJob,
            instance=snapshot,
            created=False,
            raw=False,
            using=_alias(),
            update_fields=names,
        )
        outcomes += signals.job_status_changed.send_robust(sender=ContainerJob, job=snapshot, event=event)
        if event.to_status in FINAL:
            outcomes += signals.job_finished.send_robust(sender=ContainerJob, job=snapshot, event=event)
        for receiver, answer in outcomes:
            if isinstance(answer, Exception):
                logger.error(
                    "A signal receiver failed for job %s: %r",
                    job.pk,
                    receiver,
                    exc_info=answer,
                    extra={"job_id": str(job.pk)},
                )

    transaction.on_commit(send, using=_alias())


def _jobs() -> QuerySet[ContainerJob]:
    """All jobs, where they are written: a replica may be behind what this transaction decides by."""
    return QuerySet(ContainerJob).using(_alias())


def _alias() -> str:
    return router.db_for_write(ContainerJob)


def _attribute(name: str) -> str:
    field = ContainerJob._meta.get_field(name)
    return str(getattr(field, "attname", name))


def _person(job: ContainerJob) -> str:
    return f"user:{job.created_by_id}" if job.created_by_id else ""
