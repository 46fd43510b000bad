"""The columns on a job's row: bounded in text and memory, and honest about what they leave out."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container_manager.core.logtext import MARK, BoundedLog, clean_output, render
from container_manager.core.observation import STDOUT, LogFrame

NOW_NS = 1_795_485_723_123_456_789
STAMP = "2026-11-24T02:02:03.123456789Z "
GAP = re.compile(r"\[\.\.\. (\d+) bytes of this stream are left out here; job\.iter_log\('stdout'\)")

payloads = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.text("ab\n\u00e9\u20ac\U0001f600\0", max_size=20).map(str.encode),
        st.integers(0, 300).map(lambda size: b"\n" * size),
    ),
    max_size=12,
)


def frames_of(*parts: bytes) -> list[LogFrame]:
    return [LogFrame(STDOUT, NOW_NS + number, part) for number, part in enumerate(parts)]


def filled(limit: int, frames: list[LogFrame]) -> BoundedLog:
    log = BoundedLog(limit)
    for frame in frames:
        log.add(frame)
    return log


@settings(max_examples=400, print_blob=True)
@given(payloads, st.integers(0, 500))
def test_the_text_never_exceeds_its_bound_and_lacks_nothing_unsaid(parts: list[bytes], limit: int) -> None:
    frames = frames_of(*parts)
    log = filled(limit, frames)
    total = b"".join(parts)
    assert log.total_bytes == len(total)
    gap = GAP.search(log.text)
    if gap is None:
        assert log.text == render(frames)
    else:
        left_out = int(gap[1])
        assert 0 < left_out <= len(total)
        # One more for the line end that sets the mark off.
        assert len(log.text) <= limit + len(MARK.format(count=left_out, stream="stdout")) + 1


@settings(max_examples=200, print_blob=True)
@given(payloads)
def test_what_fits_is_shown_whole(parts: list[bytes]) -> None:
    room = sum(len(part) + 31 * (part.count(b"\n") + 1) for part in parts)
    # A frame that lies across both halves counts its timestamp twice.
    assert filled(2 * room + 62, frames_of(*parts)).text == render(frames_of(*parts))


@settings(max_examples=200, print_blob=True)
@given(st.text("ab\n\u00e9\u20ac\U0001f600", min_size=1, max_size=400), st.integers(1, 30), st.data())
def test_head_and_tail_are_the_ends_of_the_stream(text: str, size: int, data: st.DataObject) -> None:
    raw = text.encode()
    frames = frames_of(*(raw[start : start + size] for start in range(0, len(raw), size)))
    log = filled(data.draw(st.integers(0, 600)), frames)
    gap = GAP.search(log.text)
    if gap is None:
        assert clean_output(log.text) == text
        return
    above, _, below = log.text.partition(MARK.format(count=gap[1], stream="stdout"))
    head, tail = clean_output(above), clean_output(below)
    assert text.startswith((head, head.removesuffix("\n")))  # the line end may be the mark's
    assert text.endswith(tail)
    assert "\ufffd" not in head + tail, "a character was cut in two"


def test_the_mark_counts_the_bytes_and_names_the_call_that_has_all() -> None:
    log = BoundedLog(200, "stderr")
    for frame in frames_of(*(b"line %03d\n" % number for number in range(50))):
        log.add(frame)
    lines = log.text.split("\n")
    assert lines[0].endswith("Z line 000")
    assert lines[-2].endswith("Z line 049")
    shown = sum(len(line) - 31 + 1 for line in lines[:-1] if "line" in line and "left out" not in line)
    assert f"[... {50 * 9 - shown} bytes of this stream are left out here; job.iter_log('stderr')" in log.text


def test_a_flood_of_empty_lines_stays_within_the_column() -> None:
    # Each of these bytes would become a timestamp of 31 characters.
    log = filled(64 * 1024, frames_of(b"\n" * 500_000))
    assert len(log.text) < 65 * 1024
    assert log.total_bytes == 500_000


def test_frames_without_bytes_are_not_kept() -> None:
    log = BoundedLog(100)
    for _ in range(10_000):
        log.add(LogFrame(STDOUT, NOW_NS, b""))
    assert (log.text, log.total_bytes) == ("", 0)
    assert not log._head
    assert not log._tail


@pytest.mark.parametrize("payload", [b"\n", b"x", b"a line of a program\n", b"y" * 16_384])
def test_memory_does_not_grow_with_the_stream(payload: bytes) -> None:
    log = BoundedLog(64 * 1024)
    frame = LogFrame(STDOUT, NOW_NS, payload)
    kept = []
    for number in range(1, 30_001):
        log.add(frame)
        if number % 15_000 == 0:
            kept.append(len(log._head) + len(log._tail))
    assert kept[0] == kept[1]
    assert kept[1] * (len(payload) + 31) <= 64 * 1024 + 2 * (len(payload) + 31)


def test_a_character_cut_between_frames_is_whole_and_a_lone_piece_has_its_timestamp() -> None:
    euro = "\u20ac".encode()
    one = LogFrame(STDOUT, NOW_NS, b"a\n" + euro[:1])
    assert render([one, LogFrame(STDOUT, NOW_NS, euro[1:])]) == f"{STAMP}a\n{STAMP}\u20ac"
    assert render([one]) == f"{STAMP}a\n{STAMP}\ufffd"
