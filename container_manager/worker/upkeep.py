"""What a worker does beside its jobs, now and then: retention, and the hosts that are away for too long."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from container_manager import retention
from container_manager.conf import Settings
from container_manager.models import ContainerJob, ExecutorHost
from container_manager.models.clock import time_until
from container_manager.worker.hosts import Absence

logger = logging.getLogger("container_manager.worker")

#: Another engine has to answer at a host's address for this long before its jobs are given up.
MISMATCH_SECONDS = 5.0
#: A worker gives no host up that it has not itself found away for this long.
WITNESS_SECONDS = 30.0
BUSY_SECONDS = 1.0  # between two batches while there is something to delete
IDLE_SECONDS = 300.0


class Upkeep:
    """Deletes what is over its time, a batch at a time, so that no job waits for it."""

    def __init__(self, settings: Settings) -> None:
        self.seconds = BUSY_SECONDS  # until the next turn
        self._rules = retention.Rules.of(settings)
        self._batch = settings.RETENTION_BATCH

    def work(self) -> None:
        """One batch of each kind."""
        retention.forget_workers()
        if self._rules.are_off:
            self.seconds = IDLE_SECONDS
            return
        jobs = retention.prune_jobs(self._rules, batch=self._batch)
        logs = retention.prune_logs(self._rules, batch=self._batch)
        if jobs or logs:
            logger.info("retention: %d jobs and the output of %d attempts deleted", jobs, logs)
        self.seconds = BUSY_SECONDS if self._batch in (jobs, logs) else IDLE_SECONDS


def hosts_given_up(away: Mapping[int, Absence], settings: Settings) -> Iterator[tuple[int, str]]:
    """Which of these hosts are lost by the rules, with the evidence in words; only those with active jobs.

    The row says since when; what this worker saw itself has to bear it out, or a host that came back while no
    worker looked would be given up at the next one's first look.
    """
    busy = ContainerJob.objects.active().values("docker_host")
    hosts = ExecutorHost.objects.filter(pk__in=away).filter(pk__in=busy)
    for host in hosts.annotate(since=time_until("health_since")).order_by("pk"):
        if host.health_since is None or not host.engine_id:
            continue
        seconds, absence = -host.since.total_seconds(), away[host.pk]
        mismatched = host.health == ExecutorHost.Health.MISMATCHED
        limit = settings.HOST_LOST_SECONDS
        witnessed = absence.seconds >= min(limit, WITNESS_SECONDS)
        if mismatched and absence.engine_was_met and min(seconds, absence.seconds) >= MISMATCH_SECONDS:
            yield host.pk, f"The engine that ran the job is gone: {host.health_error}"
        elif host.health != ExecutorHost.Health.HEALTHY and 0 < limit <= seconds and witnessed:
            if _answers_elsewhere(host):
                continue
            rule = f"HOST_LOST_SECONDS is {limit:g}"
            yield host.pk, f"The host was unreachable for {seconds:.0f} s ({rule}): {host.health_error}"


def _answers_elsewhere(host: ExecutorHost) -> bool:
    """Whether another row reaches the same engine: then it is this address that is broken."""
    same = ExecutorHost.objects.filter(engine_id=host.engine_id, health=ExecutorHost.Health.HEALTHY)
    return bool(same.exclude(pk=host.pk).exists())
