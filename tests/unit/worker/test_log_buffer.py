"""The worker's log buffer: chunks, limits, and a cursor that neither skips nor repeats a frame."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from container_manager.core.logframes import decode
from container_manager.core.logtext import render
from container_manager.core.observation import STDERR, STDOUT, LogCursor, LogFrame
from container_manager.records import Chunk, LogState
from container_manager.worker.logs import CHUNK_BYTES, LOOK_BACK_NS, LogBuffer
from tests.unit.worker.frames import START_NS, arrivals, resumed


class Recorder:
    """Takes what a buffer emits, or refuses it."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.states: list[LogState] = []
        self.blocking: list[bool] = []
        self.takes = True

    def __call__(self, chunk: Chunk | None, state: LogState, block: bool) -> bool:
        if self.takes:
            if chunk is not None:
                self.chunks.append(chunk)
            self.states.append(state)
            self.blocking.append(block)
        return self.takes

    @property
    def frames(self) -> list[LogFrame]:
        return [frame for chunk in self.chunks for frame in decode(chunk.data)]


def buffer(emit: Recorder | None = None, *, column: int = 10_000, most: int = 10_000_000) -> LogBuffer:
    return LogBuffer(column_bytes=column, max_bytes=most, emit=emit or Recorder())


def filled(frames: Sequence[LogFrame]) -> LogBuffer:
    one = buffer()
    for frame in frames:
        one.add(frame)
    return one


def line(text: bytes, *, stream: int = STDOUT, at: int = 0) -> LogFrame:
    return LogFrame(stream, START_NS + at, text)


