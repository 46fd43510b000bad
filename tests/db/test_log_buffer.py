"""The buffer between a log reader and the database: chunks, cursor, columns, cap."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_manager.core.logframes import decode
from container_manager.core.observation import STDERR, STDOUT, LogCursor, LogFrame
from container_manager.records import Chunk, LogState
from container_manager.worker.logs import CHUNK_BYTES, COLUMN_SECONDS, LOOK_BACK_NS, LogBuffer

SECOND = 1_000_000_000


class Sink:
    """What the database would have; refuses while told to."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.states: list[LogState] = []
        self.refuse = False

    def __call__(self, chunk: Chunk | None, state: LogState, block: bool) -> bool:
        if self.refuse and not block:
            return False
        if chunk is not None:
            self.chunks.append(chunk)
        self.states.append(state)
        return True

    def frames(self) -> list[LogFrame]:
        return [frame for chunk in self.chunks for frame in decode(chunk.data)]


def a_buffer(sink: Sink, *, column_bytes: int = 1000, max_bytes: int = 10**9) -> LogBuffer:
    return LogBuffer(column_bytes=column_bytes, max_bytes=max_bytes, emit=sink)


def line(number: int, stream: int = STDOUT, at: int | None = None) -> LogFrame:
    return LogFrame(stream, number * 1000 if at is None else at, b"line %d\n" % number)


def read_since(log: list[LogFrame], cursor: LogCursor | None) -> list[LogFrame]:
    """As an executor answers a cursor."""
    oldest, skip = cursor or (0, 0)
    return [frame for frame in log if frame.timestamp_ns >= oldest][skip:]


def test_nothing_written_is_nothing_sent() -> None:
    sink = Sink()
    buffer = a_buffer(sink)
    assert buffer.flush()
    chunk, state = buffer.rest()
    assert (chunk, state.chunk_count, state.cursor) == (None, 0, None)
    assert (state.stdout_text, state.stderr_text, state.stdout_bytes) == ("", "", 0)
    assert not sink.chunks


def test_frames_come_out_as_they_went_in() -> None:
    sink = Sink()
    buffer = a_buffer(sink)
    payloads = [b"a\n", b"\0\xff\xfe", b"", b"no newline", b"x" * 100_000]
    frames = [LogFrame(1 + n % 2, n, payload) for n, payload in enumerate(payloads)]
    for frame in frames:
        buffer.add(frame)
    chunk, state = buffer.rest()
    assert chunk is not None
    assert list(decode(chunk.data)) == frames
    assert (state.stdout_bytes, state.stderr_bytes) == (100_002, 13)
    assert state.chunk_count == 1


def test_only_the_first_frame_of_a_batch_asks_for_a_flush() -> None:
    sink = Sink()
    buffer = a_buffer(sink)
    assert buffer.add(line(1))
    assert not buffer.add(line(2))
    assert buffer.flush()
    assert buffer.add(line(3))


