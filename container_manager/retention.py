"""What is deleted when its time is over: jobs with all their records, and stored output.

In small transactions, of `batch` rows each: a statement that deletes much holds locks for long, and a limit
on the time of statements would end it, each time anew. One attempt may have thousands of chunks of output.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import router, transaction
from django.db.models import Count, Q, QuerySet
from django.db.models.deletion import Collector

from container_manager.conf import Settings
from container_manager.core.states import FINAL, Status
from container_manager.models import (
    ContainerJob,
    ExecutionMetadata,
    JobEvent,
    LogChunk,
    RegisteredWorker,
)
from container_manager.models.clock import from_now

DAY = 86_400.0
#: Workers that were last heard of this long ago are forgotten.
WORKER_DAYS = 7.0
_GOOD = [Status.COMPLETED.value]
_BAD = sorted(status.value for status in FINAL if status is not Status.COMPLETED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Days from a job's end until it, or its output, is deleted. 0: never."""

    completed_days: float
    failed_days: float  # failed, timeout and cancelled
    log_days: float

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        """The project's own."""
        return cls(
            completed_days=settings.KEEP_COMPLETED_DAYS,
            failed_days=settings.KEEP_FAILED_DAYS,
            log_days=settings.KEEP_LOGS_DAYS,
        )

    @property
    def are_off(self) -> bool:
        """Whether nothing is ever deleted."""
        return not (self.completed_days or self.failed_days or self.log_days)


def jobs_over_time(rules: Rules) -> QuerySet[ContainerJob]:
    """The ended jobs whose rows are to go, oldest first."""
    over = Q(pk__in=[])
    for statuses, days in ((_GOOD, rules.completed_days), (_BAD, rules.failed_days)):
        if days:
            over |= Q(status__in=statuses, completed_at__lt=from_now(-days * DAY))
    found: QuerySet[ContainerJob] = ContainerJob.objects.using(_alias()).filter(over)
    return found.order_by("completed_at")


def logs_over_time(rules: Rules) -> QuerySet[ExecutionMetadata]:
    """The ended attempts whose stored output is to go, but for those that go as a whole with their jobs."""
    if not rules.log_days:
        return ExecutionMetadata.objects.none()
    ended = ExecutionMetadata.objects.using(_alias()).filter(job__status__in=[*_GOOD, *_BAD])
    # Chunks are counted until the last one is gone: a deletion that was cut off is taken up again.
    kept = ended.filter(Q(logs_pruned=False) | Q(log_chunk_count__gt=0))
    over = kept.filter(job__completed_at__lt=from_now(-rules.log_days * DAY))
    return over.exclude(job__in=jobs_over_time(rules).order_by()).order_by("pk")


def prune_jobs(rules: Rules, *, batch: int) -> Iterator[int]:
    """Delete jobs with their attempts, events and output; each step is one transaction.

    Yields how many jobs went in it: 0 where it was only a part of the output of a job that has more rows than
    a batch. The attempts and events of a job go with it, or stay with it where something refuses.
    """
    while ids := list(jobs_over_time(rules).values_list("pk", flat=True)[:batch]):
        fitting = _that_fit(ids, batch)
        if not fitting:
            fitting = ids[:1]
            _see_that_it_may_go(fitting[0])
            attempts = ExecutionMetadata.objects.using(_alias()).filter(job__in=fitting)
            for _ in _prune_output(list(attempts.values_list("pk", flat=True)), fitting, batch):
                yield 0
        with transaction.atomic(using=_alias()):
            # From the leaves to the root: Django would first read what hangs on each row.
            _unread(LogChunk.objects.filter(execution__job__in=fitting)).delete()
            ExecutionMetadata.objects.filter(job__in=fitting).delete()
            JobEvent.objects.filter(job__in=fitting).delete()
            ContainerJob.objects.filter(pk__in=fitting).delete()
        yield len(fitting)


def prune_logs(rules: Rules, *, batch: int) -> Iterator[int]:
    """Delete the output of attempts, the job's own columns included; each step is one transaction.

    Yields how many attempts are done with it. They keep their figures, `stdout_bytes` among them, and say
    from the first step on that their output was deleted.
    """
    while rows := list(logs_over_time(rules).values_list("pk", "job_id")[: max(1, batch // 2)]):
        attempts = [pk for pk, _ in rows]
        for _ in _prune_output(attempts, [job_id for _, job_id in rows], batch):
            yield 0
        yield len(rows)


def _prune_output(attempts: Collection[int], jobs: Collection[uuid.UUID], batch: int) -> Iterator[None]:
    """Delete stored output in steps. It is called deleted first: a part of it is no output."""
    with transaction.atomic(using=_alias()):
        ExecutionMetadata.objects.filter(pk__in=attempts).update(logs_pruned=True, docker_log="")
        ContainerJob.objects.filter(pk__in=jobs).update(stdout_log="", stderr_log="", docker_log="")
    yield
    chunks = LogChunk.objects.using(_alias()).filter(execution__in=attempts).order_by()
    while some := list(chunks.values_list("pk", flat=True)[:batch]):
        _unread(LogChunk.objects.filter(pk__in=some)).delete()
        yield
    ExecutionMetadata.objects.filter(pk__in=attempts).update(log_chunk_count=0)


def _unread(chunks: QuerySet[LogChunk]) -> QuerySet[LogChunk]:
    """Where a receiver of the project's makes Django read the rows, it need not read what was written."""
    return chunks.defer("data")


def _see_that_it_may_go(job: uuid.UUID) -> None:
    """Raise what refuses the deletion of a job before its output is gone: ProtectedError, RestrictedError.

    A receiver of the project's that refuses is heard only when the row itself is deleted.
    """
    _Refusals(using=_alias()).collect(ContainerJob.objects.using(_alias()).filter(pk=job))


class _Refusals(Collector):
    """Of what hangs on a job all but its output: that is ours alone, and too much to be read at once."""

    def related_objects(self, related_model: Any, related_fields: Any, objs: Any) -> QuerySet[Any]:
        """What a deletion of `objs` would take along, or be refused by."""
        found = super().related_objects(related_model, related_fields, objs)
        return found.none() if related_model is LogChunk else found


def _that_fit(ids: Sequence[uuid.UUID], batch: int) -> list[uuid.UUID]:
    """The first of these jobs, as many as have no more rows than a batch, all in all."""
    rows: Counter[uuid.UUID] = Counter(ids)
    for records, job in (
        (ExecutionMetadata.objects.filter(job__in=ids), "job"),
        (JobEvent.objects.filter(job__in=ids), "job"),
        (LogChunk.objects.filter(execution__job__in=ids), "execution__job"),
    ):
        counted = records.using(_alias()).order_by().values_list(job).annotate(Count("pk"))
        rows.update(dict(counted))
    fitting: list[uuid.UUID] = []
    for pk in ids:
        batch -= rows[pk]
        if batch < 0:
            break
        fitting.append(pk)
    return fitting


def forget_workers() -> int:
    """Delete the rows of workers that have not been heard of for a week; returns how many."""
    deleted, _ = RegisteredWorker.objects.filter(heartbeat_at__lt=from_now(-WORKER_DAYS * DAY)).delete()
    return deleted


def _alias() -> str:
    """Reads as well: by a replica that is behind, what was deleted would be found again and again."""
    return router.db_for_write(ContainerJob)
