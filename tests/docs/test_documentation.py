"""The documentation is complete: what the code has, the pages name."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
from django.core.management import get_commands

from container_manager.conf import BOUNDS, Settings
from container_manager.core.outcome import _EVIDENCE, REASONS, ExitReason
from container_manager.core.retry import RETRIED_UNNAMED, RetryPolicy, parse_retry
from tools import links

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
    (block, *_) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
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


def test_the_retry_page_says_what_a_policy_leaves_out() -> None:
    page = (PROJECT / "docs" / "how-to" / "retry.md").read_text()
    usual = RetryPolicy()
    for name in ("backoff_seconds", "factor", "max_backoff_seconds", "jitter"):
        assert f"`{name}` {getattr(usual, name):g}" in page, f"the page does not say the default of {name}"


def test_each_page_is_linked_from_the_readme_or_from_a_page_that_is() -> None:
    pages = set(links.documents())
    found, front = {PROJECT / "README.md"}, {PROJECT / "README.md"}
    while front:
        targets = {
            (page.parent / link.partition("#")[0]).resolve()
            for page in front
            for link in links.LINK.findall(page.read_text())
            if "://" not in link
        }
        front = (targets & pages) - found
        found |= front
    assert not pages - found, f"nothing leads to {sorted(str(page) for page in pages - found)}"


@pytest.mark.parametrize("page", links.documents(), ids=lambda page: page.name)
def test_no_table_is_split(page: Path) -> None:
    lines = ["", *page.read_text().splitlines(), ""]
    for number, line in enumerate(lines[1:-1], start=1):
        if line.startswith("|") and not lines[number - 1].startswith("|"):
            assert re.match(r"\|[-:| ]+\|$", lines[number + 1]), f"{page.name}:{number} begins no table"


def test_the_order_of_evidence_is_that_of_the_code() -> None:
    spoken = {  # by each piece of evidence, in words of the page
        "_our_own_doing": {"timeout", "deadline_exceeded", "cancelled"},
        "_gone": {"removed_externally"},
        "_never_started": {"command_not_found", "command_not_executable", "bad_user", "start_error"},
        "_no_start": {"host_lost"},
        "_out_of_memory": {"out_of_memory"},
        "_crash": {"host_crashed"},
        "_asked_for": {"timeout", "deadline_exceeded", "cancelled"},
        "_a_signal": {"engine_stopped", "killed_externally"},
        "_its_own_word": {"success", "application_error", "host_lost"},
    }
    page = (REFERENCE / "exit-reasons.md").read_text()
    items = re.findall(r"^\d\. (.*?)(?=^\d\.|^$)", page, re.MULTILINE | re.DOTALL)
    named = [set(re.findall(r"`(\w+)`", item)) for item in items]
    assert named == [spoken[evidence.__name__] for evidence in _EVIDENCE]


def test_each_system_check_is_documented() -> None:
    raised = set(re.findall(r'"(container_manager\.[EW]\d+)"', (PACKAGE / "checks.py").read_text()))
    page = (REFERENCE / "settings.md").read_text()
    assert raised
    assert raised == set(re.findall(r"^\| `(container_manager\.\w+)`", page, re.MULTILINE))


def test_the_bounds_of_the_workers_options_are_documented() -> None:
    page = (REFERENCE / "commands.md").read_text()
    for option, key in (("concurrency", "MAX_CONCURRENT_JOBS"), ("poll-interval", "POLL_INTERVAL")):
        least, most = BOUNDS[key]
        row = re.search(rf"^\| `--{option}` .*$", page, re.MULTILINE)
        assert row is not None
        assert f"from {least} to {most}" in row[0]


def test_the_targets_that_contributors_read_of_exist() -> None:
    page = (PROJECT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"^\.PHONY: (.*)$", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    known = {name for line in targets for name in line.split()}
    for name in re.findall(r"`make ([\w-]+)`", page):
        assert name in known, f"CONTRIBUTING.md names `make {name}`, which there is not"
