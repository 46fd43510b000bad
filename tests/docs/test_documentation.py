"""The documentation is complete: what the code has, the pages name."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
from django.core.management import get_commands

from container_manager.conf import Settings
from container_manager.core.outcome import REASONS, ExitReason
from container_manager.core.retry import RETRIED_UNNAMED, parse_retry

PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = PROJECT / "container_manager"
REFERENCE = PROJECT / "docs" / "reference"


@pytest.mark.parametrize("item", fields(Settings), ids=lambda item: item.name)
def test_each_setting_is_documented_with_its_default(item: object) -> None:
    name = item.name  # type: ignore[attr-defined]
    row = re.search(
        rf"^\| `{name}` \| (.+?) \| (.+) \|$", (REFERENCE / "settings.md").read_text(), re.MULTILINE
    )
    assert row, f"docs/reference/settings.md has no row for {name}"
    default = getattr(Settings(), name)
    expected = f'"{default}"' if isinstance(default, str) else str(default).replace("'", '"')
    assert row[1] == expected, f"the default of {name} is {default!r}, the page says {row[1]}"


@pytest.mark.parametrize("item", fields(Settings), ids=lambda item: item.name)
def test_each_setting_is_read_by_something(item: object) -> None:
    name = item.name  # type: ignore[attr-defined]
    readers = [
        path
        for path in PACKAGE.rglob("*.py")
        if re.search(rf"\.{name}\b", path.read_text()) and path.name != "checks.py"
    ]
    assert readers, f"nothing reads {name}"


@pytest.mark.parametrize("reason", list(ExitReason))
def test_each_exit_reason_has_a_row_with_its_remedy(reason: ExitReason) -> None:
    page = (REFERENCE / "exit-reasons.md").read_text()
    row = re.search(rf"^\| `{reason}` \| \w+ \| .+ \| (.+) \|$", page, re.MULTILINE)
    assert row, f"docs/reference/exit-reasons.md has no row for {reason}"
    assert row[1] == (REASONS[reason].remedy or "-")


def test_each_management_command_is_documented() -> None:
    page = (REFERENCE / "commands.md").read_text()
    ours = sorted(name for name, app in get_commands().items() if app == "container_manager")
    assert ours
    missing = [name for name in ours if f"## {name}" not in page]
    assert not missing, f"docs/reference/commands.md has no section for {missing}"


def test_each_option_of_each_command_is_documented() -> None:
    from django.core.management import load_command_class
    from django.core.management.base import BaseCommand

    page = (REFERENCE / "commands.md").read_text()
    standard = {
        option
        for action in BaseCommand().create_parser("manage.py", "x")._actions
        for option in action.option_strings
    }
    missing = []
    for name, app in get_commands().items():
        if app != "container_manager":
            continue
        parser = load_command_class("container_manager", name).create_parser("manage.py", name)
        for action in parser._actions:
            own = [
                option
                for option in action.option_strings
                if option.startswith("--") and option not in standard
            ]
            missing += [f"{name} {option}" for option in own if f"`{option}" not in page]
    assert not missing, f"docs/reference/commands.md does not name {missing}"


def test_each_option_tells_its_value_and_its_purpose() -> None:
    from django.core.management import load_command_class
    from django.core.management.base import BaseCommand

    standard = {action.dest for action in BaseCommand().create_parser("manage.py", "x")._actions}
    for name, app in get_commands().items():
        if app != "container_manager":
            continue
        for action in load_command_class("container_manager", name).create_parser("manage.py", name)._actions:
            if action.dest in standard:
                continue
            assert action.help, f"{name}: {action.dest} has no help"
            told = action.nargs == 0 or action.choices or action.metavar
            assert told, f"{name}: the value of {action.dest} has no name"
            if action.default not in (None, False, "", []):
                assert f"default: {action.default}" in action.help, f"{name}: {action.dest} hides its default"


def test_the_retry_policies_of_the_page_are_policies() -> None:
    page = (PROJECT / "docs" / "how-to" / "retry.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    given = [
        ast.literal_eval(keyword.value)
        for call in ast.walk(ast.parse(block))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "retry"
    ]
    assert [parse_retry(policy).attempts for policy in given] == [3, 5]
    unnamed = re.search(r"if its program ran and failed:\n(.*?)\. What never ran", page, re.DOTALL)
    assert unnamed is not None
    assert set(re.findall(r"`(\w+)`", unnamed[1])) == set(RETRIED_UNNAMED)
