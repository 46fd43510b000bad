"""Facts become rows: what the agents report about runs is applied to the database here."""

from __future__ import annotations

import logging
import random
import uuid
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from django.utils import timezone

from container_manager import lifecycle
from container_manager.conf import Settings
from container_manager.core.enginetext import message_text
from container_manager.core.errors import HostFault, JobFault, NeverStarted
from container_manager.core.observation import ContainerState
from container_manager.core.outcome import (
    ExitReason,
    Intent,
    Outcome,
    decide,
    lost,
    missed_intent,
    rejected,
)
from container_manager.core.retry import Again, decide_retry
from container_manager.core.spec import container_name
from container_manager.core.states import Status
from container_manager.models import ContainerJob, ExecutionMetadata
from container_manager.models.admission import retry_of
from container_manager.models.clock import Now
from container_manager.models.lease import HeldLease
from container_manager.records import Usage
from container_manager.worker.hosts import HostSeat
from container_manager.worker.messages import Exited, Key, Launched, LaunchFailed, LogBatch
from container_manager.worker.run import Run

logger = logging.getLogger("container_manager.jobs")

_RESTARTED = "The container was started again from outside while the job ran; the record covers both runs."
_NO_TIME_LEFT = "No other attempt follows: it could begin only after the job's deadline."
#: How long we wait for a reader that waits for us.
REST_SECONDS = 0.2
#: A job that its host failed waits before it is claimed again, longer each time and twice as long as the host
#: itself rests: then it is another job that tells whether the host is fit.
FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS = 2.0, 60.0
_BY_ANOTHER_HAND = {
    ExitReason.KILLED_EXTERNALLY,
    ExitReason.REMOVED_EXTERNALLY,
    ExitReason.ENGINE_STOPPED,
}


@dataclass(slots=True, kw_only=True)
class Held:
    """A job in this worker's hands."""

    job: ContainerJob
    execution: ExecutionMetadata
    run: Run
    seat: HostSeat
    lease: HeldLease  # of the tenure in which it came into our hands


