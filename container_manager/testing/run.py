"""What a container in memory does, and when."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from container_manager.core.errors import (
    JobFault,
)
from container_manager.core.observation import (
    ContainerState,
    LogFrame,
)
from container_manager.core.spec import ContainerSpec

_FRAME_BYTES = 16 * 1024
LINE_NS = 1_000  # between two lines of output


class FakeClock:
    """A clock that stands still until the test moves it. Call it for Unix time in nanoseconds."""

    def __init__(self, now: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        self._now_ns = int(now.timestamp()) * 1_000_000_000

    def __call__(self) -> int:
        """Unix time in nanoseconds."""
        return self._now_ns

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now_ns += round(seconds * 1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeRun:
    """What one container does once it is started."""

    exit_code: int = 0
    stdout: bytes = b""
    stderr: bytes = b""
    #: More output, for its order: pairs of STDOUT or STDERR and bytes. All output appears at the start.
    output: Sequence[tuple[int, bytes]] = ()
    duration: float = 0.0  # seconds by the engine's clock
    #: The run does not end before this event is set; `FakeEngine.finish` ends it as well.
    hold: threading.Event | None = None
    oom_killed: bool = False
    #: The start fails with this; the program never runs.
    error: JobFault | None = None
    term_exit_code: int | None = 143  # how it ends on SIGTERM; None: it does not listen
    cpus_used: float | None = 0.5  # cores, for usage samples; None: unknown
    memory_bytes: int | None = 16 * 1024 * 1024
    memory_peak_bytes: int | None = None


@dataclass(slots=True, kw_only=True)
class FakeContainer:
    """A container of a `FakeEngine`, to look at in assertions."""

    id: str
    spec: ContainerSpec
    run: FakeRun
    created_ns: int
    state: ContainerState = ContainerState.CREATED
    started_ns: int | None = None
    finished_ns: int | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    error: str = ""
    frames: list[LogFrame] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        """Running or paused."""
        return self.state in (ContainerState.RUNNING, ContainerState.PAUSED)

    @property
    def over(self) -> bool:
        """Whether it will never write again."""
        return not self.alive and (self.state is not ContainerState.CREATED or bool(self.error))


def cut(stream: int, data: bytes, moment_ns: int) -> list[LogFrame]:
    """Frames as an engine would make them: one for each line, long lines in pieces with one timestamp."""
    frames = []
    for number, line in enumerate(_lines(data)):
        for start in range(0, len(line), _FRAME_BYTES):
            piece = line[start : start + _FRAME_BYTES]
            frames.append(LogFrame(stream, moment_ns + number * LINE_NS, piece))
    return frames


def _lines(data: bytes) -> list[bytes]:
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return [line for line in lines if line]


def moment(nanoseconds: int) -> datetime:
    """Unix time in nanoseconds as a datetime."""
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)
