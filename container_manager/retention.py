"""What is deleted when its time is over: jobs with all their records, and stored output; in small batches."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import router, transaction
from django.db.models import Q, QuerySet

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
    found: QuerySet[ContainerJob] = ContainerJob.objects.filter(over)
    return found.order_by("completed_at")


def logs_over_time(rules: Rules) -> QuerySet[ExecutionMetadata]:
    """The ended attempts whose stored output is to go."""
    ended = ExecutionMetadata.objects.filter(job__status__in=[*_GOOD, *_BAD], logs_pruned=False)
    if not rules.log_days:
        return ended.none()
    return ended.filter(job__completed_at__lt=from_now(-rules.log_days * DAY)).order_by("pk")


def prune_jobs(rules: Rules, *, batch: int) -> int:
    """Delete one batch of jobs with their attempts, events and output; returns how many."""
    with transaction.atomic(using=_alias()):
        ids = list(jobs_over_time(rules).values_list("pk", flat=True)[:batch])
        if not ids:
            return 0
        # From the leaves to the root: Django would first read what hangs on each row.
        LogChunk.objects.filter(execution__job__in=ids).delete()
        ExecutionMetadata.objects.filter(job__in=ids).delete()
        JobEvent.objects.filter(job__in=ids).delete()
        ContainerJob.objects.filter(pk__in=ids).delete()
        return len(ids)


def prune_logs(rules: Rules, *, batch: int) -> int:
    """Delete the output of one batch of attempts, the job's own columns included; returns how many.

    The attempt keeps its figures, `stdout_bytes` among them, and says that its output was deleted.
    """
    with transaction.atomic(using=_alias()):
        rows = list(logs_over_time(rules).values_list("pk", "job_id")[:batch])
        if not rows:
            return 0
        attempts = [pk for pk, _ in rows]
        LogChunk.objects.filter(execution__in=attempts).delete()
        ExecutionMetadata.objects.filter(pk__in=attempts).update(logs_pruned=True, docker_log="")
        jobs = ContainerJob.objects.filter(pk__in=[job_id for _, job_id in rows])
        jobs.update(stdout_log="", stderr_log="", docker_log="")
        return len(rows)


def forget_workers() -> int:
    """Delete the rows of workers that have not been heard of for a week; returns how many."""
    deleted, _ = RegisteredWorker.objects.filter(heartbeat_at__lt=from_now(-WORKER_DAYS * DAY)).delete()
    return deleted


def _alias() -> str:
    return router.db_for_write(ContainerJob)
