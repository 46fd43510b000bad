"""The whole system on the shared engine: a registered host, and no container left behind."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest

from container_manager.models import ExecutorHost
from tests.acceptance.running import connect, our_containers, register, remove


@pytest.fixture
def engine(docker_url: str) -> Iterator[docker.DockerClient]:
    client = connect(docker_url)
    yield client
    client.close()


@pytest.fixture
def host(transactional_db: None, engine: docker.DockerClient, docker_url: str) -> Iterator[ExecutorHost]:
    yield register(docker_url)
    left = our_containers(engine)
    remove(engine, left)
    assert not left, "the test left containers behind"
