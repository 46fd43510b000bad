"""Rows 26 and 27: images that go away, and registries that fail in the middle of a pull.

A real registry, a real engine, and between the two a proxy that goes wrong on purpose.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator

import docker
import pytest
from docker.errors import ImageNotFound

from container_manager.executors.docker import images
from container_manager.models import ContainerJob, ExecutorHost
from tests import engines
from tests.acceptance.running import (
    connect,
    finished,
    our_containers,
    register,
    remove,
    stored,
    worker_thread,
)
from tests.db.workers import working
from tests.fault.parts import until, until_ended
from tests.fault.registry_proxy import Fault, RegistryProxy, registry
from tools import base_image, netns
from tools.engine import Engine, EngineError, refusal
from tools.parts import ENGINES, PREFIX

pytestmark = [pytest.mark.engine, pytest.mark.django_db(transaction=True)]

NAME = "faults/app:1"
PAYLOAD_BYTES = 3 << 20
HALF = PAYLOAD_BYTES // 2


@pytest.fixture(scope="module")
def puller() -> Iterator[Engine]:
    """An engine without images, which takes a registry without TLS and tries a layer twice, not six times."""
    if reason := refusal():
        engines.missing("a private Docker Engine", reason)
    flags = (f"--insecure-registry={netns.POOL}", "--max-download-attempts=1")
    engine = Engine(name=f"{PREFIX}-puller-{os.getpid()}", root=ENGINES, flags=flags)
    engines.SHARE.join()
    try:
        engine.start()
    except EngineError as error:
        engines.missing("a private Docker Engine", str(error))
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def client(puller: Engine) -> Iterator[docker.DockerClient]:
    one = connect(puller.url)
    yield one
    one.close()


@pytest.fixture(scope="module")
def registry_port(
    puller: Engine, client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """A registry that holds `NAME`: a shell, and a layer that is large enough to break in the middle."""
    with registry(puller.host_address, tmp_path_factory.mktemp("registry")) as port:
        repository, _, tag = f"{puller.host_address}:{port}/{NAME}".rpartition(":")
        client.api.import_image_from_data(_shell_and_payload(), repository=repository, tag=tag)
        said = client.api.push(repository, tag=tag, decode=True, stream=True)
        errors = [line["error"] for line in said if "error" in line]
        assert not errors
        client.images.remove(f"{repository}:{tag}")
        yield port


@pytest.fixture
def proxy(puller: Engine, registry_port: int) -> Iterator[RegistryProxy]:
    with RegistryProxy(puller.host_address, registry_port).serving() as one:
        yield one


@pytest.fixture
def image(proxy: RegistryProxy, client: docker.DockerClient) -> Iterator[str]:
    """The image's name by way of the proxy; it is not on the engine, and is gone behind the test."""
    name = proxy.image(NAME)
    yield name
    _forget(client, name)


@pytest.fixture
def host(
    puller: Engine, client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ExecutorHost]:
    monkeypatch.setattr(images, "RETRY_SECONDS", (0.3, 0.6, 0.9))
    yield register(puller.url, max_concurrent_jobs=8)
    left = our_containers(client)
    remove(client, left)
    assert not left, "the test left containers behind"


def _shell_and_payload() -> bytes:
    """The file system of an image: /bin/sh, its libraries, and noise that no compression makes smaller."""
    shell = base_image.found_tools()["sh"].resolve()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", dereference=True) as tar:
        tar.add(shell, "bin/sh")
        for library in sorted(base_image.libraries_of([shell])):
            tar.add(library, str(library).lstrip("/"))
        noise = tarfile.TarInfo("noise")
        noise.size = PAYLOAD_BYTES
        tar.addfile(noise, io.BytesIO(os.urandom(PAYLOAD_BYTES)))
    return buffer.getvalue()


def _forget(client: docker.DockerClient, name: str) -> None:
    try:
        client.images.remove(name, force=True)
    except ImageNotFound:
        return


