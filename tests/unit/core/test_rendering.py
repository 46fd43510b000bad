"""Frames as text: timestamps at line starts, whole characters, no NUL, and no work that grows twice."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_manager.core.logtext import BoundedLog, clean_output, render, timestamp
from container_manager.core.observation import STDOUT, LogFrame

NS = 1_700_000_000_123_456_789
STAMP = "2023-11-14T22:13:20.123456789Z "


def frame(payload: bytes, at: int = NS) -> LogFrame:
    return LogFrame(STDOUT, at, payload)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (NS, STAMP.strip()),
        (1_709_164_800 * 10**9, "2024-02-29T00:00:00.000000000Z"),
        (2**63 - 1, "2262-04-11T23:47:16.854775807Z"),
    ],
)
def test_a_timestamp_has_nine_digits_and_utc(ns: int, text: str) -> None:
    assert timestamp(ns) == text


@given(st.integers(0, 2**62))
def test_timestamps_sort_as_their_numbers_do(ns: int) -> None:
    assert timestamp(ns) < timestamp(ns + 1)
    seconds = datetime.fromisoformat(timestamp(ns)[:19]).replace(tzinfo=UTC).timestamp()
    assert seconds == ns // 10**9


@pytest.mark.parametrize(
    ("payloads", "text"),
    [
        ([], ""),
        ([b""], ""),
        ([b"a\n"], f"{STAMP}a\n"),
        ([b"a"], f"{STAMP}a"),
        ([b"a", b"b\n"], f"{STAMP}ab\n"),
        ([b"a\n", b"b\n"], f"{STAMP}a\n{STAMP}b\n"),
        ([b"a\nb\n"], f"{STAMP}a\n{STAMP}b\n"),
        ([b"\n", b"\n"], f"{STAMP}\n{STAMP}\n"),
        ([b"\0\n"], f"{STAMP}\u2400\n"),
        ([b"\xff\n"], f"{STAMP}\ufffd\n"),
        ([b"\xe2\x82", b"\xac\n"], f"{STAMP}€\n"),
        ([b"\xf0\x9f", b"\x98", b"\x80"], f"{STAMP}\U0001f600"),
        ([b"\xe2\x82"], f"{STAMP}\ufffd"),
        ([b"a\r\n"], f"{STAMP}a\r\n"),
    ],
)
def test_frames_as_text(payloads: list[bytes], text: str) -> None:
    assert render([frame(payload) for payload in payloads]) == text


@given(st.text(st.characters(exclude_characters="\0\x1b", exclude_categories=["Cs", "Cc"])), st.data())
def test_text_in_any_frames_comes_back_when_it_is_cleaned(text: str, data: st.DataObject) -> None:
    rest = text.encode()
    frames = []
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        frames.append(frame(rest[:size]))
        rest = rest[size:]
    assert clean_output(render(frames)) == text


@given(st.lists(st.binary(max_size=30)))
def test_postgresql_can_store_whatever_comes_out(payloads: list[bytes]) -> None:
    text = render([frame(payload) for payload in payloads])
    assert "\0" not in text
    text.encode()  # no lone surrogate either


class Counting(bytes):
    """A payload that counts how often its bytes are looked through."""

    looks = 0

    def count(self, *args: Any) -> int:
        Counting.looks += 1
        return super().count(*args)


@pytest.mark.parametrize("frames", [1_000, 2_000])
def test_the_work_for_a_frame_does_not_grow_with_the_log(frames: int) -> None:
    Counting.looks = 0
    log = BoundedLog(10_000)
    for _ in range(frames):
        log.add(frame(Counting(b"a line of a program\n")))
    assert Counting.looks <= 4 * frames
