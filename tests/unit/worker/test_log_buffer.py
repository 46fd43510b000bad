"""The worker's log buffer: chunks, limits, and a cursor that neither skips nor repeats a frame."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from container_manager.core.logframes import RECORD_BYTES, decode
from container_manager.core.logtext import CAP_MARK, clean_output, render
from container_manager.core.observation import STDERR, STDOUT, LogFrame
from container_manager.records import Chunk, LogState
from container_manager.worker.logs import CHUNK_BYTES, LOOK_BACK_NS, STORED_FACTOR, LogBuffer
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


def continued(stored: Recorder, *, most_read: int | None = None, **limits: int) -> LogBuffer:
    """The buffer of the next worker, from what the one before has stored."""
    one = buffer(stored, **limits)
    if most_read is not None:
        one._most_restored = most_read
    state = stored.states[-1] if stored.states else LogState.empty()
    one.restore(state, from_start=stored.chunks, from_end=reversed(stored.chunks))
    return one


class Counted:
    """Chunks, and how many of them were asked for."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = iter(chunks)
        self.taken = 0

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._chunks:
            self.taken += 1
            yield chunk


MARK_LINE = re.compile(r"^\[\.\.\. (\d+) bytes of this stream are left out here;.*\n", re.MULTILINE)


def last_word(one: LogBuffer) -> LogState:
    """All that a buffer says at the end, but for what depends on who read and when."""
    return replace(one.rest()[1], chunk_count=0, cursor=None)


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
        stored = Recorder()
        for cut in [*sorted(cuts), len(frames)]:
            worker = continued(stored)
            # The engine holds what was written until now; the next worker finds it, and what came since.
            for frame in resumed(frames[:cut], worker.cursor):
                worker.add(frame)
            assert worker.flush()
        assert stored.frames == frames

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
        assert one.add(line(b"a" * (CHUNK_BYTES - 2 * RECORD_BYTES - 2)))
        assert recorder.chunks == []
        assert not one.add(line(b""))
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
        one = continued(stored_log(frames[:2], flush_every=1, column=100))
        one.add(frames[2])
        chunk, state = one.rest()
        assert chunk is not None
        assert chunk.sequence == 2
        assert state.chunk_count == 3
        assert state.stdout_text == render([frames[0], frames[2]])
        assert (state.stdout_bytes, state.stderr_bytes) == (4, 2)


def stored_log(frames: Sequence[LogFrame], *, flush_every: int, column: int) -> Recorder:
    """What a worker stores of them that dies then, with so many frames in a chunk."""
    recorder = Recorder()
    one = buffer(recorder, column=column)
    for number, frame in enumerate(frames, start=1):
        one.add(frame)
        if number % flush_every == 0:
            one.flush()
    one.flush()
    return recorder


