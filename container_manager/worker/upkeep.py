"""What a worker does beside its jobs, now and then: retention, and the hosts that are away for too long."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping

from container_manager import retention
from container_manager.conf import Settings
from container_manager.models import ContainerJob, ExecutorHost
from container_manager.models.clock import time_until
from container_manager.worker.database import is_passing
from container_manager.worker.hosts import Absence

logger = logging.getLogger("container_manager.worker")

#: Another engine has to answer at a host's address for this long before its jobs are given up.
MISMATCH_SECONDS = 5.0
#: A worker gives no host up that it has not itself found away for this long.
WITNESS_SECONDS = 30.0
BUSY_SECONDS = 1.0  # between two steps while there is something to delete
IDLE_SECONDS = 300.0
#: After a step that failed, twice as long each time.
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 60.0, 3600.0


class Upkeep:
    """Deletes what is over its time, a step at a time, so that no job waits for it.

    Nor does it end or hold up the worker, whatever comes of it: a receiver or a foreign key of the project's
    may refuse a deletion, the database may find it too slow, each time anew.
    """

    def __init__(self, settings: Settings) -> None:
        rules, batch = retention.Rules.of(settings), settings.RETENTION_BATCH
        self._chores = [
            _Chore("%d workers forgotten", lambda: iter([retention.forget_workers()])),
            _Chore("%d jobs deleted", lambda: retention.prune_jobs(rules, batch=batch)),
            _Chore("the output of %d attempts deleted", lambda: retention.prune_logs(rules, batch=batch)),
        ]
        if rules.are_off:
            del self._chores[1:]

    @property
    def seconds(self) -> float:
        """Until the next turn."""
        return max(BUSY_SECONDS, min(chore.due_at for chore in self._chores) - time.monotonic())

    def work(self) -> None:
        """One step of each kind that is due."""
        for chore in self._chores:
            if chore.due_at <= time.monotonic():
                chore.step()


class _Chore:
    """One kind of deletion, in rounds of as many steps as it takes."""

    def __init__(self, done: str, begin: Callable[[], Iterator[int]]) -> None:
        self.due_at = 0.0  # monotonic
        self._done = done
        self._begin = begin
        self._steps: Iterator[int] | None = None
        self._count = 0
        self._failures = 0

    def step(self) -> None:
        """One transaction."""
        try:
            self._steps = self._steps or self._begin()
            count = next(self._steps, None)
        except Exception as error:
            # Whatever it is, jobs are more important. A database that is away the jobs' own work will meet.
            pause = min(FIRST_PAUSE_SECONDS * 2 ** min(self._failures, 10), MAX_PAUSE_SECONDS)
            logger.log(
                logging.WARNING if is_passing(error) else logging.ERROR,
                "retention: a step failed, tried again in %g s: %s",
                pause,
                str(error).strip(),
                exc_info=not is_passing(error),
            )
            self._failures += 1
            self._end_round(pause)
        else:
            if count is None:
                self._failures = 0
                self._end_round(IDLE_SECONDS)
            else:
                self._count += count

    def _end_round(self, pause: float) -> None:
        if self._count:
            logger.info("retention: %s", self._done % self._count)
        self._steps, self._count, self.due_at = None, 0, time.monotonic() + pause


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
