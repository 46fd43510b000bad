"""Guide: Container Networking, Network Connectivity Issues."""

from __future__ import annotations

import docker
import pytest

from container_manager.core.errors import InvalidJob
from container_manager.executors.factory import ExecutorFactory
from container_manager.models import ContainerJob, ExecutorHost
from tests.acceptance.running import (
    OBEDIENT_PROGRAM,
    PATIENCE_SECONDS,
    finished,
    signal_job,
    stored,
    unique,
    until_says,
    until_status,
    worker_thread,
)

pytestmark = pytest.mark.engine

# Answers one caller, then waits to be told that the test has seen enough.
SERVER = """
import signal, socket
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
server = socket.create_server(("", 6379))
print("listening", flush=True)
caller, _ = server.accept()
caller.sendall(b"PONG")
caller.close()
signal.sigwait([signal.SIGUSR1])
"""

CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 6379), timeout=4) as connection:
    print(connection.recv(16).decode())
"""

INTERFACES = "import os; print(len([n for n in os.listdir('/sys/class/net') if n != 'lo']))"


def test_the_default_is_the_bridge(local_host: ExecutorHost, engine: docker.DockerClient) -> None:
    job = ContainerJob.objects.create_job(image="nginx:alpine", command=["python", "-c", INTERFACES])
    named = ContainerJob.objects.create_job(
        image="nginx:alpine",
        command=["python", "-c", INTERFACES],
        network_configuration=[{"network_name": "bridge", "aliases": []}],
    )
    assert finished(job).clean_output == "1\n"
    assert stored(named).clean_output == "1\n"
    assert named.get_network_names() == ["bridge"]


def test_a_job_reaches_another_by_its_alias(
    local_host: ExecutorHost, engine: docker.DockerClient, network: str
) -> None:
    server = ContainerJob.objects.create_job(
        image="redis:alpine",
        command=["python", "-c", SERVER],
        network_configuration=[{"network_name": network, "aliases": ["cache", "redis-primary"]}],
        docker_host=local_host,
    )
    with worker_thread():
        until_says(server, "listening")
        client = ContainerJob.objects.create_job(
            image="python:3.11",
            command=["python", "-c", CLIENT, "redis-primary"],
            network_configuration=[{"network_name": network, "aliases": []}],
            docker_host=local_host,
        )
        client = until_status(client, "completed", "failed", seconds=PATIENCE_SECONDS)
        signal_job(engine, server, "SIGUSR1")
    assert (client.status, client.clean_output) == ("completed", "PONG\n")
    assert stored(server).status == "completed"
    assert server.get_network_names() == [network]


def test_a_job_joins_several_networks(
    local_host: ExecutorHost, engine: docker.DockerClient, network: str, second_network: str
) -> None:
    job = ContainerJob.objects.create_job(
        image="app:latest",
        command=["python", "-c", OBEDIENT_PROGRAM],
        network_configuration=[
            {"network_name": network, "aliases": ["api"]},
            {"network_name": second_network, "aliases": ["service"]},
        ],
    )
    assert job.get_network_names() == [network, second_network]
    with worker_thread():
        until_says(job, "first words")
        seen = engine.containers.get(stored(job).get_execution_identifier()).attrs["NetworkSettings"][
            "Networks"
        ]
        assert stored(job).cancel()
    assert set(seen) == {network, second_network}
    assert "api" in seen[network]["Aliases"]
    assert "service" in seen[second_network]["Aliases"]


def test_an_isolated_network_keeps_jobs_of_other_networks_out(
    local_host: ExecutorHost, engine: docker.DockerClient, network: str, second_network: str
) -> None:
    def caller(name: str) -> ContainerJob:
        job = ContainerJob.objects.create_job(
            image="python:3.11",
            command=["python", "-c", CLIENT, address],
            network_configuration=[{"network_name": name, "aliases": []}],
        )
        return until_status(job, "completed", "failed")

    server = ContainerJob.objects.create_job(
        image="secure-app:latest",
        command=["python", "-c", SERVER],
        network_configuration=[{"network_name": network, "aliases": []}],
        name="secure-processing",
    )
    with worker_thread():
        until_says(server, "listening")
        container = engine.containers.get(stored(server).get_execution_identifier())
        address = container.attrs["NetworkSettings"]["Networks"][network]["IPAddress"]
        stranger = caller(second_network)
        neighbour = caller(network)
        signal_job(engine, server, "SIGUSR1")
    assert (stranger.status, stranger.exit_reason, stranger.clean_output) == (
        "failed",
        "application_error",
        "",
    )
    assert (neighbour.status, neighbour.clean_output) == ("completed", "PONG\n")


def test_an_unknown_network_is_told_before_the_start(local_host: ExecutorHost) -> None:
    name = unique("never-made")
    job = ContainerJob.objects.create_job(
        image="redis:alpine",
        command="redis-server",
        network_configuration=[{"network_name": name, "aliases": []}],
    )
    job = finished(job)
    assert (job.status, job.exit_reason, job.started_at) == ("failed", "network_not_found", None)
    assert name in job.exit_message
    assert "network_configuration" in job.exit_message


def test_configured_networks_are_found_through_the_client(local_host: ExecutorHost, network: str) -> None:
    job = ContainerJob.objects.create_job(
        image="app:latest",
        command="true",
        network_configuration=[{"network_name": network, "aliases": []}],
    )
    job = finished(job)
    executor = ExecutorFactory.create_executor("docker", {"docker_host": job.docker_host})
    client = executor._get_client(job.docker_host)
    for name in job.get_network_names():
        found = client.networks.get(name)
        assert found.attrs["Driver"] == "bridge"
        assert found.attrs.get("IPAM", {}).get("Config", [{}])[0].get("Subnet")
    with pytest.raises(docker.errors.NotFound):
        client.networks.get(unique("never-made"))
    assert network in [listed.name for listed in client.networks.list()]
    executor.close()


@pytest.mark.parametrize("name", ["host", "container:other", "ns:/proc/1/ns/net"])
def test_the_hosts_own_network_is_never_given(local_host: ExecutorHost, name: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        ContainerJob.objects.create_job(
            image="app:latest",
            command="true",
            network_configuration=[{"network_name": name, "aliases": []}],
        )
    assert caught.value.field == "network_configuration"
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "shape", ["app-network", ["app-network"], {"network_name": "x"}, [{"name": "x"}], [{"network_name": 3}]]
)
def test_a_wrong_shape_is_refused(local_host: ExecutorHost, shape: object) -> None:
    with pytest.raises(InvalidJob, match="network_configuration"):
        ContainerJob.objects.create_job(image="app:latest", command="true", network_configuration=shape)
    assert not ContainerJob.objects.exists()
