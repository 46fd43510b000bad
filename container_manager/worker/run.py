"""One attempt in the hands of a host agent."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto

from container_manager.core.enginetext import BoundedLines
from container_manager.core.observation import UsageSample
from container_manager.core.outcome import Intent
from container_manager.core.spec import ContainerSpec
from container_manager.records import Usage
from container_manager.worker.logs import LogBuffer
from container_manager.worker.messages import Key
from container_manager.worker.timer import Appointment

#: A start this far behind the one that we know is another one, made by somebody else. What we know of a start
#: may be late by less, and so may the engine's news of it.
RESTART_SECONDS = 1.0


class Phase(Enum):
    """Where the agent is with a run; the database knows less, and later."""

    LAUNCHING = auto()
    UNCERTAIN = auto()  # a call was sent and no answer came, or another worker held it: look first
    RUNNING = auto()
    HARVESTING = auto()
    DONE = auto()


@dataclass(slots=True, kw_only=True)
class Run:
    """Mutable state of one attempt. The agent's threads change it under `lock`; nobody else does."""

    key: Key
    spec: ContainerSpec
    timeout_seconds: int
    grace_seconds: float
    deadline_at: float | None = None  # monotonic; the job's total deadline
    logs: LogBuffer
    phase: Phase = Phase.LAUNCHING
    lock: threading.Lock = field(default_factory=threading.Lock)
    resolving: bool = False  # a thread is finding out what became of it
    start_failed: bool = False  # by the host's fault
    container_id: str = ""
    intent: Intent = Intent.NONE
    announced: bool = False  # the supervisor knows that it runs
    interrupted: bool = False  # the engine was out of sight while it ran, or another worker watched it
    ever_running: bool = False
    stop_sent: bool = False  # what `intent` wants reached a program that ran
    timers: list[Appointment] = field(default_factory=list)  # to be cancelled when it is over
    started_at: datetime | None = None  # by the engine's clock, as good as known
    looked_twice: bool = False  # at an end by SIGKILL
    restarted: bool = False  # somebody else started the container again
    launched: bool = False  # by us: the engine's news of its first start is still to come
    starts_told: int = 0  # by the engine's events
    again_at: datetime | None = None  # of the last of them that was not the first
    reported: bool = False  # its end was passed on
    ended_since: float = 0.0  # monotonic; when we were first told that it ended; 0: never
    follower: threading.Thread | None = None
    unreadable: int = 0  # how often the engine failed to read its log at the end
    sampled_at: float = 0.0  # monotonic; 0: never
    running_since: float = 0.0  # monotonic
    asked: int = 0  # how often for a sample
    samples: int = 0  # how often with an answer
    last_sample: UsageSample | None = None
    peak_bytes: int | None = None
    peak_is_kernels: bool = False
    engine_log: BoundedLines = field(default_factory=BoundedLines)
    note_lock: threading.Lock = field(default_factory=threading.Lock)  # notes are made under `lock`, too

    @property
    def name(self) -> str:
        """What the engine knows the container by."""
        return self.container_id or self.spec.name

    @property
    def follower_alive(self) -> bool:
        """Whether a thread reads the container's log as it grows."""
        return self.follower is not None and self.follower.is_alive()

    def become(self, phase: Phase) -> bool:
        """Go on to a phase; False where the run is over, which it stays."""
        with self.lock:
            if self.phase is Phase.DONE:
                return False
            self.phase = phase
            return True

    def note(self, text: str, at: datetime | None = None) -> None:
        """Add a line to what the engine did and said."""
        moment = (at or datetime.now(UTC)).astimezone(UTC)
        stamp = moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
        with self.note_lock:
            self.engine_log.add(f"{stamp} {text}")

    def engine_log_text(self) -> str:
        """The engine's part of the record so far."""
        with self.note_lock:
            return self.engine_log.text

    def take_sample(self, sample: UsageSample) -> None:
        """Keep the newest counters and the highest memory."""
        with self.lock:
            self.samples += 1
            self.last_sample = sample
            if sample.memory_peak_bytes is not None:
                self.peak_bytes = max(self.peak_bytes or 0, sample.memory_peak_bytes)
                self.peak_is_kernels = True
            elif sample.memory_bytes is not None and not self.peak_is_kernels:
                self.peak_bytes = max(self.peak_bytes or 0, sample.memory_bytes)

    def usage(self, started_at: datetime | None) -> Usage:
        """Peak memory and mean CPU of the run, as far as samples tell."""
        sample = self.last_sample
        cpu_percent = None
        if sample is not None and sample.cpu_ns is not None and started_at is not None:
            elapsed = (sample.taken_at - started_at).total_seconds()
            if elapsed > 0:
                cpu_percent = round(sample.cpu_ns / 1e9 / elapsed * 100, 2)
        source = "" if self.peak_bytes is None else "peak" if self.peak_is_kernels else "sampled"
        return Usage(
            max_memory_bytes=self.peak_bytes,
            memory_source=source,
            cpu_percent=cpu_percent,
            samples=self.samples,
        )
