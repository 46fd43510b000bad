"""The jobs that a worker holds, and how an attempt becomes a run."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from container_manager import lifecycle
from container_manager.conf import Settings
from container_manager.models import ContainerJob
from container_manager.models.admission import spec_of
from container_manager.worker.database import is_of_one
from container_manager.worker.hosts import HostSeat
from container_manager.worker.logs import LogBuffer
from container_manager.worker.messages import Inbox, Key, LogBatch
from container_manager.worker.recorder import Held
from container_manager.worker.run import Run

logger = logging.getLogger("container_manager.worker")

#: How long an attempt that failed in our hands is left alone, twice as long each time.
FIRST_REST_SECONDS, MAX_REST_SECONDS = 5.0, 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rest:
    """An attempt that we have laid aside."""

    attempt: int
    until: float  # monotonic
    seconds: float


class Hands:
    """Every attempt whose end this worker has to record. For the supervisor's thread alone.

    What failed in our hands is laid aside: its container runs on, and it is adopted as if another worker had
    left it, from what is stored; but not at once, or it would fail again and again and hold up all others.
    """

    def __init__(self, settings: Settings, inbox: Inbox) -> None:
        self.installation = ""
        self._settings = settings
        self._inbox = inbox
        self._held: dict[Key, Held] = {}
        self._resting: dict[str, _Rest] = {}  # by job: its next attempt is likely to fail as this one does

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return iter(list(self._held.values()))

    def get(self, key: Key) -> Held | None:
        """What we hold under a key."""
        return self._held.get(key)

    def of(self, key: Key) -> Held | None:
        """What we hold of the very run that this key came with.

        A run that was laid aside may still be heard of when its attempt is ours again, in another run. What
        the first one read is not what the second one counts.
        """
        held = self._held.get(key)
        return held if held is not None and held.run.key is key else None

    def take(self, held: Held) -> None:
        """It is ours from now on."""
        self._held[held.run.key] = held

    def drop(self, held: Held) -> None:
        """It is ours no more; a second time changes nothing."""
        self._held.pop(held.run.key, None)

    def let_go(self, held: Held) -> None:
        """It is ours no more, and its host's agent need not see to it."""
        self.drop(held)
        agent = held.seat.agent
        if agent is not None:
            agent.forget(held.run)

    @contextmanager
    def sparing_others(self, key: Key) -> Iterator[None]:
        """What fails within is the matter of this attempt alone, unless the database or the lease is gone."""
        try:
            yield
        except Exception as error:
            if not is_of_one(error):
                raise
            self.lay_aside(key, error)

    def lay_aside(self, key: Key, error: Exception) -> None:
        """It fails with us: leave the attempt alone for a while, and log why. It is adopted as found then."""
        held = self._held.get(key)
        if held is not None:
            self.let_go(held)
        before = self._resting.get(key.job_id)
        seconds = FIRST_REST_SECONDS if before is None else min(before.seconds * 2, MAX_REST_SECONDS)
        self._resting[key.job_id] = _Rest(
            attempt=key.attempt, until=time.monotonic() + seconds, seconds=seconds
        )
        logger.error(
            "job %s failed in this worker's hands; its container runs on, and it is adopted again in %g s",
            key.job_id,
            seconds,
            exc_info=error,
            extra={"job_id": key.job_id},
        )

    def resting(self) -> list[tuple[uuid.UUID, int]]:
        """The (id, attempt) of those that are not to be adopted yet."""
        now = time.monotonic()
        # One that has been well for so long begins anew, should it fail again.
        self._resting = {
            job_id: rest for job_id, rest in self._resting.items() if now < rest.until + MAX_REST_SECONDS
        }
        return [
            (uuid.UUID(job_id), rest.attempt) for job_id, rest in self._resting.items() if now < rest.until
        ]

    def on(self, seat: HostSeat) -> list[Held]:
        """What runs on one host."""
        return [held for held in self._held.values() if held.seat is seat]

    def make_run(self, job: ContainerJob, *, as_admitted: bool = False) -> Run:
        """The run of the job's current attempt. Raises InvalidJob where the policy in force refuses it."""
        key = Key(str(job.pk), job.attempt)
        spec = spec_of(job, self.installation, as_admitted=as_admitted)
        left = lifecycle.deadline_left(job)
        inbox = self._inbox
        logs = LogBuffer(
            column_bytes=self._settings.LOG_COLUMN_BYTES,
            max_bytes=self._settings.LOG_MAX_BYTES,
            emit=lambda chunk, state, block: inbox.put_log(
                LogBatch(key=key, chunk=chunk, state=state), block=block
            ),
        )
        return Run(
            key=key,
            spec=spec,
            timeout_seconds=job.timeout_seconds,
            grace_seconds=self._settings.STOP_GRACE_SECONDS,
            deadline_at=None if left is None else time.monotonic() + left,
            logs=logs,
        )
