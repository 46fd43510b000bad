"""What engines and registries say, as records keep it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_manager.core.enginetext import (
    LOG_LENGTH,
    MESSAGE_LENGTH,
    BoundedLines,
    log_text,
    message_text,
    shorten,
)


@pytest.mark.parametrize("keep", [message_text, log_text])
@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("denied: \ud800", "denied: ⟨U+D800⟩"),
        ("a\0b", "a⟨NUL⟩b"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("Zugriff verweigert: ä€😀", "Zugriff verweigert: ä€😀"),
    ],
)
def test_what_no_database_takes_is_shown_as_a_sign(keep: Callable[[str], str], said: str, kept: str) -> None:
    assert keep(said) == kept


@given(st.text(st.characters(exclude_categories=())))
def test_whatever_is_said_can_be_stored(said: str) -> None:
    kept = message_text(said)
    kept.encode()
    assert "\0" not in kept
    assert message_text(kept) == kept


def test_a_message_of_a_megabyte_keeps_its_ends() -> None:
    kept = message_text("begin" + "x" * 1_000_000 + "end")
    assert kept.startswith("beginx")
    assert kept.endswith("xend")
    assert f"{1_000_008 - MESSAGE_LENGTH} characters are left out" in kept
    assert len(kept) < MESSAGE_LENGTH + 100
    assert len(log_text("\0" * 1_000_000)) < LOG_LENGTH + 100


def test_a_short_text_is_left_alone() -> None:
    assert shorten("1234", 4) == "1234"
    assert shorten("12345", 4) == "12[... 1 characters are left out here ...]45"


class TestLines:
    def test_few_lines_are_all_there(self) -> None:
        lines = BoundedLines()
        assert lines.text == ""
        for entry in ("pull", "create", "two\nlines"):
            lines.add(entry)
        assert lines.text == "pull\ncreate\ntwo\nlines\n"

    def test_lines_without_end_keep_the_first_and_the_last(self) -> None:
        lines = BoundedLines(1000)
        for number in range(100_000):
            lines.add(f"event {number}")
        assert len(lines.text) < 1100
        kept = lines.text.splitlines()
        assert (kept[0], kept[-1]) == ("event 0", "event 99999")
        (mark,) = [line for line in kept if "left out" in line]
        assert mark == f"[... {100_000 - len(kept) + 1} lines are left out here ...]"

    @given(st.lists(st.text(st.characters(codec="ascii", exclude_characters="["), max_size=30)))
    def test_no_line_is_lost_without_being_counted(self, entries: list[str]) -> None:
        lines = BoundedLines(200, entry_length=50)
        for entry in entries:
            lines.add(entry)
        written = "".join(f"{entry}\n" for entry in entries).count("\n")
        marks = [line for line in lines.text.split("\n") if "left out" in line]
        left_out = sum(int(mark.split()[1]) for mark in marks)
        assert lines.text.count("\n") - len(marks) + left_out == written

    def test_the_next_worker_goes_on_where_the_last_one_stopped(self) -> None:
        one, whole = BoundedLines(1000), BoundedLines(1000)
        for number in range(1000):
            whole.add(f"event {number}")
            one.add(f"event {number}")
            if number % 100 == 0:
                text = one.text
                one = BoundedLines(1000)
                one.restore(text)
                assert one.text == text
        assert one.text.count("left out") == 1
        assert len(one.text) < 1100
        assert one.text.splitlines()[-1] == "event 999"
        left_out = int(next(line for line in one.text.splitlines() if "left out" in line).split()[1])
        assert len(one.text.splitlines()) - 1 + left_out == 1000
