"""The output of one run on its way to the database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from container_manager.core.logframes import encode
from container_manager.core.logtext import CAP_MARK, BoundedLog
from container_manager.core.observation import STDOUT, LogCursor, LogFrame
from container_manager.records import Chunk, LogState

CHUNK_BYTES = 256 * 1024
#: How old the first frame of a batch may get before it is sent: live views wait no longer than this.
FLUSH_SECONDS = 0.25
#: The columns on the job's own row are rewritten no more often than this; chunks come first.
COLUMN_SECONDS = 1.0
#: How far timestamps of the two streams may cross in the engine's log.
LOOK_BACK_NS = 1_000_000_000

Emit = Callable[[Chunk | None, LogState, bool], bool]


class LogBuffer:
    """Collects frames into chunks in constant memory, and knows where the stored log will end.

    One thread adds; a timer may flush at the same time. `emit(chunk, state, block)` passes a chunk on and
    says whether it was taken; a blocking emit is what slows a flooding job's reader down. The chunk is None
    where only the columns are behind.
    """

    def __init__(self, *, column_bytes: int, max_bytes: int, emit: Emit) -> None:
        self._emit = emit
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._frames: list[LogFrame] = []
        self._buffered = 0
        self._sequence = 0
        self._reader = 0
        self._stdout = BoundedLog(column_bytes, "stdout")
        self._stderr = BoundedLog(column_bytes, "stderr")
        self._columns_sent_at = 0.0
        #: The columns show less than what was sent: flush again, or a job that falls silent leaves them so.
        self.columns_due = False
        self._position = _Position()
        self.read_at = 0.0  # monotonic; when the newest frame came
        self.truncated = False
        self.complete = False

    def restore(self, frames: Iterable[LogFrame], *, chunk_count: int, cursor: LogCursor | None) -> None:
        """Continue where another worker stopped; `frames` is what it has stored."""
        for frame in frames:
            self._shown(frame)
            self._position.see(frame)
        self._sequence = chunk_count
        self._position.restore(cursor)

    def add(self, frame: LogFrame, *, reader: int | None = None) -> bool:
        """Take one frame. True when it is the first of a new batch. Nothing beyond the cap is kept.

        Nor is what a `reader` brings whom another one has replaced: it would be stored twice.
        """
        with self._lock:
            if self.truncated or (reader is not None and reader != self._reader):
                return False
            if self._stdout.total_bytes + self._stderr.total_bytes + len(frame.payload) > self._max_bytes:
                self.truncated = True
                return False
            first = not self._frames
            self.read_at = time.monotonic()
            self._frames.append(frame)
            self._buffered += len(frame.payload)
            self._shown(frame)
            self._position.pass_frame(frame)
            if self._buffered >= CHUNK_BYTES:
                self._flush(block=True)
            return first

    def reader(self) -> int:
        """Become the one reader; whoever read before stops at its next frame."""
        with self._lock:
            self._reader += 1
            return self._reader

    def is_reader(self, reader: int) -> bool:
        """Whether nobody has taken over since `reader()` gave that number."""
        return self._reader == reader

    @property
    def cursor(self) -> LogCursor | None:
        """From where to read on."""
        return self._position.cursor

    def flush(self) -> bool:
        """Pass on what is buffered, from a timer: never waits. False: try again later."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._frames:
                return self._flush(block=False)
            if self.columns_due:
                self._flush_columns()
            return True
        finally:
            self._lock.release()

    def rest(self, *, patience: float = -1) -> tuple[Chunk | None, LogState]:
        """The last chunk, if anything is left, with the final state of both columns.

        With `patience` (seconds) only what was passed on before, where a reader does not let go in time: it
        waits for room in a queue that the caller is to empty.
        """
        if not self._lock.acquire(timeout=patience):
            return None, self._state(with_columns=False)
        try:
            chunk = self._chunk() if self._frames else None
            self._taken()
            return chunk, self._state(with_columns=True)
        finally:
            self._lock.release()

    def _flush(self, *, block: bool) -> bool:
        chunk = self._chunk()
        now = time.monotonic()
        with_columns = now - self._columns_sent_at >= COLUMN_SECONDS
        sequence, self._sequence = self._sequence, self._sequence + 1
        if not self._emit(chunk, self._state(with_columns=with_columns), block):
            self._sequence = sequence
            return False
        if with_columns:
            self._columns_sent_at = now
        self.columns_due = not with_columns
        self._frames, self._buffered = [], 0
        return True

    def _flush_columns(self) -> None:
        now = time.monotonic()
        early = now - self._columns_sent_at < COLUMN_SECONDS
        if not early and self._emit(None, self._state(with_columns=True), False):  # noqa: FBT003
            self._columns_sent_at, self.columns_due = now, False

    def _taken(self) -> None:
        if self._frames:
            self._sequence += 1
            self._frames, self._buffered = [], 0

    def _chunk(self) -> Chunk:
        return Chunk(self._sequence, encode(self._frames), self._frames[-1].timestamp_ns)

    def _state(self, *, with_columns: bool) -> LogState:
        return LogState(
            chunk_count=self._sequence,
            cursor=self.cursor,
            stdout_bytes=self._stdout.total_bytes,
            stderr_bytes=self._stderr.total_bytes,
            complete=self.complete and not self.truncated,
            truncated=self.truncated,
            stdout_text=self._text(self._stdout) if with_columns else None,
            stderr_text=self._text(self._stderr) if with_columns else None,
        )

    def _text(self, shown: BoundedLog) -> str:
        text = shown.text
        if not self.truncated:
            return text
        return f"{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{CAP_MARK}"

    def _shown(self, frame: LogFrame) -> None:
        (self._stdout if frame.stream == STDOUT else self._stderr).add(frame)


class _Position:
    """Keeps a `LogCursor` that lies at least LOOK_BACK_NS behind the newest frame, in constant memory.

    Two anchors leapfrog: while the younger one ages, the older one is the cursor. Each counts the frames
    since its own time, so that either is exact.
    """

    def __init__(self) -> None:
        self._newest = 0
        self._older = [0, 0]  # timestamp, frames at or after it
        self._younger = [0, 0]
        self._any = False
        # The rest of a long line carries the time of its first piece, however late it comes: while one
        # is open, the anchors stay where they are.
        self._unfinished: set[int] = set()

    def restore(self, cursor: LogCursor | None) -> None:
        if cursor is not None:
            self._newest = max(self._newest, cursor.timestamp_ns)
            self._older, self._younger, self._any = list(cursor), list(cursor), True

    def pass_frame(self, frame: LogFrame) -> None:
        self._any = True
        for anchor in (self._older, self._younger):
            if frame.timestamp_ns >= anchor[0]:
                anchor[1] += 1
        self.see(frame)
        if not self._unfinished and self._newest - self._younger[0] > LOOK_BACK_NS:
            self._older, self._younger = self._younger, [self._newest + 1, 0]

    def see(self, frame: LogFrame) -> None:
        """Learn from a frame that is counted already, or will be."""
        self._newest = max(self._newest, frame.timestamp_ns)
        if frame.payload.endswith(b"\n"):
            self._unfinished.discard(frame.stream)
        else:
            self._unfinished.add(frame.stream)

    @property
    def cursor(self) -> LogCursor | None:
        return LogCursor(*self._older) if self._any else None
