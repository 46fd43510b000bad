"""Containers of our installation that no run of a worker knows, held against the database."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.core.exceptions import ValidationError
from django.utils import timezone

from container_manager.conf import Settings
from container_manager.core.observation import ContainerState, OwnedContainer
from container_manager.core.reconcile import Found, JobRecord, Judgement, judge
from container_manager.core.spec import LABEL_ATTEMPT, LABEL_JOB, container_name
from container_manager.core.states import Status
from container_manager.models import ContainerJob, ExecutionMetadata, Installation

logger = logging.getLogger("container_manager.worker")

_ALIVE = (ContainerState.RUNNING, ContainerState.PAUSED)


class NotThisDatabase(Exception):
    """The database is not the one that the worker began with: what it does not know proves nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """One container, whose it says it is, and what becomes of it."""

    container: OwnedContainer
    job_id: str
    attempt: int
    judgement: Judgement


def judge_strays(
    containers: Sequence[OwnedContainer], *, installation: str, engine_now: datetime, settings: Settings
) -> list[Stray]:
    """Hold containers against the database; the age of each is by the engine's clock.

    Raises NotThisDatabase, and whatever a database raises that cannot be read: nothing is judged then.
    """
    if Installation.current() != installation:
        raise NotThisDatabase(
            f"the database is that of another installation than {installation}, with which this worker began"
        )
    labelled = [(container, *_labels(container)) for container in containers]
    records = _records({job_id for _, job_id, _ in labelled})
    recorded_ids = _recorded_ids([container.container_id for container in containers])
    retention = 0.0 if settings.IMMEDIATE_CLEANUP else settings.CONTAINER_RETENTION_SECONDS
    strays = []
    for container, job_id, attempt in labelled:
        age = None
        if container.created_at is not None:
            age = (engine_now - container.created_at).total_seconds()
        found = Found(
            is_ours=container.name == container_name(job_id, attempt)
            or container.container_id in recorded_ids,
            attempt=attempt,
            is_alive=container.state in _ALIVE,
            age_seconds=age,
        )
        judgement = judge(
            found,
            records.get(job_id),
            retention_seconds=retention,
            grace_seconds=settings.STRAY_GRACE_SECONDS,
        )
        strays.append(Stray(container=container, job_id=job_id, attempt=attempt, judgement=judgement))
    return strays


def _records(job_ids: Collection[str]) -> dict[str, JobRecord]:
    now = timezone.now()
    rows = ContainerJob.objects.filter(pk__in=[job_id for job_id in job_ids if _is_id(job_id)])
    return {
        str(pk): JobRecord(
            status=Status(status),
            attempt=attempt,
            finished_seconds_ago=None if ended is None else (now - ended).total_seconds(),
        )
        for pk, status, attempt, ended in rows.values_list("pk", "status", "attempt", "completed_at")
    }


def _recorded_ids(container_ids: Collection[str]) -> set[str]:
    known = ExecutionMetadata.objects.filter(container_id__in=container_ids)
    return set(known.values_list("container_id", flat=True))


def _labels(container: OwnedContainer) -> tuple[str, int]:
    attempt = container.labels.get(LABEL_ATTEMPT, "")
    return container.labels.get(LABEL_JOB, ""), int(attempt) if attempt.isdigit() else 0


def _is_id(text: str) -> bool:
    try:
        ContainerJob._meta.pk.to_python(text)
    except ValidationError:
        return False
    return True
