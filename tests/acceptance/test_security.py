"""Guide: Security Considerations, LLM Agent Guidelines: what holds for every container, seen from inside."""

from __future__ import annotations

from typing import Any

import docker
import pytest

from container_manager.core.errors import InvalidJob
from container_manager.models import ContainerJob, ExecutorHost
from tests.acceptance.running import (
    WAITING_PROGRAM,
    finished,
    signal_job,
    stored,
    until_says,
    worker_thread,
)

pytestmark = pytest.mark.engine

SELF_PORTRAIT = """
import json, os, pathlib, socket
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
def can_write(path):
    try:
        pathlib.Path(path, "probe").write_text("x")
    except OSError:
        return False
    return True
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(), "home": os.environ.get("HOME"),
    "capabilities": [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "no_new_privileges": int(status["NoNewPrivs"]), "seccomp": int(status["Seccomp"]),
    "writable": [path for path in ("/", "/etc", "/usr", "/var", "/root", "/tmp") if can_write(path)],
    "sockets": [path for path in ("/var/run/docker.sock", "/run/docker.sock") if os.path.exists(path)],
    "devices": [name for name in ("sda", "mem", "kmsg", "fuse") if os.path.exists("/dev/" + name)],
    "hostname": socket.gethostname(), "processes": len([n for n in os.listdir("/proc") if n.isdigit()]),
}))
"""


@pytest.fixture
def portrait(local_host: ExecutorHost) -> dict[str, Any]:
    """What an ordinary job finds out about itself."""
    job = finished(
        ContainerJob.objects.create_job(image="python:3.11", command=["python", "-c", SELF_PORTRAIT])
    )
    assert job.status == "completed", job.stderr_log
    return dict(job.parsed_output)


def test_a_job_has_no_privilege_from_the_inside(portrait: dict[str, Any]) -> None:
    assert portrait["uid"] > 1000
    assert portrait["gid"] > 1000
    assert 0 not in portrait["groups"]
    assert portrait["capabilities"] == [0, 0, 0, 0, 0]
    assert portrait["no_new_privileges"] == 1
    assert portrait["seccomp"] == 2  # a filter is in force
    assert portrait["writable"] == ["/tmp"]
    assert portrait["home"] == "/tmp"
    assert portrait["sockets"] == []
    assert portrait["devices"] == []
    assert portrait["processes"] <= 2  # its own process namespace


def test_an_images_own_root_user_is_overruled(local_host: ExecutorHost) -> None:
    job = finished(
        ContainerJob.objects.create_job(
            image="python:3.11-slim", command="id -u && id -g", name="security-check"
        )
    )
    assert all(int(line) > 1000 for line in job.clean_output.split())


def test_another_user_above_1000_may_be_asked_for(local_host: ExecutorHost) -> None:
    job = ContainerJob.objects.create_job(image="python:3.11", command="id -u", user="20002:20002")
    assert finished(job).clean_output == "20002\n"


@pytest.mark.parametrize("user", ["root", "0:0", "0", "1000:1000", "10001:0", "-1:-1"])
def test_root_and_system_users_are_refused(local_host: ExecutorHost, user: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        ContainerJob.objects.create_job(image="python:3.11", command="true", user=user)
    assert caught.value.field == "user"
    assert not ContainerJob.objects.exists()


def test_a_writable_root_is_refused_unless_settings_allow_it(local_host: ExecutorHost) -> None:
    with pytest.raises(InvalidJob) as caught:
        ContainerJob.objects.create_job(image="python:3.11", command="true", read_only_root=False)
    assert caught.value.field == "read_only_root"
    assert "ALLOW_WRITABLE_ROOT" in str(caught.value)


@pytest.mark.parametrize(
    "field", ["privileged", "network_mode", "volumes", "cap_add", "devices", "pid_mode", "security_opt"]
)
def test_there_is_no_field_to_ask_for_more(local_host: ExecutorHost, field: str) -> None:
    with pytest.raises(InvalidJob, match=field):
        ContainerJob.objects.create_job(image="python:3.11", command="true", **{field: True})
    assert not ContainerJob.objects.exists()


def test_the_engine_confirms_the_boundaries(local_host: ExecutorHost, engine: docker.DockerClient) -> None:
    job = ContainerJob.objects.create_job(image="python:3.11", command=["python", "-c", WAITING_PROGRAM])
    with worker_thread():
        until_says(job, "first words")
        attributes = engine.containers.get(stored(job).get_execution_identifier()).attrs
        signal_job(engine, job, "SIGUSR1")
    host = attributes["HostConfig"]
    assert host["Privileged"] is False
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"])
    assert not any("unconfined" in option for option in host["SecurityOpt"])
    assert host["NetworkMode"] != "host"
    assert (host["PidMode"], host["UTSMode"]) == ("", "")
    assert host["IpcMode"] in {"private", "none", ""}
    assert not host["Binds"]
    assert not host["Devices"]
    assert not host["VolumesFrom"]
    assert attributes["Mounts"] == []
    assert host["Memory"] == host["MemorySwap"] == 256 * 2**20  # nothing is added on top as swap
    assert host["NanoCpus"] == 10**9
    assert 0 < host["PidsLimit"] <= 4096
    assert host["RestartPolicy"]["Name"] in {"no", ""}
    assert host["AutoRemove"] is False
    assert attributes["Config"]["User"] == "10001:10001"
    assert set(host["Tmpfs"]) == {"/tmp"}