class Recorder:
    """Applies facts. Each method may be repeated after a database error: a second time changes nothing."""

    def __init__(self, worker: str, settings: Settings) -> None:
        self._worker = worker
        self._settings = settings

    def launched(self, held: Held, fact: Launched) -> bool:
        """The program runs. False when the job was taken from us meanwhile."""
        execution = held.execution
        execution.spec_hash = held.run.spec.digest()
        if fact.image is not None:
            execution.image_id, execution.image_digest = fact.image.image_id, fact.image.digest
        if held.job.status != Status.LAUNCHING:
            return held.job.status == Status.RUNNING  # adopted in this state
        moved = lifecycle.start(
            held.lease,
            held.job,
            execution,
            at=fact.started_at,
            worker=self._worker,
            container_id=fact.container_id,
            docker_log=held.run.engine_log_text(),
        )
        self._log(held, "started" if moved else "was ended by its owner while it was started")
        return moved

    def launch_failed(self, held: Held, fact: LaunchFailed) -> None:
        """The program never ran: back to the queue when the host is at fault, else the end of the job."""
        if fact.intent is Intent.NONE and isinstance(fact.error, HostFault):
            lifecycle.release(
                held.lease,
                held.job,
                held.execution,
                worker=self._worker,
                message=str(fact.error),
                docker_log=held.run.engine_log_text(),
                wait_seconds=self._wait(held.job, fact.error),
            )
            self._log(held, f"given back: {fact.error}", level=logging.WARNING)
            return
        reason = fact.error.reason if isinstance(fact.error, JobFault) else ExitReason.CREATE_ERROR
        message = fact.error.explained()
        outcome = rejected(reason, message, exit_code=fact.exit_code, intent=fact.intent)
        self._finish(held, outcome, None)

    def exited(self, held: Held, fact: Exited) -> None:
        """The container has ended and was read to its end."""
        outcome = decide(
            fact.observation,
            intent=fact.intent,
            timeout_seconds=held.job.timeout_seconds,
            memory_limit_mb=held.job.memory_limit,
            engine_interrupted=fact.engine_interrupted,
            missed=missed_intent(
                fact.observation,
                timeout_seconds=held.job.timeout_seconds,
                cancel_requested_at=held.job.cancel_requested_at,
                deadline_at=held.job.deadline_at,
                engine_ahead=_engine_ahead(held),
            ),
        )
        if outcome.reason in _BY_ANOTHER_HAND and _cancel_was_requested(held.job):
            # The owner asked for the end and removed the container before we could stop it.
            outcome = decide(fact.observation, intent=Intent.CANCEL)
        if fact.restarted:
            outcome = replace(outcome, message=f"{outcome.message} {_RESTARTED}".strip())
        if held.execution.image_id == "":
            held.execution.image_id = fact.observation.image_id
        self._finish(held, outcome, fact)

    def logs(self, held: Held, batch: LogBatch) -> None:
        """Output of a running job."""
        chunks = [] if batch.chunk is None else [batch.chunk]
        lifecycle.store_logs(held.lease, held.job, held.execution, chunks, batch.state)

    def lost(self, held: Held, message: str) -> None:
        """The host is given up with all that ran there; `message` is the evidence."""
        held.run.note(f"given up: {message}")
        self._finish(held, lost(message), None)

    def started_again(self, key: Key, at: datetime) -> None:
        """The container of an ended attempt started before it was removed: by others, if after its end."""
        execution = self._execution(key)
        if execution is not None and execution.finished_at is not None and at > execution.finished_at:
            message = "the container was started again from outside after its end; it was removed"
            lifecycle.note(execution, "started_again", message, self._worker)

    def stray_removed(self, key: Key, why: str) -> None:
        """A running container of an attempt that is over was found and removed: the record says so."""
        execution = self._execution(key)
        if execution is None:
            return
        ran_to_an_end = execution.finished_at is not None
        text = "started again from outside after its end" if ran_to_an_end else "still running"
        message = f"the container was found {text} ({why}); it was removed"
        lifecycle.note(execution, "container_removed", message, self._worker)

    def removed(self, keys: Collection[Key]) -> None:
        """Containers of these attempts are gone."""
        names = [container_name(key.job_id, key.attempt) for key in keys]
        rows = ExecutionMetadata.objects.filter(
            job__in=[key.job_id for key in keys], container_name__in=names
        )
        rows.update(removed_at=timezone.now())

    def _finish(self, held: Held, outcome: Outcome, fact: Exited | None) -> None:
        if fact is not None:
            seen, chunk, logs = fact.observation, fact.chunk, fact.logs
            gone = seen.state is ContainerState.NOT_FOUND
            # Of one that is gone, what we saw ourselves is all there is.
            started, finished = held.job.started_at if gone else seen.started_at, seen.finished_at
        else:
            started, finished = held.execution.started_at, None
            chunk, logs = held.run.logs.rest(patience=REST_SECONDS)
        again = self._again(held.job, outcome)
        if again is not None and not again.begins_before(lifecycle.deadline_left(held.job)):
            again, outcome = None, replace(outcome, message=f"{outcome.message} {_NO_TIME_LEFT}")
        done = lifecycle.finish(
            held.lease,
            held.job,
            held.execution,
            outcome,
            started_at=started,
            finished_at=finished,
            worker=self._worker,
            usage=_usage(held, outcome, fact),
            logs=logs,
            chunks=[] if chunk is None else [chunk],
            docker_log=held.run.engine_log_text(),
            again=again,
        )
        if done:
            self._log(held, f"{outcome.status} ({outcome.reason}), exit code {outcome.exit_code}")
            if held.job.status == Status.PENDING and again is not None:
                self._log(held, f"is tried again in {again.wait_seconds:.3g} s")
        else:
            self._log(held, "had been ended by its owner; its record was stored")

    def _execution(self, key: Key) -> ExecutionMetadata | None:
        rows = ExecutionMetadata.objects.filter(job=uuid.UUID(key.job_id), attempt=key.attempt)
        return rows.select_related("job").first()

    def _wait(self, job: ContainerJob, error: HostFault) -> float:
        """Seconds before it is claimed again; 0 where the host is not to blame.

        Without a wait a job that no host can run would hold up all others.
        """
        if isinstance(error, NeverStarted):
            return 0.0
        before = job.executions.filter(exit_reason="", recorded_at__isnull=False).count()
        return float(min(MAX_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(before, 10)))

    def _again(self, job: ContainerJob, outcome: Outcome) -> Again | None:
        """Whether another attempt follows, by the job's own policy; most have none."""
        if not job.retry:
            return None
        return decide_retry(
            retry_of(job),
            outcome,
            failures=job.failed_attempts,
            attempts=job.executions.exclude(exit_reason="").count() + 1,  # not those that its host failed
            ceiling=self._settings.MAX_JOB_ATTEMPTS,
            luck=random.random(),  # noqa: S311 - spreads waits, guards nothing
        )

    def _log(self, held: Held, text: str, level: int = logging.INFO) -> None:
        logger.log(
            level,
            "job %s (%s) %s",
            held.job.pk,
            held.job.name or "unnamed",
            message_text(text),
            extra={
                "job_id": str(held.job.pk),
                "execution_id": held.run.spec.name,
                "docker_host": held.seat.host.name,
            },
        )


def _usage(held: Held, outcome: Outcome, fact: Exited | None) -> Usage:
    """What samples tell; that a job died at its memory limit tells its peak even where none was taken."""
    if fact is None:
        return Usage()
    if outcome.reason is not ExitReason.OUT_OF_MEMORY:
        return fact.usage
    limit = held.run.spec.memory_bytes
    peak = max(limit, fact.usage.max_memory_bytes or 0)
    return replace(fact.usage, max_memory_bytes=peak, memory_source="limit")


def _engine_ahead(held: Held) -> timedelta:
    """How far the engine's clock is ahead of the database's; asked only where times of both are compared."""
    if held.job.cancel_requested_at is None and held.job.deadline_at is None:
        return timedelta()
    facts, row = held.seat.facts, ContainerJob.objects.filter(pk=held.job.pk)
    database_now: datetime | None = row.annotate(now=Now()).values_list("now", flat=True).first()
    if facts is None or database_now is None:
        return timedelta()
    return timezone.now() + facts.clock_offset - database_now


def _cancel_was_requested(job: ContainerJob) -> bool:
    wanted = ContainerJob.objects.filter(pk=job.pk, cancel_requested_at__isnull=False)
    return bool(wanted.exists())
