"""Environment variables: reading KEY=value text, checking, merging, hiding the values."""

from __future__ import annotations

import io
from collections.abc import Mapping

from dotenv.parser import parse_stream

from container_manager.core.errors import InvalidJob

TEXT_FIELD = "environment_variables_text"
FIELD = "environment_vars"
#: What stands for every value wherever an environment is shown.
REDACTED = "\u2022\u2022\u2022\u2022\u2022\u2022"


def parse_environment_text(text: str) -> dict[str, str]:
    """Read KEY=value lines with comments, quotes and quoted values of several lines; nothing is expanded.

    Raises InvalidJob naming the line and the key, never the value.
    """
    found: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(text)):
        line = binding.original.line + _leading_lines(binding.original.string)
        if binding.error:
            raise InvalidJob(
                TEXT_FIELD, f"line {line} cannot be read; write KEY=value, and close every quote."
            )
        if binding.key is None:
            continue  # a comment or an empty line
        if binding.value is None:
            raise InvalidJob(
                TEXT_FIELD, f"line {line}: {binding.key!r} has no '='; write {binding.key}=value."
            )
        found.update(check_environment({binding.key: binding.value}, field=f"{TEXT_FIELD}, line {line}"))
    return found


def check_environment(variables: object, field: str = FIELD) -> dict[str, str]:
    """Check a mapping of variables. Raises InvalidJob naming the key, never the value."""
    if not isinstance(variables, Mapping):
        raise InvalidJob(field, f"it is a {type(variables).__name__}; give a dict of strings.")
    checked: dict[str, str] = {}
    for key, value in variables.items():
        if not isinstance(key, str) or not key:
            raise InvalidJob(field, f"{key!r} is not the name of a variable; use a non-empty string.")
        if "=" in key or "\0" in key or "\n" in key or "\r" in key:
            raise InvalidJob(field, f"the name {key!r} has '=', NUL or a line break in it; take it out.")
        if key != key.strip():
            raise InvalidJob(field, f"the name {key!r} begins or ends with a space; take it out.")
        if not isinstance(value, str):
            raise InvalidJob(field, f"{key!r} has a {type(value).__name__} as its value; give a string.")
        if "\0" in value:
            raise InvalidJob(field, f"the value of {key!r} has a NUL in it, which no environment can hold.")
        checked[key] = value
    return checked


def merge(template: Mapping[str, str], overrides: Mapping[str, str]) -> dict[str, str]:
    """The template's variables with the job's own over them."""
    return {**template, **overrides}


def redact(variables: Mapping[str, str]) -> dict[str, str]:
    """The names with every value hidden; an empty value is shown as empty."""
    return {key: REDACTED if value else "" for key, value in variables.items()}


def _leading_lines(original: str) -> int:
    """How many line breaks stand before the text of a binding."""
    return original[: len(original) - len(original.lstrip())].count("\n")
