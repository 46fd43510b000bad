"""A host on the shared engine, a place for markers, and workers that kill themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from container_manager.models import ContainerJob, ExecutorHost
from tests.acceptance.running import connect, register, remove
from tests.engines import BASE_IMAGE
from tests.fault import FULL, checker
from tests.fault.checker import Evidence, Expected, Report
from tests.fault.programs import Program
from tests.fault.workers import Fleet, fleet


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the short form, one case of each test."""
    if FULL:
        return
    seen: set[tuple[Path, str]] = set()
    others = []
    for item in items:
        test = (item.path, getattr(item, "originalname", item.name))
        if item.path.parent == Path(__file__).parent and test in seen:
            others.append(item)
        seen.add(test)
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


@pytest.fixture
def engine(docker_url: str) -> Iterator[docker.DockerClient]:
    client = connect(docker_url)
    yield client
    client.close()


@pytest.fixture
def markers(tmp_path: Path) -> Path:
    """Where each program leaves a file when it begins, under whatever uid it runs."""
    place = tmp_path / "markers"
    place.mkdir()
    place.chmod(0o1777)
    return place


@pytest.fixture
def host(transactional_db: None, engine: docker.DockerClient, docker_url: str) -> Iterator[ExecutorHost]:
    yield register(docker_url, max_concurrent_jobs=4)
    remove(engine, checker.real_containers(engine))


@pytest.fixture
def workers(
    host: ExecutorHost, child_environment: dict[str, str], markers: Path, tmp_path: Path
) -> Iterator[Fleet]:
    """`workers.start("--once", kill_at="create.sent:1")`."""
    with fleet({**child_environment, "CM_FAULT_MARKERS": str(markers)}, tmp_path) as ours:
        yield ours


class Court:
    """Jobs whose programs are known, and the look at all of them when the dust has settled."""

    def __init__(self, engine: docker.DockerClient, markers: Path, image: str) -> None:
        self.expected: dict[object, Expected] = {}
        self._engine = engine
        self._markers = markers
        self._image = image

    def job(
        self, program: Program, *, ends: str = "completed", exit_code: int | None = 0, timeout: int = 60
    ) -> ContainerJob:
        """Create a job, and remember how it has to end."""
        job: ContainerJob = ContainerJob.objects.create_job(
            self._image, program.command, timeout_seconds=timeout, memory_limit=64
        )
        self.expected[job.pk] = Expected(
            stdout=program.stdout,
            stderr=program.stderr,
            statuses=frozenset(ends.split("|")),
            exit_code=exit_code,
        )
        return job

    def evidence(self, context: str = "") -> Evidence:
        """What the engine and the markers say now."""
        return Evidence(
            starts=checker.real_starts(self._markers),
            containers=checker.real_containers(self._engine),
            context=context,
        )

    def starts(self) -> int:
        """How many programs really began."""
        return sum(checker.real_starts(self._markers).values())

    def verdict(self, context: str = "") -> Report:
        """Check everything; nothing may be left, and on a healthy engine no log is incomplete."""
        report = checker.check(self.expected, self.evidence(context))
        assert not report.incomplete_logs, f"{report}: the engine was well all the time"
        return report


@pytest.fixture
def court(engine: docker.DockerClient, markers: Path, host: ExecutorHost) -> Court:
    return Court(engine, markers, BASE_IMAGE)
