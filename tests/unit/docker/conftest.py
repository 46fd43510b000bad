"""An executor before a server that says what the test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from container_manager.executors.base import HostConfig
from container_manager.executors.docker.executor import DockerExecutor
from tests.unit.docker.stub_engine import StubEngine


@pytest.fixture
def stub() -> Iterator[StubEngine]:
    with StubEngine().serving() as engine:
        yield engine


@pytest.fixture
def connect(stub: StubEngine) -> Iterator[Callable[..., DockerExecutor]]:
    """Another executor for the server."""
    opened: list[DockerExecutor] = []

    def make(**changes: Any) -> DockerExecutor:
        fields = {"name": "stub", "connection_string": stub.address, "timeout_seconds": 5.0, **changes}
        opened.append(DockerExecutor(HostConfig(**fields)))
        return opened[-1]

    yield make
    for executor in opened:
        executor.close()


@pytest.fixture
def executor(connect: Callable[..., DockerExecutor]) -> DockerExecutor:
    return connect()