def _tries(job: ContainerJob) -> int:
    """How often the worker asked the engine for a pull, by the job's own record."""
    return 1 + job.docker_log.count("trying again in")


def _must_have_run(job: ContainerJob) -> None:
    assert (job.status, job.exit_reason) == ("completed", "success"), f"{job.exit_message}\n{job.docker_log}"
    assert job.clean_output == "ran\n"
    assert job.attempt == 1, job.docker_log


def _job(image: str) -> ContainerJob:
    return ContainerJob.objects.create_job(image, ["/bin/sh", "-c", "echo ran"])


# ---------------------------------------------------------------------------------------------- row 27


def test_row_27_a_connection_that_breaks_in_the_middle_of_a_layer_is_tried_again(
    host: ExecutorHost, proxy: RegistryProxy, image: str
) -> None:
    fault = Fault(on="blob", act="cut", after_bytes=HALF, times=2)  # the engine itself tries a second time
    proxy.go_wrong(fault)
    job = finished(_job(image))
    _must_have_run(job)
    assert fault.times == 0
    assert _tries(job) == 2, job.docker_log


def test_row_27_a_registry_that_goes_down_in_the_middle_of_a_layer_and_comes_back(
    host: ExecutorHost, puller: Engine, proxy: RegistryProxy, image: str
) -> None:
    log = puller.home / "dockerd.log"
    before = len(log.read_text())
    proxy.go_wrong(Fault(on="blob", act="down", after_bytes=HALF, times=1))
    job = _job(image)
    with worker_thread():
        until(
            lambda: "Download failed after" in log.read_text()[before:],
            lambda: f"the engine to give its download up; it said\n{log.read_text()[before:]}",
        )
        proxy.up()
    job = stored(job)
    _must_have_run(job)
    assert _tries(job) >= 2, job.docker_log


def test_row_27_a_pull_that_stalls_is_given_up_after_the_hosts_patience(
    host: ExecutorHost, proxy: RegistryProxy, image: str
) -> None:
    host.executor_config = {"pull_silence_seconds": 2}
    host.save()
    proxy.go_wrong(Fault(on="blob", act="stall", after_bytes=HALF))
    job = finished(_job(image))
    assert (job.status, job.exit_reason) == ("failed", "image_pull_failed"), job.docker_log
    assert "no progress for 2 s" in job.exit_message
    assert _tries(job) == 1, f"a registry that stalls once is not asked again\n{job.docker_log}"
    assert job.completed_at is not None
    assert job.launched_at is not None
    assert 2 <= (job.completed_at - job.launched_at).total_seconds() < 30
    proxy.go_wrong(None)  # the engine may still wait for the first download's end: no harm to the next
    _must_have_run(finished(_job(image)))


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [(401, "image_pull_failed", "registry_auth"), (404, "image_not_found", "registry")],
)
def test_row_27_a_refusal_is_final_at_once(
    host: ExecutorHost, proxy: RegistryProxy, image: str, status: int, reason: str, words: str
) -> None:
    proxy.go_wrong(Fault(on="manifest", act="answer", status=status))
    job = finished(_job(image))
    assert (job.status, job.exit_reason) == ("failed", reason), f"{job.exit_message}\n{job.docker_log}"
    assert words in job.exit_message
    assert _tries(job) == 1, f"HTTP {status} will not change by itself\n{job.docker_log}"
    assert proxy.asked("blob") == 0


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        ("manifest", 429, "limits"),
        ("manifest", 500, "in trouble"),
        ("manifest", 503, "in trouble"),
        ("blob", 500, "in trouble"),
    ],
)
def test_row_27_trouble_that_lasts_is_given_up_after_a_few_tries(
    host: ExecutorHost,
    proxy: RegistryProxy,
    image: str,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    status: int,
    words: str,
) -> None:
    if kind == "blob":  # before it gives a blob up, the engine itself pauses for seconds each time
        monkeypatch.setattr(images, "RETRY_SECONDS", (0.3,))
    proxy.go_wrong(Fault(on="blob" if kind == "blob" else "manifest", act="answer", status=status))
    job = finished(_job(image))
    assert (job.status, job.exit_reason) == ("failed", "image_pull_failed"), job.exit_message
    assert words in job.exit_message, job.exit_message
    assert _tries(job) == 1 + len(images.RETRY_SECONDS), job.docker_log
    assert str(status) in job.docker_log or "toomanyrequests" in job.docker_log


