"""The stored form of frames: nothing of a payload is touched, and damage is noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_manager.core.logframes import decode, encode
from container_manager.core.observation import STDERR, STDOUT, LogFrame

FRAMES = st.lists(
    st.builds(
        LogFrame,
        stream=st.sampled_from([STDOUT, STDERR]),
        timestamp_ns=st.integers(0, 2**64 - 1),
        payload=st.binary(max_size=40),
    ),
    max_size=8,
)


@given(FRAMES)
def test_frames_come_back_as_they_went_in(frames: list[LogFrame]) -> None:
    assert list(decode(encode(frames))) == frames


@given(FRAMES, FRAMES)
def test_chunks_may_be_joined_and_split_between_frames(a: list[LogFrame], b: list[LogFrame]) -> None:
    assert encode(a) + encode(b) == encode([*a, *b])


@given(FRAMES)
def test_a_chunk_cut_inside_a_frame_is_an_error(frames: list[LogFrame]) -> None:
    data = encode(frames)
    whole = {len(encode(frames[:count])) for count in range(len(frames) + 1)}
    for end in range(len(data)):
        if end in whole:
            assert encode(decode(data[:end])) == data[:end]
        else:
            with pytest.raises(ValueError, match="ends in the middle"):
                list(decode(data[:end]))


def test_the_stored_form_is_the_documented_one() -> None:
    frame = LogFrame(STDERR, 0x0102030405060708, b"\0\xff\n")
    assert encode([frame]) == bytes([2, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 3]) + b"\0\xff\n"


def test_frames_before_the_damage_are_readable() -> None:
    good = LogFrame(STDOUT, 5, b"good\n")
    reading = decode(encode([good]) + b"\1")
    assert next(reading) == good
    with pytest.raises(ValueError, match="middle of a record"):
        next(reading)
