"""The world of the guide: its hosts, its image names, and a clean engine behind each test."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest
from docker.errors import ImageNotFound, NotFound

from container_manager.models import ExecutorHost
from tests.acceptance import running
from tests.engines import BASE_IMAGE

#: The image names that the guide's examples use. Where an engine does not have them, they are other names
#: of the tests' base image, which holds Python and a shell.
GUIDE_IMAGES = (
    "alpine:3.18",
    "alpine:latest",
    "app:latest",
    "bash:latest",
    "data-processor:latest",
    "datascience:latest",
    "nginx:alpine",
    "node:18",
    "node:18-alpine",
    "python:3.11",
    "python:3.11-slim",
    "redis:alpine",
    "registry.example.com/my-app:latest",
    "secure-app:latest",
    "ubuntu:22.04",
)


def tag_guide_images(client: docker.DockerClient) -> list[str]:
    """Give the base image the guide's names; a name that is taken stays what it is. Returns the new ones."""
    base = client.images.get(BASE_IMAGE)
    given = []
    for name in GUIDE_IMAGES:
        try:
            client.images.get(name)
        except ImageNotFound:
            repository, _, tag = name.rpartition(":")
            base.tag(repository, tag)
            given.append(name)
    return given


@pytest.fixture(scope="session")
def engine(docker_url: str) -> Iterator[docker.DockerClient]:
    """The tests' engine, seen through docker-py, with the guide's image names on it."""
    client = running.connect(docker_url)
    given = tag_guide_images(client)
    yield client
    for name in given:
        client.images.remove(name, noprune=True)
    client.close()


@pytest.fixture
def local_host(
    transactional_db: None, engine: docker.DockerClient, docker_url: str
) -> Iterator[ExecutorHost]:
    """The guide's first host; behind the test no container of its jobs may be left on the engine."""
    yield running.register(docker_url, max_concurrent_jobs=5, weight=100)
    left = running.our_containers(engine)
    running.remove(engine, left)
    assert not left, "the test left containers behind"


@pytest.fixture
def network(engine: docker.DockerClient) -> Iterator[str]:
    """A network of the user's own."""
    yield from _network(engine, "app-network")


@pytest.fixture
def second_network(engine: docker.DockerClient) -> Iterator[str]:
    """Another one."""
    yield from _network(engine, "backend-network")


def _network(engine: docker.DockerClient, name: str) -> Iterator[str]:
    made = engine.networks.create(running.unique(name), driver="bridge", check_duplicate=True)
    yield str(made.name)
    try:
        made.remove()
    except NotFound:
        return
