"""Commands: exec form by default, a shell only where one is meant."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_manager.core.commands import (
    CommandForm,
    needs_shell,
    parse_command,
)
from container_manager.core.errors import InvalidJob

#: What Linux takes as one argument, its closing NUL included.
MAX_ARGUMENT_BYTES = 128 * 1024

EXEC = [
    ("python manage.py migrate", ("python", "manage.py", "migrate")),
    ("  ls   -l  ", ("ls", "-l")),
    ("echo 'a b' \"c d\"", ("echo", "a b", "c d")),
    ("echo 'a;b|c>d&e'", ("echo", "a;b|c>d&e")),
    ("echo '$HOME' '`id`' '*'", ("echo", "$HOME", "`id`", "*")),
    ('echo "a;b" "*.py"', ("echo", "a;b", "*.py")),
    (r"echo \$HOME \* \;", ("echo", "$HOME", "*", ";")),
    (r'echo "a\b" "\"" "\\"', ("echo", r"a\b", '"', "\\")),
    ("echo ''", ("echo", "")),
    (r'echo "\$5" "\`"', ("echo", "$5", "`")),
    ("echo a \\\n b", ("echo", "a", "b")),
    ('echo "a\\\nb"', ("echo", "ab")),
    ("echo a~b", ("echo", "a~b")),
    ("echo '~'", ("echo", "~")),
    ("echo # no comment", ("echo", "#", "no", "comment")),
    ("echo KEY=value", ("echo", "KEY=value")),
    ("--key=value", ("--key=value",)),
    ("./run-1=2", ("./run-1=2",)),
    ("echo {a,b} !", ("echo", "{a,b}", "!")),
    ("grüße 'schöne Welt'", ("grüße", "schöne Welt")),
    ("echo 'two\nlines'", ("echo", "two\nlines")),
]

SHELL = [
    "a | b",
    "a && b",
    "a & b",
    "a; b",
    "a > out",
    "a < in",
    "(a)",
    "a\nb",
    "ls *.py",
    "ls file?",
    "ls [ab]",
    "echo $HOME",
    'echo "$HOME"',
    "echo `id`",
    'echo "`id`"',
    "NAME=value program",
    "NAME=value",
    "ls ~",
    "ls ~root/x",
    "echo a\t~",
    r"echo 'it'\''s'; ls",
    'echo "a"$b',
]


@pytest.mark.parametrize(("text", "argv"), EXEC)
def test_a_plain_line_is_split_and_runs_without_a_shell(text: str, argv: tuple[str, ...]) -> None:
    parsed = parse_command(text)
    assert parsed.form is CommandForm.EXEC
    assert parsed.argv == argv


@pytest.mark.parametrize("text", SHELL)
def test_what_only_a_shell_understands_goes_to_a_shell_as_it_is(text: str) -> None:
    parsed = parse_command(text)
    assert parsed.form is CommandForm.SHELL
    assert parsed.argv == ("/bin/sh", "-c", text)
    assert parsed.text == text


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_nothing_means_the_command_of_the_image(text: str) -> None:
    parsed = parse_command(text)
    assert (parsed.text, parsed.form, parsed.argv) == ("", CommandForm.EXEC, ())


def test_a_list_is_taken_word_by_word() -> None:
    words = ["python", "-c", "print('a | b'); $HOME", "", "two\nlines"]
    parsed = parse_command(words)
    assert parsed.form is CommandForm.EXEC
    assert parsed.argv == tuple(words)
    assert parse_command(tuple(words)) == parsed


@pytest.mark.parametrize("form", [CommandForm.AUTO, CommandForm.EXEC])
def test_an_explicit_form_wins_over_the_look_of_it(form: CommandForm) -> None:
    assert parse_command("echo hello", CommandForm.SHELL).argv == ("/bin/sh", "-c", "echo hello")
    assert parse_command("echo $HOME | cat", CommandForm.EXEC).argv == ("echo", "$HOME", "|", "cat")
    assert parse_command(["echo", "$HOME"], form).argv == ("echo", "$HOME")


@pytest.mark.parametrize(
    ("command", "form", "says"),
    [
        ("echo 'open", CommandForm.AUTO, "Close every quote"),
        ('echo "open', CommandForm.SHELL, "Close every quote"),
        ("echo open\\", CommandForm.AUTO, "cannot be split"),
        ("echo \0", CommandForm.AUTO, "NUL"),
        ("'' a", CommandForm.AUTO, "first word is empty"),
        ([], CommandForm.AUTO, "no program"),
        (["", "a"], CommandForm.AUTO, "no program"),
        (["a", 1], CommandForm.AUTO, "item 1 is a int"),
        (["a", "b\0"], CommandForm.AUTO, "item 1 has a NUL"),
        (["a"], CommandForm.SHELL, "give a string for the shell form"),
        (None, CommandForm.AUTO, "NoneType"),
        (b"ls", CommandForm.AUTO, "bytes"),
        ({"a": 1}, CommandForm.AUTO, "dict"),
        (7, CommandForm.AUTO, "int"),
    ],
)
def test_a_bad_command_names_the_field_and_the_fault(command: object, form: CommandForm, says: str) -> None:
    with pytest.raises(InvalidJob, match=says) as caught:
        parse_command(command, form)
    assert caught.value.field == "command"


def test_an_argument_may_be_as_long_as_the_kernel_takes_and_no_longer() -> None:
    longest = "x" * (MAX_ARGUMENT_BYTES - 1)
    assert subprocess.run(["/bin/true", longest], check=False).returncode == 0
    assert parse_command(["/bin/true", longest]).argv[1] == longest
    with pytest.raises(OSError, match="Argument list too long"):
        subprocess.run(["/bin/true", longest + "x"], check=False)
    for command in (["/bin/true", longest + "x"], f"echo {longest};x", ["/bin/true", "ü" * 65536]):
        with pytest.raises(InvalidJob, match="128 KiB"):
            parse_command(command)


@pytest.mark.parametrize("text", [*(text for text, _ in EXEC), *SHELL, "", "a 'b' | c"])
def test_what_is_stored_gives_the_same_command_again(text: str) -> None:
    parsed = parse_command(text)
    assert parse_command(parsed.text, parsed.form) == parsed


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=9), min_size=1))
def test_a_stored_list_gives_the_same_words_again(words: list[str]) -> None:
    if not words[0]:
        words[0] = "program"
    parsed = parse_command(words)
    assert parsed.argv == tuple(words)
    assert parse_command(parsed.text, parsed.form) == parsed


@pytest.mark.parametrize("text", ["", "plain", "a 'b;c' \"d e\"", r"a\ b"])
def test_what_needs_no_shell(text: str) -> None:
    assert not needs_shell(text)