class TestCursor:
    def test_there_is_none_before_the_first_frame(self) -> None:
        assert buffer().cursor is None

    @given(arrivals())
    def test_reading_on_from_any_point_gives_exactly_the_rest(self, frames: list[LogFrame]) -> None:
        one = buffer()
        for cut, frame in enumerate(frames):
            assert resumed(frames, one.cursor) == frames[cut:]
            one.add(frame)
        assert resumed(frames, one.cursor) == []

    @given(arrivals(), st.lists(st.integers(0, 14), max_size=4))
    @example(
        # The worker changes while a long line of stderr is open, and stdout writes on for long.
        frames=[
            line(b"begun", stream=STDERR),
            *[line(b"%d\n" % n, at=n * 2 * LOOK_BACK_NS) for n in range(1, 5)],
            line(b"ended\n", stream=STDERR),
        ],
        cuts=[1, 5],
    )
    @example(
        # The first line that the next worker reads is older than what was stored last.
        frames=[
            line(b"a\n", at=1000),
            line(b"b\n", stream=STDERR),
            line(b"c\n", at=1000 + LOOK_BACK_NS),
            line(b"d\n", at=1001 + LOOK_BACK_NS),
        ],
        cuts=[1, 3],
    )
    def test_one_worker_after_another_reads_every_frame_once(
        self, frames: list[LogFrame], cuts: list[int]
    ) -> None:
        stored: list[LogFrame] = []
        cursor: LogCursor | None = None
        for cut in [*sorted(cuts), len(frames)]:
            worker = buffer()
            worker.restore(stored, chunk_count=0, cursor=cursor)
            # The engine holds what was written until now; the next worker finds it, and what came since.
            for frame in resumed(frames[:cut], cursor):
                worker.add(frame)
                stored.append(frame)
            cursor = worker.cursor
        assert stored == frames

    def test_it_stays_behind_by_no_more_than_two_looks_back(self) -> None:
        one = filled([line(b"x\n", at=n * LOOK_BACK_NS // 10) for n in range(1000)])
        assert one.cursor is not None
        newest = START_NS + 999 * LOOK_BACK_NS // 10
        assert LOOK_BACK_NS <= newest - one.cursor.timestamp_ns <= 2.2 * LOOK_BACK_NS
        assert one.cursor.frames <= 23

    def test_a_burst_at_one_moment_is_counted(self) -> None:
        frames = [line(b"x\n")] * 5000
        assert resumed(frames, filled(frames[:4321]).cursor) == frames[4321:]


class TestChunks:
    def test_nothing_is_emitted_before_a_chunk_is_full(self) -> None:
        recorder = Recorder()
        one = buffer(recorder)
        assert one.add(line(b"a" * (CHUNK_BYTES - 1)))
        assert recorder.chunks == []
        assert not one.add(line(b"b", at=5))
        assert recorder.blocking == [True], "a full chunk slows its reader down"
        assert recorder.chunks[0].last_timestamp_ns == START_NS + 5
        assert one.add(line(b"c")), "the next batch begins"

    @given(st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(max_size=20), st.booleans())))
    def test_chunks_hold_every_frame_once_and_are_numbered(
        self, steps: list[tuple[int, bytes, bool]]
    ) -> None:
        recorder = Recorder()
        one = buffer(recorder)
        frames = []
        for number, (stream, payload, flush) in enumerate(steps):
            frames.append(line(payload, stream=stream, at=number))
            one.add(frames[-1])
            if flush:
                assert one.flush()
        chunk, state = one.rest()
        chunks = [*recorder.chunks, *([chunk] if chunk else [])]
        assert [frame for part in chunks for frame in decode(part.data)] == frames
        assert [part.sequence for part in chunks] == list(range(len(chunks)))
        assert state.chunk_count == len(chunks)
        assert state.stdout_bytes + state.stderr_bytes == sum(len(payload) for _, payload, _ in steps)
        assert one.rest()[0] is None, "the rest is handed out once"

    def test_each_state_counts_the_chunk_that_it_comes_with(self) -> None:
        recorder = Recorder()
        one = buffer(recorder)
        for number in range(3):
            one.add(line(b"x\n", at=number))
            one.flush()
        assert [state.chunk_count for state in recorder.states] == [1, 2, 3]
        assert [chunk.sequence for chunk in recorder.chunks] == [0, 1, 2]

    def test_what_was_not_taken_is_offered_again_under_the_same_number(self) -> None:
        recorder = Recorder()
        one = buffer(recorder)
        one.add(line(b"a\n"))
        recorder.takes = False
        assert not one.flush()
        one.add(line(b"b\n"))
        recorder.takes = True
        assert one.flush()
        assert [frame.payload for frame in recorder.frames] == [b"a\n", b"b\n"]
        assert recorder.chunks[0].sequence == 0

    def test_flushing_nothing_emits_nothing(self) -> None:
        recorder = Recorder()
        assert buffer(recorder).flush()
        assert recorder.chunks == []

    def test_a_flush_never_waits_for_a_reader_that_is_held_up(self) -> None:
        inside, release = threading.Event(), threading.Event()

        def emit(chunk: Chunk | None, state: LogState, block: bool) -> bool:
            inside.set()
            return release.wait(10)

        one = LogBuffer(column_bytes=100, max_bytes=10**9, emit=emit)
        reader = threading.Thread(target=one.add, args=(line(b"x" * CHUNK_BYTES),))
        reader.start()
        assert inside.wait(10)
        assert not one.flush()
        release.set()
        reader.join(10)
        assert not reader.is_alive()


class TestColumns:
    def test_they_come_first_with_the_first_chunk_and_last_with_the_rest(self) -> None:
        recorder = Recorder()
        one = buffer(recorder)
        out, err = line(b"out\n"), line(b"err\n", stream=STDERR)
        one.add(out)
        one.flush()
        one.add(err)
        one.flush()
        assert recorder.states[0].stdout_text == render([out])
        assert recorder.states[0].stderr_text == ""
        assert recorder.states[1].stdout_text is None, "columns are rewritten at most once a second"
        _, state = one.rest()
        assert (state.stdout_text, state.stderr_text) == (render([out]), render([err]))

    def test_another_worker_shows_what_was_stored_before_it(self) -> None:
        frames = [line(b"a\n"), line(b"b\n", stream=STDERR, at=1), line(b"c\n", at=2)]
        one = buffer()
        one.restore(frames[:2], chunk_count=7, cursor=filled(frames[:2]).cursor)
        one.add(frames[2])
        chunk, state = one.rest()
        assert chunk is not None
        assert chunk.sequence == 7
        assert state.chunk_count == 8
        assert state.stdout_text == render([frames[0], frames[2]])
        assert (state.stdout_bytes, state.stderr_bytes) == (4, 2)


class TestCap:
    def test_nothing_beyond_it_is_kept_and_the_state_says_so(self) -> None:
        recorder = Recorder()
        one = buffer(recorder, most=5)
        one.add(line(b"abc\n"))
        one.add(line(b"de", stream=STDERR))
        one.add(line(b"f"))
        one.complete = True
        chunk, state = one.rest()
        assert chunk is not None
        assert [frame.payload for frame in decode(chunk.data)] == [b"abc\n"]
        assert state.truncated
        assert not state.complete, "a log that was cut is not complete, even if it was read to its end"

    def test_a_log_of_exactly_that_size_is_whole(self) -> None:
        one = buffer(most=4)
        one.add(line(b"abc\n"))
        one.complete = True
        _, state = one.rest()
        assert (state.truncated, state.complete) == (False, True)


def test_a_new_reader_puts_the_old_one_out_of_office() -> None:
    one = buffer()
    first = one.reader()
    assert one.is_reader(first)
    second = one.reader()
    assert not one.is_reader(first)
    assert one.is_reader(second)


@pytest.mark.parametrize("column", [0, 1, 50, 10_000])
def test_a_column_is_bounded_whatever_comes(column: int) -> None:
    one = buffer(column=column)
    for number in range(500):
        one.add(line(b"x" * 100 + b"\n", at=number))
    _, state = one.rest()
    assert state.stdout_text is not None
    assert len(state.stdout_text) <= column + 200, "the mark comes on top"
