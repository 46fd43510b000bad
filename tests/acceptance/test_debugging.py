"""Guide: Troubleshooting, Security Hardening (audit), the settings of the Kubernetes example."""

from __future__ import annotations

import docker
import pytest
from django.core.management import call_command
from pytest_django import Settings

from container_manager.conf import get_settings
from container_manager.executors.factory import ExecutorFactory
from container_manager.models import ContainerJob, ExecutorHost
from tests.acceptance.running import finished, our_containers, stored, unique

pytestmark = pytest.mark.engine


def test_a_start_that_failed_says_why_in_the_engine_log(local_host: ExecutorHost) -> None:
    job = finished(ContainerJob.objects.create_job(image="python:3.11", command="no-such-program --now"))
    assert (job.status, job.exit_reason) == ("failed", "command_not_found")
    assert "no-such-program" in job.docker_log
    assert "no-such-program" in job.exit_message
    assert job.stderr_log == ""
    executor = ExecutorFactory.create_executor("docker", {"docker_host": job.docker_host})
    image = executor._get_client(job.docker_host).images.get(job.docker_image)
    assert image.id.startswith("sha256:")
    assert job.docker_image in image.tags
    executor.close()


def test_a_missing_image_can_be_confirmed_through_the_client(local_host: ExecutorHost) -> None:
    local_host.auto_pull_images = False
    local_host.save()
    job = finished(ContainerJob.objects.create_job(image=f"{unique('nowhere')}:1", command="true"))
    assert (job.status, job.exit_reason) == ("failed", "image_not_found")
    assert job.docker_image in job.docker_log
    executor = ExecutorFactory.create_executor("docker", {"docker_host": job.docker_host})
    with pytest.raises(docker.errors.ImageNotFound):
        executor._get_client(job.docker_host).images.get(job.docker_image)
    executor.close()


def test_a_program_that_failed_is_read_from_its_stderr(local_host: ExecutorHost) -> None:
    job = finished(
        ContainerJob.objects.create_job(
            image="python:3.11", command=["python", "-c", "raise SystemExit('the table is empty')"]
        )
    )
    assert (job.status, job.exit_reason, job.exit_code) == ("failed", "application_error", 1)
    assert "the table is empty" in job.stderr_log
    assert "stderr" in job.exit_message


def test_a_resource_problem_is_diagnosed_from_the_record(
    local_host: ExecutorHost, settings: Settings
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {"STOP_GRACE_SECONDS": 1}
    hungry = ContainerJob.objects.create_job(
        image="python:3.11", command=["python", "-c", "x = b'x' * (400 << 20)"], memory_limit=64
    )
    slow = ContainerJob.objects.create_job(image="alpine:3.18", command="sleep 600", timeout_seconds=1)
    hungry, slow = finished(hungry), stored(slow)
    assert (hungry.status, hungry.exit_reason) == ("failed", "out_of_memory")
    assert "64 MB" in hungry.exit_message
    assert "memory_limit" in hungry.exit_message
    assert (slow.status, slow.exit_reason) == ("timeout", "timeout")
    assert "timeout_seconds" in slow.exit_message
    # The guide formats a peak of unknown size as a number, which Python refuses; this form does not.
    for job in (hungry, slow):
        peak = "N/A" if job.max_memory_usage is None else f"{job.max_memory_usage / 2**20:.2f}"
        assert peak
        assert f"{job.duration or 'N/A'}"


def test_the_security_audit_of_the_guide_finds_what_it_looks_for(local_host: ExecutorHost) -> None:
    ExecutorHost.objects.create(
        name="open-door",
        connection_string="tcp://127.0.0.1:2375",
        executor_type="docker",
        max_concurrent_jobs=60,
    )
    findings = []
    for host in ExecutorHost.objects.filter(executor_type="docker", is_active=True):
        if host.host_type == "tcp" and not host.tls_enabled:
            findings.append(f"{host.name}: no TLS")
        if host.max_concurrent_jobs > 50:
            findings.append(f"{host.name}: many jobs")
        if "://127.0.0.1" in host.connection_string:
            findings.append(f"{host.name}: local")
    assert findings == ["open-door: no TLS", "open-door: many jobs", "open-door: local"]


def test_the_settings_of_the_guide_pass_the_checks(settings: Settings) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {
        "DOCKER_TIMEOUT": 60,
        "AUTO_PULL_IMAGES": True,
        "IMMEDIATE_CLEANUP": False,
        "MAX_CONCURRENT_JOBS": 50,
    }
    call_command("check")
    assert (get_settings().DOCKER_TIMEOUT, get_settings().IMMEDIATE_CLEANUP) == (60, False)


def test_a_kept_container_can_be_inspected_with_dockers_own_tools(
    local_host: ExecutorHost, engine: docker.DockerClient, settings: Settings
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {"IMMEDIATE_CLEANUP": False}
    job = finished(ContainerJob.objects.create_job(image="alpine:3.18", command="echo kept; exit 5"))
    container = engine.containers.get(job.get_execution_identifier())
    assert our_containers(engine) == [container.name]
    assert container.attrs["State"]["ExitCode"] == 5
    assert container.logs() == b"kept\n"
    executor = ExecutorFactory.create_executor("docker", {"docker_host": local_host})
    assert executor.check_status(job.get_execution_identifier()) == "exited"
    assert executor.cleanup(job.get_execution_identifier()) is True
    assert our_containers(engine) == []
    executor.close()