def test_a_full_chunk_goes_at_once() -> None:
    sink = Sink()
    buffer = a_buffer(sink)
    for number in range(3):
        buffer.add(LogFrame(STDOUT, number, b"x" * (CHUNK_BYTES // 2)))
    assert [chunk.sequence for chunk in sink.chunks] == [0]
    chunk, state = buffer.rest()
    assert chunk is not None
    assert (chunk.sequence, state.chunk_count) == (1, 2)
    assert chunk.last_timestamp_ns == 2


def test_a_refused_flush_loses_nothing_and_counts_nothing() -> None:
    sink = Sink()
    buffer = a_buffer(sink)
    buffer.add(line(1))
    sink.refuse = True
    assert not buffer.flush()
    buffer.add(line(2))
    sink.refuse = False
    assert buffer.flush()
    assert [(chunk.sequence, len(list(decode(chunk.data)))) for chunk in sink.chunks] == [(0, 2)]
    assert sink.states[0].chunk_count == 1


def test_a_flush_does_not_wait_for_a_reader_that_is_blocked() -> None:
    entered, release = threading.Event(), threading.Event()

    def emit(chunk: Chunk | None, state: LogState, block: bool) -> bool:
        entered.set()
        return release.wait(30)

    buffer = LogBuffer(column_bytes=10, max_bytes=10**9, emit=emit)
    reader = threading.Thread(target=buffer.add, args=(LogFrame(STDOUT, 1, b"x" * CHUNK_BYTES),))
    reader.start()
    assert entered.wait(30)
    assert not buffer.flush()  # returns at once, to be tried again
    release.set()
    reader.join(30)
    assert buffer.flush()


def test_the_cap_is_kept_and_told() -> None:
    sink = Sink()
    buffer = a_buffer(sink, max_bytes=20)
    assert buffer.add(line(1))  # 7 bytes each
    buffer.add(line(2, STDERR))
    assert not buffer.truncated
    assert not buffer.add(line(3))
    assert buffer.truncated
    assert not buffer.add(LogFrame(STDOUT, 4, b"x"))  # whole to here, and nothing after a gap
    buffer.complete = True
    _, state = buffer.rest()
    assert (state.truncated, state.complete) == (True, False)
    assert state.stdout_bytes + state.stderr_bytes == 14


def test_the_columns_are_bounded_with_a_mark() -> None:
    sink = Sink()
    buffer = a_buffer(sink, column_bytes=100)
    for number in range(1000):
        buffer.add(line(number))
    buffer.add(line(1, STDERR))
    _, state = buffer.rest()
    assert state.stdout_text is not None
    assert len(state.stdout_text) < 2000
    assert "line 0" in state.stdout_text
    assert "line 999" in state.stdout_text
    assert "left out" in state.stdout_text
    assert state.stderr_text is not None
    assert state.stderr_text.endswith("line 1\n")
    assert "left out" not in state.stderr_text


def test_columns_ride_along_with_the_first_batch_and_the_last() -> None:
    sink = Sink()
    buffer = a_buffer(sink)
    for number in range(3):
        buffer.add(line(number))
        assert buffer.flush()
    assert [state.stdout_text is not None for state in sink.states] == [True, False, False]
    assert buffer.rest()[1].stdout_text is not None


def test_columns_that_fell_behind_follow_though_nothing_more_is_written() -> None:
    sink = Sink()
    buffer = a_buffer(sink)
    for number in range(2):
        buffer.add(line(number))
        assert buffer.flush()
    assert buffer.columns_due
    assert buffer.flush()
    assert buffer.columns_due  # too soon
    buffer._columns_sent_at -= COLUMN_SECONDS  # time goes by
    sink.refuse = True
    assert buffer.flush()
    assert buffer.columns_due  # no room
    sink.refuse = False
    assert buffer.flush()
    assert not buffer.columns_due
    assert sink.states[-1].stdout_text is not None
    assert "line 1" in sink.states[-1].stdout_text
    assert (sink.states[-1].chunk_count, len(sink.chunks)) == (2, 2)


def test_a_reader_that_was_replaced_knows() -> None:
    buffer = a_buffer(Sink())
    first = buffer.reader()
    assert buffer.is_reader(first)
    second = buffer.reader()
    assert not buffer.is_reader(first)
    assert buffer.is_reader(second)


# --------------------------------------------------------------------------------------------- resuming

#: An engine's log: times that grow, with a step back of less than LOOK_BACK_NS where the streams cross.
LOGS = st.lists(
    st.tuples(
        st.sampled_from([STDOUT, STDERR]),
        st.integers(-LOOK_BACK_NS // 2, 3 * SECOND),
        st.binary(max_size=4),
    ),
    max_size=60,
)


def a_log(steps: list[tuple[int, int, bytes]]) -> list[LogFrame]:
    frames, newest = [], 10 * SECOND
    for stream, step, payload in steps:
        moment = newest + step
        newest = max(newest, moment)
        frames.append(LogFrame(stream, moment, payload))
    return frames


@given(LOGS, st.lists(st.integers(0, 60), max_size=4))
def test_whoever_reads_on_at_the_cursor_misses_nothing_and_repeats_nothing(
    steps: list[tuple[int, int, bytes]], stops: list[int]
) -> None:
    log = a_log(steps)
    sink = Sink()
    buffer = a_buffer(sink)
    for stop in [*stops, len(log)]:
        for frame in read_since(log, buffer.cursor)[:stop]:
            buffer.add(frame)
        assert buffer.flush()
        successor = a_buffer(sink)  # the next worker, from what is stored
        if sink.states:
            successor.restore(sink.states[-1], from_start=sink.chunks, from_end=reversed(sink.chunks))
        buffer = successor
    for frame in read_since(log, buffer.cursor):
        buffer.add(frame)
    chunk, state = buffer.rest()
    stored = sink.frames() + ([] if chunk is None else list(decode(chunk.data)))
    assert stored == log
    assert [c.sequence for c in sink.chunks] == list(range(len(sink.chunks)))
    assert state.chunk_count == len(sink.chunks) + (chunk is not None)
    assert state.stdout_bytes == sum(len(f.payload) for f in log if f.stream == STDOUT)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_frames_of_one_moment_are_counted(frames: int) -> None:
    log = [LogFrame(STDOUT, 7 * SECOND, b"%d" % n) for n in range(10)]
    sink = Sink()
    buffer = a_buffer(sink)
    for frame in log[:frames]:
        buffer.add(frame)
    assert read_since(log, buffer.cursor) == log[frames:]
