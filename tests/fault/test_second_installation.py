"""Two installations share a daemon: neither touches what is not its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from container_manager.core.spec import LABEL_INSTALLATION
from container_manager.models import Installation
from tests.acceptance.running import register, stored, until, until_says, until_status
from tests.fault import harm, jobs
from tests.fault.gate import Gate
from tools.engine import Engine

pytestmark = pytest.mark.engine

PASSES = round(harm.pick(25, 100))
LISTING = "GET /containers/json"

#: What the second installation's Django project does: a host, a job that runs on, one that has ended.
_OTHER = """
import json, sys
import django
django.setup()
from django.core.management import call_command
from container_manager.models import ContainerJob, ExecutorHost, Installation
from tests.fault import jobs
act, url = sys.argv[1:]
if act == "begin":
    call_command("migrate", verbosity=0)
    host = ExecutorHost.objects.create(name="theirs", connection_string=url)
    made = [jobs.make(host, jobs.counting()), jobs.make(host, "true")]
rows = {str(job.pk): [job.status, job.exit_reason] for job in ContainerJob.objects.order_by("created_at")}
print(json.dumps({"installation": Installation.current(), "jobs": rows}))
"""


class Other:
    """The second installation, with a database of its own."""

    def __init__(self, environment: dict[str, str], folder: Path, url: str) -> None:
        self.environment = {
            **environment,
            "CM_TEST_DB": "sqlite",
            "CM_TEST_DB_NAME": str(folder / "theirs.sqlite3"),
        }
        self._url = url
        self.installation = ""
        self.tell("begin")

    def tell(self, act: str = "look") -> list[list[str]]:
        """Do something there; returns status and reason of its jobs."""
        environment = {**self.environment, "DJANGO_SETTINGS_MODULE": "tests.fault.worker_settings"}
        command = [sys.executable, "-c", _OTHER, act, self._url]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
        told = json.loads(answer.stdout)
        self.installation = told["installation"]
        return list(told["jobs"].values())


@pytest.fixture
def engine() -> Engine:
    return harm.engine("one")


@pytest.fixture
def client(transactional_db: None, engine: Engine) -> Iterator[docker.DockerClient]:
    with harm.seen(engine) as client:
        yield client
        harm.clear(client)


def signs_of(client: docker.DockerClient, installation: str) -> dict[str, tuple[str, str, int]]:
    """What would change in a container that somebody touched."""
    signs = {}
    for container in harm.containers_of(client, installation):
        state = container.attrs["State"]
        signs[str(container.name)] = (str(container.id), state["StartedAt"], state["Pid"])
    return signs


def test_row_29_two_installations_on_one_daemon(
    engine: Engine,
    client: docker.DockerClient,
    child_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    keep = {"IMMEDIATE_CLEANUP": False, "RESYNC_INTERVAL": 0.05}
    with Gate(engine.url) as ours, Gate(engine.url) as theirs:
        host = register(ours.url, "ours")
        mine = [jobs.make(host, jobs.counting()), jobs.make(host, "true")]
        other = Other(child_environment, tmp_path, theirs.url)
        assert other.installation != Installation.current()
        try:
            with harm.worker(child_environment, **keep), harm.worker(other.environment, **keep):
                until_says(mine[0], "line 3\n")
                until_status(mine[1], "completed")
                until(lambda: [job[0] for job in other.tell()] == ["running", "completed"], "their jobs")
                before = {
                    name: signs_of(client, name) for name in (Installation.current(), other.installation)
                }
                assert [len(signs) for signs in before.values()] == [2, 2]
                counts = [gate.count(LISTING) for gate in (ours, theirs)]
                until(
                    lambda: all(
                        gate.count(LISTING) >= count + PASSES
                        for gate, count in zip((ours, theirs), counts, strict=True)
                    ),
                    f"{PASSES} comparisons by each",
                )
                assert {name: signs_of(client, name) for name in before} == before
                for name in before:
                    for container in harm.containers_of(client, name):
                        if container.status == "running":
                            container.kill(signal=signal.SIGUSR1)
                until_status(mine[0], "completed")
                until(lambda: [job[0] for job in other.tell()] == ["completed"] * 2, "their jobs to end")
        finally:
            for container in harm.containers_of(client, other.installation):
                container.remove(force=True)
    assert other.tell() == [["completed", "success"]] * 2
    for job in mine:
        jobs.ended_once(job)
    jobs.lines_are_whole(mine[0])


@pytest.mark.parametrize("cleanup", [True, False])
def test_row_29_container_of_an_image_that_was_made_from_ours(
    engine: Engine, client: docker.DockerClient, child_environment: dict[str, str], cleanup: bool
) -> None:
    """Such an image has our labels, and so have its containers: by their names they are another's."""
    name = f"foreign-{uuid.uuid4().hex[:8]}"
    settings = {"IMMEDIATE_CLEANUP": cleanup, "CONTAINER_RETENTION_SECONDS": 0.0, "RESYNC_INTERVAL": 0.05}
    with Gate(engine.url) as gate:
        host = register(gate.url, "ours")
        job = jobs.make(host, jobs.counting())
        foreign = None
        try:
            with harm.worker(child_environment, **settings):
                until_says(job, "line 3\n")
                original = harm.container_of(client, job)
                original.commit(name, "latest")
                foreign = client.containers.run(
                    name, jobs.counting(), name=name, detach=True, network_mode="none"
                )
                assert foreign.labels[LABEL_INSTALLATION] == Installation.current(), "the case needs that"
                foreign.reload()
                before = (foreign.attrs["State"]["StartedAt"], foreign.attrs["State"]["Pid"])
                original.kill(signal=signal.SIGUSR1)
                until_status(job, "completed", "failed")
                count = gate.count(LISTING)
                until(lambda: gate.count(LISTING) >= count + PASSES, f"{PASSES} comparisons")
                left = {str(container.name) for container in harm.containers_of(client)}
                assert name in left, "a container that somebody made from an image of ours was removed"
                foreign.reload()
                assert (foreign.attrs["State"]["StartedAt"], foreign.attrs["State"]["Pid"]) == before
                assert left == {name}, "our own container is left behind"
        finally:
            if foreign is not None and name in {
                found.name for found in client.containers.list(all=True, ignore_removed=True)
            }:
                foreign.remove(force=True)
            client.images.remove(name, force=True)
    assert jobs.ended(job) == ("completed", "success", 0)
    assert stored(job).attempt == 1
    jobs.ended_once(job)
    jobs.lines_are_whole(job)
