"""Frames and lines out of blocks that are cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_manager.core.errors import EngineFault
from container_manager.core.observation import STDERR, STDOUT, LogFrame
from container_manager.executors.docker.streams import (
    PIECE_BYTES,
    json_lines,
    log_frames,
    raw_frames,
    whole_lines,
)

SECOND = 1_700_000_000  # 2023-11-14T22:13:20Z


def framed(stream: int, content: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(content).to_bytes(4, "big") + content


def logged(stream: int, payload: bytes, fraction: bytes = b".000000001") -> bytes:
    return framed(stream, b"2023-11-14T22:13:20" + fraction + b"Z " + payload)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


class TestFrames:
    @given(
        st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(max_size=50)), max_size=20),
        st.integers(1, 70),
    )
    def test_survive_any_cut(self, frames: list[tuple[int, bytes]], size: int) -> None:
        data = b"".join(framed(stream, content) for stream, content in frames)
        assert list(raw_frames(cut(data, size))) == frames

    def test_the_timestamp_is_taken_off_and_nothing_else(self) -> None:
        odd = b"\0 \xff\xfe 2023-11-14T22:13:20.5Z \r\n"
        data = logged(STDERR, odd, b".344982361") + logged(STDOUT, b"", b"") + logged(STDOUT, b"x", b".5")
        assert list(log_frames([data])) == [
            LogFrame(STDERR, SECOND * 10**9 + 344_982_361, odd),
            LogFrame(STDOUT, SECOND * 10**9, b""),
            LogFrame(STDOUT, SECOND * 10**9 + 500_000_000, b"x"),
        ]

    def test_a_log_that_breaks_off_inside_a_frame_is_no_end(self) -> None:
        data = logged(STDOUT, b"one\n") + logged(STDOUT, b"two\n")[:-1]
        frames = log_frames([data])
        assert next(frames).payload == b"one\n"
        with pytest.raises(EngineFault, match="middle of a frame"):
            next(frames)

    @pytest.mark.parametrize(
        "content",
        [
            framed(3, b"Error grabbing logs: unexpected EOF\n"),
            framed(3, b"2023-11-14T22:13:20Z Error grabbing logs: unexpected EOF\n"),
            framed(STDERR, b"Error grabbing logs: unexpected EOF\n"),
        ],
    )
    def test_the_engines_own_words_are_no_output_of_the_job(self, content: bytes) -> None:
        frames = log_frames([logged(STDOUT, b"one\n") + content])
        assert next(frames).payload == b"one\n"
        with pytest.raises(EngineFault) as caught:
            next(frames)
        assert "unexpected EOF" in caught.value.detail


class TestLongLines:
    FULL = b"x" * PIECE_BYTES

    def mended(self, *payloads: bytes) -> list[bytes]:
        frames = [LogFrame(STDOUT, 1, payload) for payload in payloads]
        return [frame.payload for frame in whole_lines(frames)]

    def test_a_long_line_gets_its_newline_back(self) -> None:
        assert self.mended(self.FULL, b"rest", b"next\n") == [self.FULL, b"rest\n", b"next\n"]

    def test_a_line_of_exactly_one_piece(self) -> None:
        assert self.mended(self.FULL, b"", b"next\n") == [self.FULL, b"\n", b"next\n"]

    def test_an_engine_that_keeps_newlines_is_left_alone(self) -> None:
        assert self.mended(self.FULL, b"rest\n", b"tail") == [self.FULL, b"rest\n", b"tail"]

    def test_a_short_end_without_newline_stays_so(self) -> None:
        assert self.mended(b"one\n", b"tail") == [b"one\n", b"tail"]

    def test_full_pieces_alone_stay_so(self) -> None:
        assert self.mended(self.FULL, self.FULL) == [self.FULL, self.FULL]

    def test_each_stream_has_its_own_line(self) -> None:
        frames = [
            LogFrame(STDOUT, 1, self.FULL),
            LogFrame(STDERR, 2, b"tail"),
            LogFrame(STDOUT, 1, b"rest"),
        ]
        assert [frame.payload for frame in whole_lines(frames)] == [self.FULL, b"tail", b"rest\n"]


class TestJsonLines:
    @given(st.integers(1, 40))
    def test_survive_any_cut(self, size: int) -> None:
        data = '{"a": "\N{SNOWMAN}"}\r\n\n{"b": 2}\n{"c": [3]}'.encode()
        assert list(json_lines(cut(data, size))) == [{"a": "\N{SNOWMAN}"}, {"b": 2}, {"c": [3]}]

    @pytest.mark.parametrize("data", [b'{"a": ', b"[1]\n", b"<html>\n"])
    def test_anything_else_is_said(self, data: bytes) -> None:
        with pytest.raises(EngineFault):
            list(json_lines([data]))
