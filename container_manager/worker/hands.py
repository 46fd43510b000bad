"""The jobs that a worker holds, and how an attempt becomes a run."""

from __future__ import annotations

import time
from collections.abc import Iterator

from container_manager import lifecycle
from container_manager.conf import Settings
from container_manager.models import ContainerJob
from container_manager.models.admission import spec_of
from container_manager.worker.hosts import HostSeat
from container_manager.worker.logs import LogBuffer
from container_manager.worker.messages import Inbox, Key, LogBatch
from container_manager.worker.recorder import Held
from container_manager.worker.run import Run


class Hands:
    """Every attempt whose end this worker has to record. For the supervisor's thread alone."""

    def __init__(self, settings: Settings, inbox: Inbox) -> None:
        self.installation = ""
        self._settings = settings
        self._inbox = inbox
        self._held: dict[Key, Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return iter(list(self._held.values()))

    def get(self, key: Key) -> Held | None:
        """What we hold under a key."""
        return self._held.get(key)

    def take(self, held: Held) -> None:
        """It is ours from now on."""
        self._held[held.run.key] = held

    def drop(self, held: Held) -> None:
        """It is ours no more; a second time changes nothing."""
        self._held.pop(held.run.key, None)

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
