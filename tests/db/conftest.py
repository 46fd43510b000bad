"""The engine in memory that most tests of the worker run on, and a host row for it."""

from __future__ import annotations

from typing import Any

import pytest

from container_manager.models import ExecutorHost
from container_manager.testing import FakeEngine, fake_engine, forget_fake_engines
from tests.db.factories import make_host
from tests.db.workers import QUICK


@pytest.fixture
def engine(settings: Any) -> FakeEngine:
    """A fresh engine named "one", and settings with which a worker looks often."""
    settings.CONTAINER_MANAGER_SETTINGS = QUICK
    forget_fake_engines()
    return fake_engine("one")


@pytest.fixture
def host(engine: FakeEngine) -> ExecutorHost:
    """The host row of that engine."""
    return make_host("one")
