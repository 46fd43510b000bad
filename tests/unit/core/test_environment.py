"""Environment text: what is read, what is refused and where, and that no value ever shows."""

from __future__ import annotations

import io

import pytest
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st

from container_manager.core.environment import (
    REDACTED,
    check_environment,
    merge,
    parse_environment_text,
    redact,
)
from container_manager.core.errors import InvalidJob

SECRET = "hunter2-geheim"


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("", {}),
        ("# a comment\n\n   \n", {}),
        ("A=1", {"A": "1"}),
        ("A=1\nB=2\n", {"A": "1", "B": "2"}),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("export A=1", {"A": "1"}),
        ("A =  1  ", {"A": "1"}),
        ("A=", {"A": ""}),
        ("A=''", {"A": ""}),
        ("A='a b' # why", {"A": "a b"}),
        ("A=a b # why", {"A": "a b"}),
        ("A=a#b", {"A": "a#b"}),
        ('A="two\nlines"', {"A": "two\nlines"}),
        ("A='two\nlines'\nB=2", {"A": "two\nlines", "B": "2"}),
        (r'A="two\nlines"', {"A": "two\nlines"}),
        (r"A='two\nlines'", {"A": r"two\nlines"}),
        ("A=${HOME}$USER", {"A": "${HOME}$USER"}),
        ("A=x=y", {"A": "x=y"}),
        ("A=1\nA=2", {"A": "2"}),
        ("A=ü€\U0001f600", {"A": "ü€\U0001f600"}),
        ("a.b-c=1", {"a.b-c": "1"}),
    ],
)
def test_what_a_text_says(text: str, variables: dict[str, str]) -> None:
    assert parse_environment_text(text) == variables


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (f"A={SECRET}\nB\n", 2, "'B' has no '='"),
        (f"# a\n\n\nA='{SECRET}\n", 4, "cannot be read"),
        (f"A='two\nlines {SECRET}'\n\n=x\n", 4, "write KEY=value"),
        (f"A={SECRET}\r\n\r\nB\r\n", 3, "'B' has no '='"),
        (f"A='{SECRET}\0'", 1, "'A' has a NUL"),
        (f"\n\nA\0={SECRET}", 3, "NUL|no character"),
        (f"A='{SECRET}' B", 1, "cannot be read"),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_never_by_its_value(text: str, line: int, says: str) -> None:
    with pytest.raises(InvalidJob, match=says) as caught:
        parse_environment_text(text)
    assert f"line {line}" in str(caught.value)
    assert caught.value.field.startswith("environment_variables_text")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ([("A", SECRET)], "it is a list"),
        (f"A={SECRET}", "it is a str"),
        (None, "NoneType"),
        ({"": SECRET}, "not the name of a variable"),
        ({1: SECRET}, "not the name of a variable"),
        ({"A=B": SECRET}, "'='"),
        ({"A\0": SECRET}, "NUL|no character"),
        ({"A\nB": SECRET}, "line break"),
        ({"A\rB": SECRET}, "line break"),
        ({" A": SECRET}, "begins or ends with a"),
        ({"A": f"{SECRET}\0"}, "the value of 'A' has a NUL"),
        ({"A": 5}, "int"),
        ({"A": None}, "None"),
        ({"A": SECRET.encode()}, "bytes"),
    ],
)
def test_a_bad_mapping_is_refused_without_its_values(variables: object, says: str) -> None:
    with pytest.raises(InvalidJob, match=says) as caught:
        check_environment(variables)
    assert caught.value.field == "environment_vars"
    assert SECRET not in str(caught.value)


def test_the_jobs_own_win_over_the_templates() -> None:
    template = {"A": "1", "B": "2"}
    assert merge(template, {"B": "3", "C": "4"}) == {"A": "1", "B": "3", "C": "4"}
    assert template == {"A": "1", "B": "2"}


def test_redacting_hides_values_and_shows_which_are_empty() -> None:
    assert redact({"A": SECRET, "B": ""}) == {"A": REDACTED, "B": ""}


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True).filter(lambda name: name != "export")
VALUES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20)


def quoted(value: str) -> str:
    """A value as our documentation tells people to write it: in single quotes, these two escaped."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_quoted_values_survive_whatever_is_in_them(variables: dict[str, str]) -> None:
    text = "\n".join(f"{name}={quoted(value)}" for name, value in variables.items())
    assert parse_environment_text(text) == variables


@given(st.text("AB=' \"#\n\\é\r\0$", max_size=25))
def test_any_text_is_read_as_dotenv_reads_it_or_refused(text: str) -> None:
    try:
        variables = parse_environment_text(text)
    except InvalidJob:
        return
    assert variables == dotenv_values(stream=io.StringIO(text), interpolate=False)
