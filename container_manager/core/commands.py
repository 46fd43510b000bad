"""Commands: a list is exec form; a string is exec form too, unless it needs a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from container_manager.core.errors import InvalidJob
from container_manager.core.plain import unfit

FIELD = "command"
SHELL = ("/bin/sh", "-c")
#: What Linux takes for all arguments and variables together, with the usual stack limit of 8 MiB.
MAX_TOTAL_BYTES = 2 * 1024 * 1024

_TOKEN = re.compile(
    r"""
      (?P<blank>[ \t\r\n]+)
    | '(?P<single>[^']*)'
    | "(?P<double>(?:\\.|[^"\\])*)"
    | \\(?P<escaped>\r\n|.)
    | (?P<operator>[|&;<>()])
    | (?P<plain>[^ \t\r\n'"\\|&;<>()]+)
    | (?P<unclosed>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE_IN_DOUBLE = re.compile(r"\\([$`\"\\\n])")
_ANY_ESCAPE = re.compile(r"\\.", re.DOTALL)
#: `NAME=value program`, and `! program`, which turns the exit code round.
_LINE_ENDS = re.compile(r"\r+\n")
_SHELL_START = re.compile(r"[ \t\r\n]*(?:[A-Za-z_][A-Za-z0-9_]*=|![ \t\r\n])")
#: Inside these a shell follows rules of its own, so that only the shell can say whether a quote is open.
_OPAQUE = ("<<", "$(", "${", "`")


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


def parse_command(command: object, form: CommandForm | str = CommandForm.AUTO) -> ParsedCommand:
    r"""Decide how a command runs. Raises InvalidJob.

    A list is exec form; an empty string is the image's own command. Any other string is split as a POSIX
    shell splits it, and is exec form unless it means something to a shell alone:

    - outside quotes an operator or redirection, a newline between words, a glob (`*`, `?`, `[`);
    - `$` or a backtick outside single quotes;
    - a word that begins with `~`;
    - a first word that sets a variable (`NAME=value program`) or is `!`.

    A `#` is no comment in exec form: it reaches the program, which will say so. A shell's own commands
    (`cd`, `exit`, `export`) do not make a line shell form: alone they do nothing useful, and with an
    operator behind them they are shell form anyway. A backslash at the end of a line continues it, in both
    forms. Line ends as web forms send them (CR LF) become LF. An explicit `form` overrides all of this; in
    explicit exec form operators and `$` are ordinary characters.
    """
    wanted = _form(form)
    exec_list = not isinstance(command, str)
    if isinstance(command, str):
        parsed = _from_text(command, wanted)
    elif isinstance(command, Sequence) and not isinstance(command, bytes | bytearray | memoryview):
        parsed = _from_list(command, wanted)
    else:
        raise InvalidJob(FIELD, f"it is a {type(command).__name__}; give a string or a list of strings.")
    for index, argument in enumerate(parsed.argv):
        problem = unfit(argument)
        if problem:
            raise InvalidJob(FIELD, f"item {index} {problem}." if exec_list else f"it {problem}.")
    total = sum(len(argument.encode()) + 1 for argument in parsed.argv)
    if total > MAX_TOTAL_BYTES:
        raise InvalidJob(
            FIELD,
            f"its arguments have {total} bytes together, and Linux takes {MAX_TOTAL_BYTES}; "
            "put the data into a file.",
        )
    return parsed


def needs_shell(text: str) -> bool:
    """Whether a command line means something to a shell that splitting alone would lose."""
    return _read(text).needs_shell


def _form(form: CommandForm | str) -> CommandForm:
    try:
        return CommandForm(form)
    except ValueError:
        known = ", ".join(repr(str(one)) for one in CommandForm)
        raise InvalidJob("command_form", f"{form!r} is no form of a command; use one of {known}.") from None


def _from_text(text: str, form: CommandForm) -> ParsedCommand:
    if form is not CommandForm.EXEC:
        text = _LINE_ENDS.sub("\n", text)  # once and for all: what is stored is read again
    reading = _read(text)
    shell = form is CommandForm.SHELL or (form is CommandForm.AUTO and reading.needs_shell)
    if reading.unclosed and not (shell and _may_close(text)):
        raise InvalidJob(FIELD, f"{_excerpt(text)} cannot be split: {_UNCLOSED[reading.unclosed]}.")
    if not reading.words and not reading.needs_shell:
        return ParsedCommand(text="", form=CommandForm.EXEC, argv=())
    if shell:
        return ParsedCommand(text=text, form=CommandForm.SHELL, argv=(*SHELL, text))
    if not reading.words[0]:
        raise InvalidJob(FIELD, "its first word is empty; begin with the name of a program.")
    return ParsedCommand(text=text, form=CommandForm.EXEC, argv=reading.words)


def _from_list(command: Sequence[object], form: CommandForm) -> ParsedCommand:
    if form is CommandForm.SHELL:
        raise InvalidJob(FIELD, "a list is exec form; give a string for the shell form.")
    argv: list[str] = []
    for index, word in enumerate(command):
        if not isinstance(word, str):
            raise InvalidJob(FIELD, f"item {index} is a {type(word).__name__}; give strings only.")
        argv.append(word)
    if not argv:
        raise InvalidJob(
            FIELD, "the list has no program in it; name one, or give an empty string for the image's own."
        )
    if not argv[0]:
        raise InvalidJob(FIELD, "the list has no program: its first item is empty; put the name there.")
    return ParsedCommand(text=shlex.join(argv), form=CommandForm.EXEC, argv=tuple(argv))


def _may_close(text: str) -> bool:
    """Whether a shell may find every quote closed where we do not: only the shell itself can say then."""
    return any(sign in text for sign in _OPAQUE) or not _read(text, comments=True).unclosed


class _Reading(NamedTuple):
    """One look at a command line: the words of exec form, and what a shell would make of it."""

    words: tuple[str, ...]
    needs_shell: bool
    unclosed: str  # the quote or backslash that is open at the end


_UNCLOSED = {
    "'": "a single quote is open at its end. Close every quote, or put a backslash before it",
    '"': "a double quote is open at its end. Close every quote, or put a backslash before it",
    "\\": "it ends in a backslash, which escapes nothing. Double it or take it out",
}


def _read(text: str, *, comments: bool = False) -> _Reading:
    """Split by the rules of a POSIX shell. `comments`: from a word that begins with `#` to the line's end."""
    words: list[str] = []
    word: list[str] | None = None  # None: between two words
    shell = _SHELL_START.match(text) is not None
    newline = False  # one was seen since the last word
    operator = False  # the last token was one: a comment may follow without a blank
    position = 0
    while match := _TOKEN.match(text, position):
        position = match.end()
        kind, token = match.lastgroup, match[match.lastgroup or 0]
        if kind == "blank":
            if word is not None:
                words.append("".join(word))
                word = None
            newline = newline or ("\n" in token and bool(words))
            continue
        if kind == "escaped" and token in {"\n", "\r\n"}:
            continue  # the line goes on
        if kind == "unclosed":
            return _Reading(tuple(words), shell, token)
        if kind == "plain" and comments and token.startswith("#") and (word is None or operator):
            end = text.find("\n", match.start())
            position = len(text) if end < 0 else end
            continue
        shell = shell or newline or kind == "operator" or _expands(kind, token, first=word is None)
        operator = kind == "operator"
        word = [] if word is None else word
        word.append(_ESCAPE_IN_DOUBLE.sub(_unescaped, token) if kind == "double" else token)
    if word is not None:
        words.append("".join(word))
    return _Reading(tuple(words), shell, "")


def _expands(kind: str | None, token: str, *, first: bool) -> bool:
    """Whether a shell would put something else in a token's place. `first`: it begins its word."""
    if kind == "double":
        return any(sign in _ANY_ESCAPE.sub("", token) for sign in "$`")
    return kind == "plain" and (any(sign in token for sign in "$`*?[") or (first and token[0] == "~"))


def _unescaped(match: re.Match[str]) -> str:
    return "" if match[1] == "\n" else match[1]


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