@pytest.mark.parametrize("status", [429, 500])
def test_row_27_trouble_that_passes_is_survived(
    host: ExecutorHost, proxy: RegistryProxy, image: str, status: int
) -> None:
    fault = Fault(on="manifest", act="answer", status=status, times=2)
    proxy.go_wrong(fault)
    job = finished(_job(image))
    _must_have_run(job)
    assert fault.times == 0
    assert 2 <= _tries(job) <= 3, job.docker_log  # the engine itself may ask twice


def test_row_27_fifty_jobs_pull_their_image_once(
    host: ExecutorHost, proxy: RegistryProxy, image: str
) -> None:
    proxy.go_wrong(None)
    jobs = ContainerJob.objects.create_jobs(
        {"image": image, "command": ["/bin/sh", "-c", "echo ran"]} for _ in range(50)
    )
    with working():
        until_ended(jobs)
    for job in jobs:
        _must_have_run(stored(job))
    blobs = proxy.blobs()
    assert set(blobs.values()) == {1}, f"each blob is to be fetched once; the registry saw {blobs}"


def test_row_27_fifty_jobs_share_the_end_of_a_failed_pull(
    host: ExecutorHost, proxy: RegistryProxy, image: str
) -> None:
    proxy.go_wrong(Fault(on="manifest", act="answer", status=404))
    jobs = ContainerJob.objects.create_jobs({"image": image, "command": "true"} for _ in range(50))
    with working():
        until_ended(jobs)
    ends = {(job.status, job.exit_reason, job.attempt) for job in map(stored, jobs)}
    assert ends == {("failed", "image_not_found", 1)}


# ---------------------------------------------------------------------------------------------- row 26


def _remove_between_look_and_create(client: docker.DockerClient, image: str) -> None:
    """With the image run once, and the worker sure of it for longer than this test lasts."""
    until(lambda: not our_containers(client), "the first job's container to be removed")
    client.images.remove(image)


def test_row_26_an_image_removed_between_look_and_create_is_pulled_once_more(
    host: ExecutorHost,
    client: docker.DockerClient,
    proxy: RegistryProxy,
    image: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "FRESH_SECONDS", 3600.0)
    proxy.go_wrong(None)
    first = _job(image)
    with working():
        until_ended([first])
        _remove_between_look_and_create(client, image)
        proxy.go_wrong(None)
        second = _job(image)
        until_ended([second])
    _must_have_run(stored(first))
    _must_have_run(stored(second))
    assert set(proxy.blobs().values()) == {1}, f"one more pull, and no more: {proxy.blobs()}"


def test_row_26_an_image_that_is_gone_from_the_registry_too_is_not_found(
    host: ExecutorHost,
    client: docker.DockerClient,
    proxy: RegistryProxy,
    image: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "FRESH_SECONDS", 3600.0)
    proxy.go_wrong(None)
    first = _job(image)
    with working():
        until_ended([first])
        pulled_with = proxy.asked("base")
        _remove_between_look_and_create(client, image)
        proxy.go_wrong(Fault(on="manifest", act="answer", status=404))
        second = _job(image)
        until_ended([second])
    job = stored(second)
    assert (job.status, job.exit_reason) == ("failed", "image_not_found"), f"{job.exit_message}"
    assert image in job.exit_message
    assert job.attempt == 1
    assert proxy.asked("base") <= pulled_with, (
        f"one more pull takes {pulled_with} look(s) at /v2/, the registry saw {proxy.asked('base')}\n"
        f"{job.docker_log}"
    )
