"""Splitting command lines: the words are those of a real /bin/sh, whatever the quotes and line ends."""

from __future__ import annotations

import re
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container_manager.core.commands import MAX_TOTAL_BYTES, CommandForm, parse_command
from container_manager.core.errors import InvalidJob

#: A carriage return is left out: a shell takes a lone one for a letter, and we take it for a blank.
ALPHABET = "ab=~#!$*?[];|&<>()`'\"\\ \t\n\u00e9\u00a0"


def words_of_a_shell(text: str) -> tuple[str, ...]:
    """What /bin/sh hands over for the words of `text`. The function's name keeps `a=b` an argument."""
    text = re.sub(r"\A(?:[ \t\n]|\\\n)*", "", text)  # a line break would end the call before its words
    script = "show() { for word; do printf '%s\\0' \"$word\"; done; }\nshow " + text
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True, cwd="/")
    return tuple(done.stdout.decode().split("\0")[:-1])


@settings(max_examples=250, deadline=None, print_blob=True)
@given(st.text(ALPHABET, max_size=24))
def test_exec_form_means_what_a_real_shell_would_have_made_of_it(text: str) -> None:
    try:
        parsed = parse_command(text)
    except InvalidJob:
        return
    words = parsed.argv
    # A `#` that begins a word is the one documented difference: exec form knows no comments.
    if parsed.form is CommandForm.EXEC and not any(word.startswith("#") for word in words):
        assert words == words_of_a_shell(text)


@settings(max_examples=300, print_blob=True)
@given(st.text(ALPHABET + "\r", max_size=24), st.sampled_from(CommandForm))
def test_what_is_stored_runs_the_same_again(text: str, form: CommandForm) -> None:
    try:
        parsed = parse_command(text, form)
    except InvalidJob:
        return
    assert parsed.form is not CommandForm.AUTO
    assert parse_command(parsed.text, parsed.form) == parsed


@pytest.mark.parametrize(
    ("text", "argv"),
    [
        ("python manage.py load \\\n    --file x.csv", ("python", "manage.py", "load", "--file", "x.csv")),
        ("python manage.py load \\\r\n    --file x", ("python", "manage.py", "load", "--file", "x")),
        ('echo "one \\\ntwo"', ("echo", "one two")),
        ('echo "\\$5" "\\`"', ("echo", "$5", "`")),
        ("\n  python x.py\n", ("python", "x.py")),
        ("python x.py\r\n", ("python", "x.py")),
        ("\\\n", ()),
        (
            'python -c "import os; print(os.getcwd())"',
            ("python", "-c", "import os; print(os.getcwd())"),
        ),
    ],
)
def test_line_ends_that_mean_nothing_do_not_call_for_a_shell(text: str, argv: tuple[str, ...]) -> None:
    # Without a shell in between a program gets SIGTERM itself.
    parsed = parse_command(text)
    assert (parsed.form, parsed.argv) == (CommandForm.EXEC, argv)


def test_a_script_from_a_web_form_reaches_the_shell_with_plain_line_ends() -> None:
    parsed = parse_command("cd /\r\nls\r\n")
    assert parsed.argv == ("/bin/sh", "-c", "cd /\nls\n")
    assert subprocess.run(parsed.argv, check=False, capture_output=True).returncode == 0


def test_a_list_keeps_its_line_ends() -> None:
    parsed = parse_command(["printf", "a\r\nb"])
    assert parse_command(parsed.text, parsed.form).argv == ("printf", "a\r\nb")


@pytest.mark.parametrize(
    "text",
    [
        "cat <<END\nit's fine\nEND",
        "ls /  | cat # don't mind",
        'echo "$(echo \'"\')" | cat',
        "! grep -q nothing /etc/hostname",
    ],
)
def test_what_only_the_shell_can_judge_is_left_to_it(text: str) -> None:
    parsed = parse_command(text)
    assert parsed.argv == ("/bin/sh", "-c", text)
    done = subprocess.run(parsed.argv, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("text", ["ls | cat 'x", 'ls; echo "x', "ls && echo \\", "echo don't # why"])
def test_an_open_quote_is_refused_in_shell_form_as_well(text: str) -> None:
    with pytest.raises(InvalidJob, match="cannot be split"):
        parse_command(text)


def test_a_form_may_be_its_name_and_an_unknown_one_is_refused() -> None:
    assert parse_command("ls", "shell").argv == ("/bin/sh", "-c", "ls")
    with pytest.raises(InvalidJob, match="'auto', 'exec', 'shell'") as caught:
        parse_command("ls", "bash")
    assert caught.value.field == "command_form"


@pytest.mark.parametrize("command", ["echo \ud800", ["echo", "\udfff"]])
def test_half_a_character_is_refused_before_a_database_trips_over_it(command: object) -> None:
    with pytest.raises(InvalidJob, match="surrogate"):
        parse_command(command)


def test_all_arguments_together_have_a_limit_too() -> None:
    word = "x" * 100_000
    fits = ["true"] + [word] * (MAX_TOTAL_BYTES // 100_001)
    assert len(parse_command(fits).argv) == len(fits)
    with pytest.raises(InvalidJob, match="put the data into a file"):
        parse_command([*fits, word])