class TestTakeOver:
    @given(arrivals(max_lines=40), st.integers(0, 40), st.integers(1, 10), st.integers(0, 400))
    @example(
        # A column without room, and a stream whose rest is in the middle alone.
        frames=[line(b"a"), *[line(b"b", stream=STDERR, at=n) for n in (1, 2)], line(b"c", at=3)],
        cut=4,
        flush_every=1,
        column=0,
    )
    def test_a_small_log_goes_on_as_if_nobody_had_changed(
        self, frames: list[LogFrame], cut: int, flush_every: int, column: int
    ) -> None:
        whole = buffer(column=column)
        for frame in frames:
            whole.add(frame)
        one = continued(stored_log(frames[:cut], flush_every=flush_every, column=column), column=column)
        for frame in frames[cut:]:
            one.add(frame)
        assert last_word(one) == last_word(whole)

    @given(arrivals(max_lines=60), st.integers(1, 5), st.integers(0, 300), st.integers(0, 400))
    def test_however_little_is_read_the_columns_count_what_they_leave_out(
        self, frames: list[LogFrame], flush_every: int, column: int, most_read: int
    ) -> None:
        stored = stored_log(frames, flush_every=flush_every, column=column)
        one = continued(stored, column=column, most_read=most_read)
        frames = [*frames, *[line(b"end\n", stream=stream, at=10**15) for stream in (STDOUT, STDERR)]]
        for frame in frames[-2:]:
            one.add(frame)
        state = last_word(one)
        for stream, total, text in (
            (STDOUT, state.stdout_bytes, state.stdout_text),
            (STDERR, state.stderr_bytes, state.stderr_text),
        ):
            assert total == sum(len(frame.payload) for frame in frames if frame.stream == stream)
            assert text is not None
            marks = MARK_LINE.findall(text)
            shown = len(clean_output(MARK_LINE.sub("", text)))
            # Where the head ends within a line, the mark begins a line of its own.
            assert shown + sum(map(int, marks)) - total in {0, len(marks)}

    @pytest.mark.parametrize("lines", [20_000, 80_000])
    def test_a_long_log_costs_no_more_than_its_ends_and_shows_the_same(self, lines: int) -> None:
        frames = [line(b"%08d of both\n" % n, stream=1 + n % 2, at=n) for n in range(lines)]
        stored = stored_log(frames, flush_every=2_000, column=10_000)
        start, end = Counted(stored.chunks), Counted(reversed(stored.chunks))
        one = buffer()
        one.restore(stored.states[-1], from_start=start, from_end=end)
        assert (start.taken, end.taken) == (1, 1)
        assert last_word(one) == last_word(filled(frames))

    def test_a_stream_that_is_silent_for_long_is_not_searched_for_ever(self) -> None:
        frames = [line(b"%08d\n" % n, at=n) for n in range(200_000)]
        frames[100_000] = line(b"a word of warning\n", stream=STDERR, at=100_000)
        stored = stored_log(frames, flush_every=200_000, column=10_000)
        assert len(stored.chunks) > 10
        start, end = Counted(stored.chunks), Counted(reversed(stored.chunks))
        one = buffer()
        one.restore(stored.states[-1], from_start=start, from_end=end)
        assert start.taken + end.taken <= 5
        assert last_word(one).stderr_text is None, "the column that is stored shows it, and stays as it is"
        one.add(line(b"another\n", stream=STDERR, at=200_000))
        text = last_word(one).stderr_text or ""
        assert MARK_LINE.findall(text) == [str(len(b"a word of warning\n"))]
        assert text.endswith(" another\n")

    def test_a_line_that_is_open_since_long_keeps_the_cursor_before_it(self) -> None:
        begun = line(b"begun", stream=STDERR)
        frames = [begun, *[line(b"%08d\n" % n, at=n * LOOK_BACK_NS // 100) for n in range(100_000)]]
        one = continued(stored_log(frames, flush_every=100_001, column=100))
        later = line(b"on\n", at=2_000 * LOOK_BACK_NS)
        one.add(later)
        rest = line(b"ended\n", stream=STDERR)
        assert resumed([*frames, later, rest], one.cursor) == [rest]

    def test_a_log_that_was_cut_stays_cut(self) -> None:
        stored = Recorder()
        first = buffer(stored, most=5)
        first.add(line(b"abc\n"))
        first.add(line(b"long\n"))
        first.flush()
        assert stored.states[-1].truncated
        one = continued(stored, most=5)
        assert not one.add(line(b"d"))
        chunk, state = one.rest()
        assert chunk is None
        assert (state.truncated, state.stdout_bytes) == (True, 4)
        assert CAP_MARK in (state.stdout_text or "")

    def test_the_cap_counts_what_another_worker_stored(self) -> None:
        stored = Recorder()
        first = buffer(stored, most=5)
        first.add(line(b"abc\n"))
        first.flush()
        one = continued(stored, most=5)
        assert one.add(line(b"d"))
        assert not one.add(line(b"e"))
        assert one.truncated

    def test_an_attempt_without_output_begins_at_the_beginning(self) -> None:
        one = continued(Recorder())
        assert one.cursor is None
        assert one.rest()[1].stdout_text == ""


class TestBounds:
    """Each frame takes some bytes on top of its payload: where payloads are small, those are what counts."""

    def test_what_waits_is_bounded_however_small_the_lines(self) -> None:
        recorder = Recorder()
        one = buffer(recorder)
        for number in range(100_000):
            one.add(line(b"\n" if number % 2 else b"", at=number))
        assert len(recorder.chunks) == 100_000 * (2 * RECORD_BYTES + 1) // 2 // CHUNK_BYTES
        assert all(len(chunk.data) < CHUNK_BYTES + 100 for chunk in recorder.chunks)

    @pytest.mark.parametrize("payload", [b"", b"\n", b"12 letters.\n", b"x" * 100 + b"\n"])
    def test_what_is_stored_is_no_more_than_a_little_above_twice_the_cap(self, payload: bytes) -> None:
        recorder = Recorder()
        most = 1_000_000
        one = buffer(recorder, most=most)
        number = 0
        while not one.truncated:
            one.add(line(payload, at=number))
            number += 1
        chunk, state = one.rest()
        stored = sum(len(part.data) for part in [*recorder.chunks, chunk] if part)
        assert stored == state.stored_bytes <= STORED_FACTOR * most + CHUNK_BYTES
        if len(payload) >= RECORD_BYTES - 1:
            assert most - len(payload) < state.stdout_bytes <= most, "lines of a usual length are all kept"


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
