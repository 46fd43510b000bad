"""Guide: Docker Daemon Configuration, ExecutorHost Setup, Image Management."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import docker
import pytest
from django.core.exceptions import ValidationError

from container_manager.core.errors import InvalidJob
from container_manager.executors.factory import ExecutorFactory
from container_manager.models import ContainerJob, ExecutorHost
from tests.acceptance.running import connect, finished, register, unique
from tests.engines import BASE_IMAGE

pytestmark = pytest.mark.engine


def health_of(host: ExecutorHost) -> dict[str, object]:
    executor = ExecutorFactory.create_executor("docker", {"docker_host": host})
    try:
        return executor.get_health_status()
    finally:
        executor.close()


def test_a_host_on_a_unix_socket_runs_jobs(local_host: ExecutorHost) -> None:
    job = finished(ContainerJob.objects.create_job(image="alpine:3.18", command="echo 'Hello from Alpine'"))
    assert (job.status, job.docker_host, job.clean_output) == (
        "completed",
        local_host,
        "Hello from Alpine\n",
    )


def test_a_host_over_tcp_runs_jobs(transactional_db: None, tcp_engine_url: str) -> None:
    host = register(tcp_engine_url, "production-docker-01", max_concurrent_jobs=20, weight=200)
    assert host.host_type == "tcp"
    job = finished(ContainerJob.objects.create_job(image=BASE_IMAGE, command="echo from afar"))
    assert (job.status, job.docker_host, job.clean_output) == ("completed", host, "from afar\n")


def test_a_tls_host_of_the_guide_is_a_row_like_any_other(db: None) -> None:
    host = ExecutorHost.objects.create(
        name="production-docker-01",
        host_type="tcp",
        connection_string="tcp://docker.example.com:2376",
        tls_enabled=True,
        tls_verify=True,
        executor_type="docker",
        max_concurrent_jobs=20,
        weight=200,
        is_active=True,
        executor_config={"timeout": 45, "auto_pull_images": True},
    )
    config = ExecutorHost.objects.get(pk=host.pk).as_config()
    assert (config.tls_enabled, config.tls_verify, config.timeout_seconds, config.auto_pull_images) == (
        True,
        True,
        45.0,
        True,
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("allowed_registries", ["docker.io", "registry.example.com", "gcr.io/my-project"]),
        ("require_signed_images", True),
    ],
)
def test_trusted_registries_are_refused_while_nothing_enforces_them(db: None, key: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=f"{key} is not supported yet; nothing would enforce it"):
        ExecutorHost.objects.create(
            name="secure-docker-host",
            connection_string="unix:///var/run/docker.sock",
            executor_config={key: value},
            executor_type="docker",
        )
    assert not ExecutorHost.objects.exists()


@pytest.mark.parametrize(
    ("address", "executor_type"),
    [
        ("docker.sock", "docker"),
        ("ssh://docker.example.com", "docker"),
        ("tcp://docker.example.com", "docker"),
    ],
)
def test_a_malformed_connection_string_is_refused(db: None, address: str, executor_type: str) -> None:
    with pytest.raises((ValidationError, ValueError), match="connection_string"):
        ExecutorHost.objects.create(name="wrong", connection_string=address, executor_type=executor_type)
    assert not ExecutorHost.objects.exists()


def test_load_goes_by_weight(transactional_db: None, docker_url: str) -> None:
    # The guide's three machines; the rows share an engine here, as placing a job asks no engine.
    for number, weight in enumerate((100, 150, 200), start=1):
        register(docker_url, f"docker-{number:02}", weight=weight, max_concurrent_jobs=10 * number)
    jobs = [ContainerJob.objects.create_job(image="alpine:3.18", command="true") for _ in range(45)]
    share = Counter(job.docker_host.name for job in jobs)
    assert share["docker-01"] < share["docker-02"] < share["docker-03"]
    assert sum(share.values()) == 45


def test_the_caller_may_choose_the_host(local_host: ExecutorHost, tcp_engine_url: str) -> None:
    heavy = register(tcp_engine_url, "heavier", weight=10_000)
    chosen = ContainerJob.objects.create_job(BASE_IMAGE, "true", docker_host=local_host)
    placed = ContainerJob.objects.create_job(BASE_IMAGE, "true")
    assert (chosen.docker_host, placed.docker_host) == (local_host, heavy)
    assert finished(chosen).docker_host == local_host


def test_a_healthy_host_says_so(local_host: ExecutorHost) -> None:
    health = health_of(local_host)
    assert health["healthy"] is True
    assert not health["error"]
    assert isinstance(health["response_time"], float)
    assert f"{health['response_time']:.2f}"
    assert isinstance(health["last_check"], datetime)
    local_host.refresh_from_db()
    assert (local_host.health, local_host.health_error) == ("healthy", "")
    assert local_host.engine_id


def test_an_unreachable_host_says_why(db: None, tmp_path: Path) -> None:
    host = register(f"unix://{tmp_path}/nothing.sock", "gone")
    health = health_of(host)
    assert health["healthy"] is False
    assert "nothing.sock" in str(health["error"])
    assert isinstance(health["response_time"], float)
    assert isinstance(health["last_check"], datetime)
    host.refresh_from_db()
    assert host.health == "unreachable"


def test_no_job_is_queued_on_a_host_that_is_down(db: None, tmp_path: Path) -> None:
    health_of(register(f"unix://{tmp_path}/nothing.sock", "gone"))
    with pytest.raises(InvalidJob, match="gone") as caught:
        ContainerJob.objects.create_job(image="alpine:3.18", command="true")
    assert caught.value.field == "docker_host"
    assert not ContainerJob.objects.exists()


def test_checking_every_host_finds_the_bad_one(local_host: ExecutorHost, tmp_path: Path) -> None:
    register(f"unix://{tmp_path}/nothing.sock", "gone")
    hosts = ExecutorHost.objects.filter(executor_type="docker", is_active=True)
    assert [host.name for host in hosts if not health_of(host)["healthy"]] == ["gone"]


def test_without_pulling_only_local_images_run(local_host: ExecutorHost) -> None:
    local_host.auto_pull_images = False
    local_host.save()
    there = ContainerJob.objects.create_job(image="alpine:3.18", command="true")
    missing = ContainerJob.objects.create_job(image=f"{unique('nowhere')}:1", command="true")
    assert finished(there).status == "completed"
    missing.refresh_from_db()
    assert (missing.status, missing.exit_reason) == ("failed", "image_not_found")
    assert missing.docker_image in missing.exit_message


def test_an_image_that_cannot_be_pulled_fails_with_the_registrys_words(local_host: ExecutorHost) -> None:
    # No registry listens on the engine's own loopback.
    image = f"127.0.0.1:1/{unique('nowhere')}:1"
    job = finished(ContainerJob.objects.create_job(image=image, command="true"))
    assert (job.status, job.exit_reason) == ("failed", "image_pull_failed")
    assert "127.0.0.1:1" in job.exit_message
    assert "registry" in job.exit_message


def test_a_private_registry_is_configured_on_the_host(
    engine: docker.DockerClient, local_host: ExecutorHost
) -> None:
    local_host.executor_config = {
        "registry_auth": {
            "username": "registry_user",
            "password": "a-password-of-the-registry",
            "email": "user@example.com",
            "serveraddress": "registry.example.com",
        }
    }
    local_host.save()
    job = finished(
        ContainerJob.objects.create_job(
            image="registry.example.com/my-app:latest", command="echo from a private registry"
        )
    )
    assert (job.status, job.clean_output) == ("completed", "from a private registry\n")
    assert "a-password-of-the-registry" not in job.docker_log


def test_images_can_be_looked_up_and_warmed_through_the_hosts_client(local_host: ExecutorHost) -> None:
    executor = ExecutorFactory.create_executor("docker", {"docker_host": local_host})
    client = executor._get_client(local_host)
    assert isinstance(client, docker.DockerClient)
    assert client.images.get("python:3.11-slim").id == client.images.get("python:3.11-slim").id
    with pytest.raises(docker.errors.APIError):
        client.images.pull(f"127.0.0.1:1/{unique('nowhere')}", tag="1")
    executor.close()


def test_the_client_of_the_facade_is_for_the_host_that_is_named(
    local_host: ExecutorHost, tcp_engine_url: str
) -> None:
    other = register(tcp_engine_url, "other")
    executor = ExecutorFactory.create_executor("docker", {"docker_host": local_host})
    far = executor._get_client(other)
    assert far.info()["ID"] == connect(tcp_engine_url).info()["ID"]
    assert far.info()["ID"] != executor._get_client(local_host).info()["ID"]
    executor.close()


def test_the_record_of_a_host_says_whether_it_has_user_namespaces(local_host: ExecutorHost) -> None:
    health_of(local_host)
    local_host.refresh_from_db()
    options = connect(local_host.connection_string).info()["SecurityOptions"]
    expected = any("userns" in option or "rootless" in option for option in options)
    assert local_host.facts["user_namespaces"] is expected
