"""The output of one run on its way to the database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from container_manager.core.logframes import RECORD_BYTES, append, decode
from container_manager.core.logtext import CAP_MARK, BoundedLog, line_cost
from container_manager.core.observation import STDERR, STDOUT, LogCursor, LogFrame
from container_manager.records import Chunk, LogState

#: A chunk as it is held and stored, but for the frame that fills it.
CHUNK_BYTES = 256 * 1024
#: What is stored may be this many times the output that is kept, and one chunk more. Each frame takes a few
#: bytes on top of its payload; lines of 13 bytes or more on the average never come near.
STORED_FACTOR = 2
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
        self._max_stored = STORED_FACTOR * max_bytes + CHUNK_BYTES
        #: How much of either end is read to show what another worker has stored.
        self._most_restored = 2 * max(CHUNK_BYTES, column_bytes)
        self._lock = threading.Lock()
        self._packed = bytearray()  # and not frames: a small one takes ten times its bytes as an object
        self._stored = 0  # and what is packed
        self._sequence = 0
        self._reader = 0
        self._stdout = BoundedLog(column_bytes, "stdout")
        self._stderr = BoundedLog(column_bytes, "stderr")
        self._columns = {STDOUT: self._stdout, STDERR: self._stderr}
        self._as_stored: set[int] = set()  # streams whose stored column shows more than we could
        self._columns_sent_at = 0.0
        #: The columns show less than what was sent: flush again, or a job that falls silent leaves them so.
        self.columns_due = False
        self._position = _Position()
        self.read_at = 0.0  # monotonic; when the newest frame came
        self.truncated = False
        self.complete = False

    def restore(self, state: LogState, *, from_start: Iterable[Chunk], from_end: Iterable[Chunk]) -> None:
        """Continue where another worker stopped, at a cost that does not grow with its log.

        `state` and the chunks, from either end, are what it has stored. Of those no more is read than the
        columns show, and no more than a bound: what a stream wrote rarely and in the middle is counted as
        left out as soon as it writes again, and until then its column stays as it is.
        """
        totals = {STDOUT: state.stdout_bytes, STDERR: state.stderr_bytes}
        self._sequence, self.truncated = state.chunk_count, state.truncated
        self._stored = max(state.stored_bytes, sum(totals.values()))
        read = self._restore_heads(from_start, totals)
        if read < state.chunk_count:
            self._restore_tails(from_end, totals, read)
        # Not known of what an older version stored: then each may be open.
        unknown = sum(stream for stream, total in totals.items() if total)
        self._position.restore(state.cursor, unknown if state.open_streams is None else state.open_streams)

    def _restore_heads(self, chunks: Iterable[Chunk], totals: Mapping[int, int]) -> int:
        """Show what the log began with; returns how many chunks that took."""
        count = size = 0
        for chunk in chunks:
            for frame in decode(chunk.data):
                self._shown(frame)
                self._position.see(frame)
            self._position.reach(chunk.last_timestamp_ns)
            count, size = chunk.sequence + 1, size + len(chunk.data)
            needed = any(
                not column.head_is_full and column.total_bytes < totals[stream]
                for stream, column in self._columns.items()
            )
            if not needed or size >= self._most_restored:
                break
        return count

    def _restore_tails(self, chunks: Iterable[Chunk], totals: Mapping[int, int], first: int) -> None:
        """Show what the log ended with; the chunks before `first` are shown already."""
        newest_first: list[list[LogFrame]] = []
        cost, missing = (
            dict.fromkeys(totals, 0),
            {s: totals[s] - c.total_bytes for s, c in self._columns.items()},
        )
        size = 0
        for chunk in chunks:
            if chunk.sequence < first:
                break
            newest_first.append(list(decode(chunk.data)))
            for frame in newest_first[-1]:
                cost[frame.stream] += line_cost(frame.payload) if frame.payload else 0
                missing[frame.stream] -= len(frame.payload)
            self._position.reach(chunk.last_timestamp_ns)
            size += len(chunk.data)
            needed = any(
                missing[stream] and not column.is_tail(cost[stream])
                for stream, column in self._columns.items()
            )
            if not needed or size >= self._most_restored:
                break
        for stream, column in self._columns.items():
            if missing[stream]:
                if not (cost[stream] or column.is_tail(0)):  # a column without room shows nothing anyway
                    self._as_stored.add(stream)
                column.skip(column.total_bytes + missing[stream])
        for frames in reversed(newest_first):
            for frame in frames:
                self._columns[frame.stream].add(frame)
                self._position.see(frame)

    def add(self, frame: LogFrame, *, reader: int | None = None) -> bool:
        """Take one frame. True when it is the first of a new batch. Nothing beyond the cap is kept.

        Nor is what a `reader` brings whom another one has replaced: it would be stored twice.
        """
        with self._lock:
            if self.truncated or (reader is not None and reader != self._reader):
                return False
            output = self._stdout.total_bytes + self._stderr.total_bytes + len(frame.payload)
            stored = self._stored + RECORD_BYTES + len(frame.payload)
            if output > self._max_bytes or stored > self._max_stored:
                self.truncated = True
                return False
            first = not self._packed
            self.read_at = time.monotonic()
            append(self._packed, frame)
            self._stored = stored
            self._shown(frame)
            self._position.pass_frame(frame)
            if len(self._packed) >= CHUNK_BYTES:
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
            if self._packed:
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
            chunk = self._chunk() if self._packed else None
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
        self._packed.clear()
        return True

    def _flush_columns(self) -> None:
        now = time.monotonic()
        early = now - self._columns_sent_at < COLUMN_SECONDS
        if not early and self._emit(None, self._state(with_columns=True), False):  # noqa: FBT003
            self._columns_sent_at, self.columns_due = now, False

    def _taken(self) -> None:
        if self._packed:
            self._sequence += 1
            self._packed.clear()

    def _chunk(self) -> Chunk:
        return Chunk(self._sequence, bytes(self._packed), self._position.newest)

    def _state(self, *, with_columns: bool) -> LogState:
        return LogState(
            chunk_count=self._sequence,
            cursor=self.cursor,
            stdout_bytes=self._stdout.total_bytes,
            stderr_bytes=self._stderr.total_bytes,
            complete=self.complete and not self.truncated,
            truncated=self.truncated,
            stored_bytes=self._stored,
            open_streams=self._position.open_streams,
            stdout_text=self._text(STDOUT) if with_columns else None,
            stderr_text=self._text(STDERR) if with_columns else None,
        )

    def _text(self, stream: int) -> str | None:
        if stream in self._as_stored:
            return None
        text = self._columns[stream].text
        if not self.truncated:
            return text
        return f"{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{CAP_MARK}"

    def _shown(self, frame: LogFrame) -> None:
        self._columns[frame.stream].add(frame)
        self._as_stored.discard(frame.stream)


class _Position:
    """Keeps a `LogCursor` that lies at least LOOK_BACK_NS behind the newest frame, in constant memory.

    Two anchors leapfrog: while the younger one ages, the older one is the cursor. Each counts the frames
    since its own time, so that either is exact.
    """

    def __init__(self) -> None:
        self.newest = 0  # timestamp
        self._older = [0, 0]  # timestamp, frames at or after it
        self._younger = [0, 0]
        self._any = False
        # The rest of a long line carries the time of its first piece, however late it comes: while one
        # is open, the anchors stay where they are.
        self._unfinished: set[int] = set()

    def restore(self, cursor: LogCursor | None, open_streams: int) -> None:
        self._unfinished = {stream for stream in (STDOUT, STDERR) if stream & open_streams}
        if cursor is not None:
            self.reach(cursor.timestamp_ns)
            self._older, self._younger, self._any = list(cursor), list(cursor), True

    def pass_frame(self, frame: LogFrame) -> None:
        self._any = True
        for anchor in (self._older, self._younger):
            if frame.timestamp_ns >= anchor[0]:
                anchor[1] += 1
        self.see(frame)
        if not self._unfinished and self.newest - self._younger[0] > LOOK_BACK_NS:
            self._older, self._younger = self._younger, [self.newest + 1, 0]

    def see(self, frame: LogFrame) -> None:
        """Learn from a frame that is counted already, or will be."""
        self.reach(frame.timestamp_ns)
        if frame.payload.endswith(b"\n"):
            self._unfinished.discard(frame.stream)
        else:
            self._unfinished.add(frame.stream)

    def reach(self, timestamp_ns: int) -> None:
        """Learn that the log goes on to here."""
        self.newest = max(self.newest, timestamp_ns)

    @property
    def open_streams(self) -> int:
        """The streams whose last line has no end yet, as a sum: their numbers are bits."""
        return sum(self._unfinished)

    @property
    def cursor(self) -> LogCursor | None:
        return LogCursor(*self._older) if self._any else None
