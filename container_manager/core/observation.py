"""What drivers report: facts without judgement, frozen so that they can cross threads.

Units: bytes, seconds, nanoseconds where the name says so. Datetimes are aware and in UTC, by the
engine's clock. Unknown is None, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

STDOUT = 1
STDERR = 2


class ContainerState(StrEnum):
    """The engine's word for a container, plus the two honest answers it cannot give itself."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"
    NOT_FOUND = "not-found"
    UNKNOWN = "unknown"


#: The program runs or could go on.
ALIVE = frozenset({ContainerState.RUNNING, ContainerState.PAUSED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One look at one container (Docker: `GET /containers/{id}/json`)."""

    state: ContainerState
    container_id: str = ""
    name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None
    oom_killed: bool = False
    error: str = ""  # why the engine could not start it, or lost it
    created_at: datetime | None = None
    started_at: datetime | None = None  # None: never started
    finished_at: datetime | None = None
    image_id: str = ""

    @property
    def ever_started(self) -> bool:
        """Whether the program has run at all; a container is started only while this is False."""
        return self.started_at is not None


class LogFrame(NamedTuple):
    """One piece of output as the engine cut it. `payload` is the program's bytes, nothing else.

    A line longer than the engine's buffer (16 KiB) arrives as several frames with one timestamp;
    only the last of them ends with a newline.
    """

    stream: int  # STDOUT or STDERR
    timestamp_ns: int  # Unix time by the engine's clock
    payload: bytes


class LogCursor(NamedTuple):
    """Where the stored log ends: of the frames at or after `timestamp_ns`, the first `frames` are stored.

    An engine orders its log by arrival, and two streams' timestamps may cross by a little. A cursor
    therefore looks back behind the newest frame, and counts: to resume, read since `timestamp_ns`
    (inclusive) and skip the first `frames` frames of the answer, whatever their timestamps.
    """

    timestamp_ns: int
    frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSample:
    """One reading of a container's resource counters."""

    taken_at: datetime  # by the engine's clock
    cpu_ns: int | None  # cumulative CPU time since the start
    memory_bytes: int | None  # in use now, page cache excluded
    memory_peak_bytes: int | None  # the kernel's own peak, None where the API does not tell it


class EventAction(StrEnum):
    """What an engine's event stream tells us about one of our containers."""

    START = "start"
    DIE = "die"
    OOM = "oom"
    DESTROY = "destroy"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    CONNECTED = "connected"  # ours: the stream stands; list and compare now


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEvent:
    """A hint that something happened. Events get lost; a listing is the truth."""

    action: EventAction
    container_id: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    at_ns: int = 0
    exit_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedContainer:
    """A line of the listing of what carries our installation's label."""

    container_id: str
    name: str
    labels: dict[str, str]
    state: ContainerState
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What the engine knows of an image that is on the host now."""

    image_id: str  # the local content id
    digest: str = ""  # repo digest `name@sha256:...`; empty for an image that never saw a registry
    pulled: bool = False  # whether this call fetched it


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What one health call learned about a host."""

    engine_id: str
    engine_version: str
    api_version: str
    cpus: int | None
    memory_bytes: int | None
    system_time: datetime | None  # the engine's clock, to tell elapsed time on adoption
    user_namespaces: bool | None
    response_seconds: float
    details: dict[str, Any] = field(default_factory=dict)  # operating system, cgroup version, storage driver
    noted_at: datetime = field(default_factory=lambda: datetime.now(UTC))  # by our own clock

    @property
    def clock_offset(self) -> timedelta:
        """How far the engine's clock was ahead of ours when it answered; nothing where it tells no time."""
        return timedelta() if self.system_time is None else self.system_time - self.noted_at
