"""Environment variables: reading KEY=value text, checking, merging, hiding the values."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping

from dotenv.parser import parse_stream

from container_manager.core.errors import InvalidJob
from container_manager.core.plain import unfit

TEXT_FIELD = "environment_variables_text"
FIELD = "environment_vars"
#: What stands for every value wherever an environment is shown.
REDACTED = "\u2022\u2022\u2022\u2022\u2022\u2022"

_LINE_END = re.compile(r"\r\n|\n|\r")


def parse_environment_text(text: object, field: str = TEXT_FIELD) -> dict[str, str]:
    r"""Read KEY=value lines: comments, `export KEY=value`, quotes, quoted values of several lines.

    Nothing is expanded: `$` stays `$`. Double quotes know `\n`, `\t`, `\"` and `\\`; single quotes know
    `\'` and `\\`. An unquoted value ends at a blank before `#`. Where a key comes twice the later one counts.
    Raises InvalidJob, which names the line and the key, never the value.
    """
    if not isinstance(text, str):
        raise InvalidJob(field, f"it is a {type(text).__name__}; give KEY=value lines.")
    found: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(text.removeprefix("\ufeff"))):
        place = f"line {binding.original.line + _leading_lines(binding.original.string)}"
        if binding.error:
            raise InvalidJob(
                field,
                f"{place} cannot be read; write KEY=value, close every quote and put nothing behind it.",
            )
        if binding.key is None:
            continue  # a comment or an empty line
        if binding.value is None:
            raise InvalidJob(field, f"{place}: {binding.key!r} has no '='; write {binding.key}=value.")
        problem = _problem(binding.key, binding.value)
        if problem:
            raise InvalidJob(field, f"{place}: {problem}.")
        found[binding.key] = binding.value
    return found


def check_environment(variables: object, field: str = FIELD) -> dict[str, str]:
    """A copy of the mapping, if it can be an environment. Raises InvalidJob naming the key, never the value.

    Values are strings alone: what True, None or 1.0 should read as is for the caller to say.
    """
    if not isinstance(variables, Mapping):
        raise InvalidJob(field, f"it is a {type(variables).__name__}; give a dict of strings.")
    checked: dict[str, str] = {}
    for key, value in variables.items():
        problem = _problem(key, value)
        if problem:
            raise InvalidJob(field, f"{problem}.")
        checked[key] = value
    return checked


def merge(template: Mapping[str, str], overrides: Mapping[str, str]) -> dict[str, str]:
    """The template's variables with the job's own over them."""
    return {**template, **overrides}


def redact(variables: Mapping[str, str]) -> dict[str, str]:
    """The names with every value hidden; an empty value is shown as empty."""
    return {key: REDACTED if value else "" for key, value in variables.items()}


def _problem(key: object, value: object) -> str:
    """What is wrong with one variable, and what to do about it; empty when nothing is."""
    if not isinstance(key, str) or not key:
        return f"{key!r} is not the name of a variable; use a string that is not empty"
    if any(sign in key for sign in "=\n\r") or unfit(key):
        return f"the name {_excerpt(key)} has '=', NUL, a line break or no character in it; take it out"
    if key != key.strip():
        return f"the name {key!r} begins or ends with a space; take it out"
    if value is None:
        return f"{key!r} has a NoneType as its value; give a string, or leave the variable out"
    if not isinstance(value, str):
        return f"{key!r} has a value of type {type(value).__name__}; give a string, such as str(...) of it"
    problem = unfit(value) or unfit(f"{key}={value}")
    return f"the value of {key!r} {problem}" if problem else ""


def _leading_lines(original: str) -> int:
    """How many line breaks stand before the text of a binding."""
    return len(_LINE_END.findall(original[: len(original) - len(original.lstrip())]))


def _excerpt(key: str) -> str:
    return repr(key if len(key) <= 60 else key[:57] + "...")
