"""Commands: a list is exec form; a string is exec form too, unless it needs a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from container_manager.core.errors import InvalidJob

FIELD = "command"
SHELL = ("/bin/sh", "-c")
#: The kernel's limit for one argument, its end included (MAX_ARG_STRLEN).
MAX_ARGUMENT_BYTES = 128 * 1024

_OPERATORS = set("|&;<>()\n*?[`")
_EXPANSIONS = set("$`")


class CommandForm(StrEnum):
    """How a command is run."""

    AUTO = "auto"  # by looking at it
    EXEC = "exec"  # the program and its arguments, no shell
    SHELL = "shell"  # as `/bin/sh -c <text>`


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedCommand:
    """What is stored (`text` and `form`, which give the same `argv` again), and what runs."""

    text: str
    form: CommandForm
    argv: tuple[str, ...]


def parse_command(command: object, form: CommandForm = CommandForm.AUTO) -> ParsedCommand:
    """Decide how a command runs. Raises InvalidJob.

    An empty string means the image's own command. A string needs a shell when it has, outside quotes, an
    operator, a redirection or a glob, when it has `$` or a backtick outside single quotes, or when its first
    word sets a variable or a word begins with `~`. A `#` is no comment: exec form knows none.
    """
    if isinstance(command, str):
        parsed = _from_text(command, form)
    elif isinstance(command, Sequence) and not isinstance(command, bytes | bytearray):
        parsed = _from_list(command, form)
    else:
        raise InvalidJob(FIELD, f"it is a {type(command).__name__}; give a string or a list of strings.")
    for argument in parsed.argv:
        if len(argument.encode(errors="surrogatepass")) >= MAX_ARGUMENT_BYTES:
            raise InvalidJob(
                FIELD, "one argument has 128 KiB or more, which no Linux accepts; put the data into a file."
            )
    return parsed


def needs_shell(text: str) -> bool:
    """Whether a command line means something to a shell that splitting alone would lose."""
    quote = ""
    escaped = False
    word_start = True
    for character in text:
        if escaped:
            escaped = False
        elif quote == "'":
            quote = "" if character == "'" else quote
        elif character == "\\":
            escaped = True
        elif quote == '"':
            if character in _EXPANSIONS:
                return True
            quote = "" if character == '"' else quote
        elif character in "'\"":
            quote = character
        elif character in _OPERATORS or character in _EXPANSIONS or (character == "~" and word_start):
            return True
        word_start = character.isspace() and not quote and not escaped
    return _sets_variable(text)


def _from_text(text: str, form: CommandForm) -> ParsedCommand:
    if "\0" in text:
        raise InvalidJob(FIELD, "it has a NUL in it, which no command can hold; take it out.")
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise InvalidJob(FIELD, f"{_excerpt(text)} cannot be split: {error}. Close every quote.") from None
    if not text.strip():
        return ParsedCommand(text="", form=CommandForm.EXEC, argv=())
    if form is CommandForm.SHELL or (form is CommandForm.AUTO and needs_shell(text)):
        return ParsedCommand(text=text, form=CommandForm.SHELL, argv=(*SHELL, text))
    if not words[0]:
        raise InvalidJob(FIELD, "its first word is empty; begin with the name of a program.")
    return ParsedCommand(text=text, form=CommandForm.EXEC, argv=words)


def _from_list(command: Sequence[object], form: CommandForm) -> ParsedCommand:
    if form is CommandForm.SHELL:
        raise InvalidJob(FIELD, "a list is exec form; give a string for the shell form.")
    argv: list[str] = []
    for index, word in enumerate(command):
        if not isinstance(word, str):
            raise InvalidJob(FIELD, f"item {index} is a {type(word).__name__}; give strings only.")
        if "\0" in word:
            raise InvalidJob(FIELD, f"item {index} has a NUL in it, which no command can hold; take it out.")
        argv.append(word)
    if not argv or not argv[0]:
        raise InvalidJob(
            FIELD, "the list has no program in it; give one, or an empty string for the image's own."
        )
    return ParsedCommand(text=shlex.join(argv), form=CommandForm.EXEC, argv=tuple(argv))


def _sets_variable(text: str) -> bool:
    """Whether the line begins as `NAME=value program`."""
    first = text.split(maxsplit=1)[0] if text.split() else ""
    name, equals, _ = first.partition("=")
    return bool(equals) and name.isidentifier() and name.isascii()


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
