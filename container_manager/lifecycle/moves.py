"""One move of one job: a conditional UPDATE, its event, and what receivers are told after the commit."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any

from django.db import connections, router, transaction
from django.db.models import F, QuerySet
from django.db.models.signals import post_save

from container_manager import signals
from container_manager.core.errors import IllegalTransition
from container_manager.core.states import FINAL, Status, Transition, is_legal
from container_manager.models import ContainerJob, JobEvent
from container_manager.models.lease import HeldLease

logger = logging.getLogger("container_manager.jobs")

WAKE_CHANNEL = "container_manager_wake"


def move(
    job: ContainerJob,
    transition: Transition,
    target: Status,
    fields: dict[str, Any],
    *,
    lease: HeldLease | None = None,
    actor: str,
    reason: str = "",
    message: str = "",
) -> JobEvent | None:
    """Give a job that is in `job.status` another one and, with it, `fields`; None: it was not there any more.

    With a `lease`, a worker's, the row must bear its token, and the attempt that the worker knows. Raises
    IllegalTransition.
    """
    source = Status(job.status)
    if not is_legal(transition, source, target):
        raise IllegalTransition(f"status: {transition} does not lead from {source!r} to {target!r}.")
    row = all_jobs().filter(pk=job.pk, status=source)
    if lease is not None:
        row = row.filter(attempt=job.attempt, lease_token=lease.token)
    if not row.update(status=target, **fields):
        return None
    job.status = target.value
    computed = [name for name, value in fields.items() if hasattr(value, "resolve_expression")]
    for name, value in fields.items():
        if name not in computed:
            setattr(job, name, value)
    if computed:
        job.refresh_from_db(fields=computed)
    job.mark_stored(["status", *fields])
    event = add_event(job, transition, source=source, actor=actor, reason=reason, message=message)
    announce(job, event, ("status", *fields))
    return event


def lock(job: ContainerJob) -> None:
    """Hold the row until the commit. A write, as SQLite knows no other lock and refuses one after a read."""
    all_jobs().filter(pk=job.pk).update(attempt=F("attempt"))


def add_event(
    job: ContainerJob, transition: str, *, source: str, actor: str, reason: str = "", message: str = ""
) -> JobEvent:
    """Append to the job's history; its status is the one that it has now."""
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


def announce(job: ContainerJob, event: JobEvent, fields: Iterable[str]) -> None:
    """Tell receivers after the commit. A receiver that raises is logged; the record stands."""
    names = frozenset(fields)
    snapshot = copy.copy(job)  # two moves in one transaction show their own status to each receiver

    def send() -> None:
        outcomes = post_save.send_robust(
            sender=ContainerJob,
            instance=snapshot,
            created=False,
            raw=False,
            using=alias(),
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

    transaction.on_commit(send, using=alias())


def wake() -> None:
    """Tell idle workers that there is something to do, with the commit of the current transaction.

    PostgreSQL delivers it; elsewhere workers see the change themselves (SQLite's data version) or poll.
    """
    connection = connections[alias()]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, '')", [WAKE_CHANNEL])


def all_jobs() -> QuerySet[ContainerJob]:
    """All jobs, where they are written: a replica may be behind what this transaction decides by."""
    return QuerySet(ContainerJob).using(alias())


def alias() -> str:
    """The database that jobs are written to."""
    return router.db_for_write(ContainerJob)
