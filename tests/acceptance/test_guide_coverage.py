"""The table in docs/guide-coverage.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs" / "guide-coverage.md"
NAMED = re.compile(r"(tests/[\w/]+\.py)::(test_\w+)")


def named_tests() -> list[tuple[str, str]]:
    return sorted(set(NAMED.findall(PAGE.read_text())))


@pytest.mark.parametrize(("path", "name"), named_tests())
def test_a_named_test_exists(path: str, name: str) -> None:
    tree = ast.parse((PROJECT / path).read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert name in functions


def test_every_row_names_its_test() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    bare = [row for row in rows if not NAMED.search(row) and "| test |" not in row]
    assert not bare


def test_every_file_of_acceptance_tests_about_the_guide_is_in_the_table() -> None:
    files = {
        path.name
        for path in Path(__file__).parent.glob("test_*.py")
        if path.read_text().startswith('"""Guide:')
    }
    assert files <= {Path(path).name for path, _ in named_tests()}
