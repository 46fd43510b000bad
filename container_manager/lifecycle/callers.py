"""What callers do with jobs: create them, change what waits, ask for an end."""

from __future__ import annotations

from collections.abc import Callable, Collection

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from container_manager.core.errors import IllegalTransition
from container_manager.core.outcome import ExitReason
from container_manager.core.states import ACTIVE, MOVES, Status, Transition
from container_manager.lifecycle.moves import add_event, alias, all_jobs, lock, move, wake
from container_manager.models import ContainerJob, JobEvent
from container_manager.models.admission import Desk
from container_manager.models.clock import Now
from container_manager.models.job import NOTE_FIELDS, SPEC_FIELDS

_ACTIVE = [status.value for status in ACTIVE]


def create(job: ContainerJob, insert: Callable[[], None]) -> None:
    """Admit one new job and store it with its first event. Raises InvalidJob; nothing is stored then."""
    _check_new(job)
    Desk().admit(job)
    with transaction.atomic(using=alias()):
        insert()
        add_event(job, "create", source="", actor=_person(job))
        wake()


def create_many(
    jobs: list[ContainerJob], insert: Callable[[list[ContainerJob]], list[ContainerJob]]
) -> list[ContainerJob]:
    """Store admitted jobs and their first events in one transaction."""
    for job in jobs:
        _check_new(job)
    with transaction.atomic(using=alias()):
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
    with transaction.atomic(using=alias()):
        changed = [name for name in job.changed_spec_fields() if wanted is None or name in wanted]
        columns = set(NOTE_FIELDS)
        if changed:
            # A claim between our read and this write must win: lock the row, or find it claimed.
            still_pending = all_jobs().filter(pk=job.pk, status=Status.PENDING).update(attempt=F("attempt"))
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
    with transaction.atomic(using=alias()):
        if _cancel_now(job, [Status.PENDING], actor=actor):
            return True
        asked = (
            all_jobs()
            .filter(pk=job.pk, status__in=_ACTIVE, cancel_requested_at__isnull=True)
            .update(cancel_requested_at=Now(), cancel_requested_by=actor)  # held against the end's time later
        )
        if asked:
            job.refresh_from_db(fields=["status", "cancel_requested_at", "cancel_requested_by"])
            add_event(job, "cancel_requested", source=job.status, actor=actor)
            wake()
            return True
        return all_jobs().filter(pk=job.pk, status__in=_ACTIVE).exists()


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
    stored = all_jobs().values_list("status", flat=True).get(pk=job.pk)
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


def _cancel_now(job: ContainerJob, sources: Collection[Status], *, actor: str) -> bool:
    """End a job in one of these states at once; False when it is in another one."""
    lock(job)
    found = all_jobs().filter(pk=job.pk, status__in=[source.value for source in sources])
    status = found.values_list("status", flat=True).first()
    if status is None:
        return False
    job.status = status
    now = timezone.now()
    moved = move(
        job,
        Transition.CANCEL,
        Status.CANCELLED,
        {
            "completed_at": now,
            "exit_reason": ExitReason.CANCELLED.value,
            "exit_message": "The job was cancelled.",
            "cancel_requested_at": now,
            "cancel_requested_by": actor,
        },
        actor=actor,
        reason=ExitReason.CANCELLED,
    )
    if moved is None:
        return False  # the look was at an old version of the row, as REPEATABLE READ has it on MySQL
    wake()
    return True


def _attribute(name: str) -> str:
    field = ContainerJob._meta.get_field(name)
    return str(getattr(field, "attname", name))


def _person(job: ContainerJob) -> str:
    return f"user:{job.created_by_id}" if job.created_by_id else ""
