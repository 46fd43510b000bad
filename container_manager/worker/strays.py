"""Containers of our installation that no run of a worker knows, held against the database."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.core.exceptions import ValidationError
from django.utils import timezone

from container_manager.conf import Settings
from container_manager.core.observation import ALIVE, OwnedContainer
from container_manager.core.reconcile import Found, JobRecord, Judgement, Verdict, judge
from container_manager.core.spec import attempt_of, container_name
from container_manager.core.states import Status
from container_manager.executors.base import Executor
from container_manager.models import (
    ContainerJob,
    EngineLease,
    ExecutionMetadata,
    ExecutorHost,
    Installation,
)
from container_manager.models.brief import temporary_lease

logger = logging.getLogger("container_manager.worker")


class NotThisDatabase(Exception):
    """The database is not the one that the worker began with: what it does not know proves nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """One container, whose it says it is, and what becomes of it."""

    container: OwnedContainer
    job_id: str
    attempt: int
    judgement: Judgement
    is_known: bool  # the database has its job

    @property
    def is_alive(self) -> bool:
        """Whether its program runs."""
        return self.container.state in ALIVE

    @property
    def is_useless(self) -> bool:
        """Whether a pass removes it."""
        return self.judgement.verdict is Verdict.REMOVE


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
    labelled = [(container, *attempt_of(container.labels)) for container in containers]
    records = _records({job_id for _, job_id, _ in labelled}, engine_now)
    recorded_ids = _recorded_ids([container.container_id for container in containers])
    retention = 0.0 if settings.IMMEDIATE_CLEANUP else settings.CONTAINER_RETENTION_SECONDS
    strays = []
    for container, job_id, attempt in labelled:
        age = None
        if container.created_at is not None:
            age = (engine_now - container.created_at).total_seconds()
        found = Found(
            is_ours=_is_id(job_id)
            and (container.name == container_name(job_id, attempt) or container.container_id in recorded_ids),
            attempt=attempt,
            is_alive=container.state in ALIVE,
            age_seconds=age,
        )
        judgement = judge(
            found,
            records.get(job_id),
            retention_seconds=retention,
            grace_seconds=settings.STRAY_GRACE_SECONDS,
        )
        strays.append(
            Stray(
                container=container,
                job_id=job_id,
                attempt=attempt,
                judgement=judgement,
                is_known=job_id in records,
            )
        )
    return strays


def _records(job_ids: Collection[str], engine_now: datetime) -> dict[str, JobRecord]:
    """What is known of these jobs. Their ends are by the engines' clocks, and so must the present be."""
    rows = ContainerJob.objects.filter(pk__in=[job_id for job_id in job_ids if _is_id(job_id)])
    return {
        str(pk): JobRecord(
            status=Status(status),
            attempt=attempt,
            finished_seconds_ago=None if ended is None else (engine_now - ended).total_seconds(),
        )
        for pk, status, attempt, ended in rows.values_list("pk", "status", "attempt", "completed_at")
    }


def _recorded_ids(container_ids: Collection[str]) -> set[str]:
    known = ExecutionMetadata.objects.filter(container_id__in=container_ids)
    return set(known.values_list("container_id", flat=True))


def _is_id(text: str) -> bool:
    try:
        ContainerJob._meta.pk.to_python(text)
    except ValidationError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What is on one engine and what the database says about it."""

    holder: str  # the worker that serves the engine; empty: nobody
    engine_id: str
    containers: list[Stray]  # all of our installation's, not only strays
    missing: list[ContainerJob]  # active jobs of the host whose container is not there

    @property
    def useless(self) -> list[Stray]:
        """What a pass would remove."""
        return [stray for stray in self.containers if stray.is_useless]


def survey(host: ExecutorHost, executor: Executor, settings: Settings) -> Survey:
    """Hold all of the installation's containers on a host against the database; nothing is changed.

    Raises HostFault, HostMismatch.
    """
    facts = executor.health()
    host.record_up(facts)
    installation = Installation.current()
    # Jobs first: a container that ends and goes between the two looks is no missing one.
    active = list(ContainerJob.objects.active().filter(docker_host=host).without_logs())
    listed = executor.list_owned(installation)
    names = {container.name for container in listed}
    return Survey(
        holder=EngineLease.holder(facts.engine_id),
        engine_id=facts.engine_id,
        containers=judge_strays(
            listed,
            installation=installation,
            engine_now=timezone.now() + facts.clock_offset,
            settings=settings,
        ),
        missing=[job for job in active if job.container_name not in names],
    )


def remove_useless(found: Survey, executor: Executor, settings: Settings) -> list[Stray] | None:
    """Remove what a survey found useless, at most RECONCILE_LIMIT; None while a worker serves the engine.

    That worker does the same all the time. Raises HostFault.
    """
    with temporary_lease(found.engine_id, "reconcile", settings.LEASE_SECONDS) as lease:
        if lease is None:
            return None
        removed = found.useless[: settings.RECONCILE_LIMIT]
        for stray in removed:
            EngineLease.renew(lease, settings.LEASE_SECONDS)
            executor.remove(stray.container.container_id)
        return removed
