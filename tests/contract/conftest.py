"""One parameter for each executor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from container_manager.executors.base import Executor
from tests.contract.under_test import ALL, ExecutorUnderTest


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.engine] if name == "docker" else []) for name in ALL]
)
def under_test(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ExecutorUnderTest]:
    """An executor and how to speak to it; whatever the test leaves running is removed."""
    subject = ALL[request.param](tmp_path / "state")
    yield subject
    subject.close()


@pytest.fixture
def executor(under_test: ExecutorUnderTest) -> Executor:
    """The first worker's executor."""
    return under_test.open()
