"""`clean_output` and `parsed_output`: what is taken off, and which JSON counts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container_manager.core.logtext import clean_output, parse_output, render
from container_manager.core.observation import STDOUT, LogFrame

NOW_NS = 1_795_485_723_123_456_789
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b[2K\x1b[1Gdone", "done"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;https://example.com\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPdevice\x1b\\x", "x"),
        ("\x1b(Bx\x1b=\x1bc", "x"),
        ("\x9b31mred\x9b0m", "red"),
        ("\x9d0;title\x9ctext", "text"),
        ("a\tb\rc\x08", "a\tb\rc\x08"),
        ("50 %\x1b", "50 %"),
        # A string that never ends does not swallow the log behind it.
        ("\x1b]0;title\nthe result\n", "0;title\nthe result\n"),
        ("\x1bPq\nthe result\n", "q\nthe result\n"),
    ],
)
def test_terminal_escapes_go_and_text_stays(raw: str, clean: str) -> None:
    assert clean_output(raw) == clean
    assert "\x1b" not in clean_output(raw)


@settings(max_examples=300, print_blob=True)
@given(st.lists(st.text("ab\n \u20ac2026-T:.Z\0", max_size=40), max_size=6))
def test_cleaning_takes_off_what_rendering_put_on(parts: list[str]) -> None:
    frames = [LogFrame(STDOUT, NOW_NS, part.encode()) for part in parts]
    assert clean_output(render(frames)) == "".join(parts).replace("\0", "\u2400")


def test_a_programs_own_timestamp_stays() -> None:
    own = "2026-11-24T01:02:03.123456789Z started\n"
    assert clean_output(render([LogFrame(STDOUT, NOW_NS, own.encode())])) == own


@settings(print_blob=True)
@given(documents, st.sampled_from([None, 2]))
def test_a_document_is_what_it_was(document: Any, indent: int | None) -> None:
    assert parse_output(json.dumps(document, indent=indent) + "\n") == document


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("", None),
        ("  \n", None),
        ("loading\ndone\n", None),
        ('loading\n{"rows": 3}\n', {"rows": 3}),
        ('loading\r\n{"rows": 3}\r\n', {"rows": 3}),
        ('{"rows": 3}\nbye\n', {"rows": 3}),
        ('{"a": 1}\n{"a": 2}\n', {"a": 2}),
        ("[1, 2]\n[INFO] read [3 of 7]\n", [1, 2]),
        ("[INFO] done\n", None),
        ("count\n42\n", None),
        ("42\n", 42),
        ('"done"', "done"),
        ('\ufeff{"a": 1}', {"a": 1}),
        # The rows of a larger document are not the result.
        ('begin\n[\n  {"a": 1},\n  {"a": 2}\n]\n', None),
        ("[" * 100_000, None),
        ("x\n" + "[" * 100_000 + "]" * 100_000, None),
    ],
)
def test_which_json_counts(text: str, parsed: Any) -> None:
    assert parse_output(text) == parsed
