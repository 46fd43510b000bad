"""What the threads of a worker tell its supervisor: facts, frozen, in one first-in-first-out queue."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from container_manager.core.errors import ExecutorError
from container_manager.core.observation import HostFacts, ImageFacts, Observation, OwnedContainer
from container_manager.core.outcome import Intent
from container_manager.records import Chunk, LogState, Usage


class Key(NamedTuple):
    """One attempt at one job."""

    job_id: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wake:
    """Something may have changed in the database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostUp:
    """A host answers; `facts` say which engine it is."""

    host_id: int
    facts: HostFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class HostDown:
    """A host does not answer, or another engine answers there."""

    host_id: int
    error: ExecutorError


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """The program runs."""

    key: Key
    container_id: str
    started_at: datetime  # by the engine's clock, as good as known now
    image: ImageFacts | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchFailed:
    """The program never ran."""

    key: Key
    error: ExecutorError
    exit_code: int | None
    intent: Intent


@dataclass(frozen=True, slots=True, kw_only=True)
class LogBatch:
    """Output to store while the job runs; without a chunk only the job's own columns are behind."""

    key: Key
    chunk: Chunk | None
    state: LogState


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The container has ended and was read to its end; `chunk` is the output not yet sent."""

    key: Key
    observation: Observation
    intent: Intent
    engine_interrupted: bool
    restarted: bool  # the container was started again from outside
    usage: Usage
    chunk: Chunk | None
    logs: LogState


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """The container of an attempt was removed; `gone` is False where the host did not answer.

    What is left behind then is found again as a stray.
    """

    key: Key
    gone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A container started that we know to have ended, or do not know: by whom, the record has to tell."""

    key: Key
    at: datetime  # by the engine's clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Strays:
    """Containers of our installation that no run of this worker knows."""

    host_id: int
    containers: tuple[OwnedContainer, ...]


Message = Wake | HostUp | HostDown | Launched | LaunchFailed | LogBatch | Exited | Removed | Started | Strays


class Inbox:
    """The supervisor's queue. Facts always fit; log batches wait for room, which slows the reader down."""

    def __init__(self, log_batches: int = 16) -> None:
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._room = threading.BoundedSemaphore(log_batches)
        self._closed = threading.Event()

    def put(self, message: Message) -> None:
        """Add a fact; never blocks."""
        self._queue.put(message)

    def put_log(self, batch: LogBatch, *, block: bool) -> bool:
        """Add a log batch; False when there is no room (or, blocking, when the inbox was closed)."""
        while not self._room.acquire(timeout=0.5 if block else 0):
            if not block or self._closed.is_set():
                return False
        self._queue.put(batch)
        return True

    def get(self, timeout: float) -> Message | None:
        """The next message, or None after `timeout` seconds."""
        try:
            return self._queue.get(timeout=timeout) if timeout > 0 else self._queue.get_nowait()
        except queue.Empty:
            return None

    def stored(self) -> None:
        """A log batch was dealt with; there is room for another."""
        self._room.release()

    def close(self) -> None:
        """Nobody reads any more: blocked writers give up."""
        self._closed.set()
