"""What is done to engines, networks and containers, always undone at the end of a block, and how one looks.

CM_FAULTS=full    the long forms: what FAULTS asks for in seconds and gigabytes, instead of a tenth of it
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import docker
from docker.errors import NotFound
from docker.models.containers import Container

from container_manager.core.spec import LABEL_INSTALLATION, LABEL_JOB
from container_manager.models import ContainerJob, ExecutorHost, Installation
from tests import engines
from tests.acceptance.running import connect, stored, until, worker_process
from tests.fault import FULL
from tools.engine import TCP_PORT, Engine
from tools.processes import Process, search_path, with_argument, with_cgroup_of

#: What the workers of these tests do more often than they would in production.
QUICK: dict[str, Any] = {
    "POLL_INTERVAL": 0.2,
    "LEASE_SECONDS": 4.0,
    "RESYNC_INTERVAL": 1.0,
    "STOP_GRACE_SECONDS": 2.0,
    "SHUTDOWN_GRACE_SECONDS": 5.0,
}


def pick(short: float, full: float) -> float:
    """A size by the form of the run."""
    return full if FULL else short


def engine(name: str, *, flags: tuple[str, ...] = (), disk_mb: int = 0) -> Engine:
    """An engine that the tests of this folder share, on a unix socket and on TCP; started where it is not."""
    return engines.private_engine(f"fault-{name}", tcp=True, flags=flags, disk_mb=disk_mb)


@contextmanager
def worker(environment: dict[str, str], *options: str, **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """A worker in a process of its own, with these settings; has to end well at the end of the block."""
    more = {
        "DJANGO_SETTINGS_MODULE": "tests.fault.worker_settings",
        "CM_FAULT_SETTINGS": json.dumps({**QUICK, **settings}),
    }
    with worker_process({**environment, **more}, *options) as process:
        yield process


# ----------------------------------------------------------------------------------------------- looking


@contextmanager
def seen(engine: Engine) -> Iterator[docker.DockerClient]:
    """A client on the engine's own socket, which no harm to the wire touches."""
    client = connect(engine.url)
    try:
        yield client
    finally:
        client.close()


def containers_of(client: docker.DockerClient, installation: str = "") -> list[Container]:
    """Every container of an installation, by default of the test's own, whatever its state."""
    label = f"{LABEL_INSTALLATION}={installation or Installation.current()}"
    listed: list[Container] = client.containers.list(all=True, ignore_removed=True, filters={"label": label})
    return listed


def container_of(client: docker.DockerClient, job: ContainerJob) -> Container:
    """The one container of a job; a second one is a failure."""
    label = f"{LABEL_JOB}={job.pk}"
    found = client.containers.list(all=True, ignore_removed=True, filters={"label": label})
    assert len(found) == 1, f"{len(found)} containers on the engine belong to {job}"
    return found[0]


def main_process(container: Container) -> Process:
    """The container's first process, as this machine sees it: it can be told things past the engine."""
    container.reload()
    return Process.of(int(container.attrs["State"]["Pid"]))


def nothing_left(client: docker.DockerClient, *, seconds: float = 30.0) -> None:
    """Every container of ours goes away within the time."""

    def gone() -> bool:
        return not containers_of(client)

    try:
        until(gone, "the containers to be removed", seconds=seconds)
    except AssertionError as error:
        left = [f"{found.name} ({found.status})" for found in containers_of(client)]
        raise AssertionError(f"containers with our label are left behind: {left}") from error


def clear(client: docker.DockerClient) -> None:
    """Remove whatever a test left, for the next one; not a check."""
    for container in containers_of(client):
        container.remove(force=True, v=True)


def health_of(host: ExecutorHost) -> str:
    """The recorded health."""
    return str(ExecutorHost.objects.get(pk=host.pk).health)


def until_health(host: ExecutorHost, wanted: str, *, seconds: float = 30.0) -> float:
    """Wait until the host's record says so; returns how many seconds that took."""
    began = time.monotonic()
    try:
        until(lambda: health_of(host) == wanted, f"{host.name} to be recorded as {wanted}", seconds=seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}; it is {health_of(host)}") from error
    return time.monotonic() - began


def until_record(job: ContainerJob, look: Callable[[ContainerJob], bool], what: str) -> ContainerJob:
    """Wait until the stored job looks so, and return it."""

    def found() -> ContainerJob | None:
        current = stored(job)
        return current if look(current) else None

    try:
        return until(found, what)
    except AssertionError as error:
        raise AssertionError(
            f"{error}; the engine's part of the record:\n{stored(job).docker_log}"
        ) from error


def hold_for(seconds: float, *, since: float) -> None:
    """Let a harm last: until so many seconds after `since`, by `time.monotonic`. Its length is the case."""
    threading.Event().wait(max(0.0, since + seconds - time.monotonic()))


# ------------------------------------------------------------------------------------------------ harming


def kill_daemon(engine: Engine) -> None:
    """`kill -9` of dockerd; everything else of the engine goes on."""
    daemon = engine.daemon
    assert daemon is not None, "there is no dockerd to kill"
    daemon.signal(signal.SIGKILL)
    assert daemon.wait(10), "dockerd survived SIGKILL"


def crash(engine: Engine, container_ids: set[str]) -> None:
    """What a machine's crash does: daemon, shims and the containers' processes end without a last word."""
    kill_daemon(engine)
    # The shims first: they would tell containerd how their containers ended.
    for process in with_argument(f"{engine.run}/containerd.sock") + with_cgroup_of(container_ids):
        process.signal(signal.SIGKILL)
        assert process.wait(10), f"process {process.pid} survived SIGKILL"


@contextmanager
def cut(engine: Engine) -> Iterator[float]:
    """The wire is pulled out: nothing goes through, and no one is told. Yields the moment (monotonic)."""
    wire = f"v{engine.id}"
    _run("ip", "link", "set", wire, "down")
    try:
        yield time.monotonic()
    finally:
        _run("ip", "link", "set", wire, "up")


@contextmanager
def half_open(engine: Engine) -> Iterator[float]:
    """The engine's end drops what belongs to its API, both ways: connections stay, and are silent."""
    namespace = ["nsenter", f"--net=/run/netns/{engine.id}", "iptables", "--wait"]
    rules = [
        ["INPUT", "-p", "tcp", "--dport", str(TCP_PORT), "-j", "DROP"],
        ["OUTPUT", "-p", "tcp", "--sport", str(TCP_PORT), "-j", "DROP"],
    ]
    done = []
    try:
        for rule in rules:
            _run(*namespace, "-I", *rule)
            done.append(rule)
        yield time.monotonic()
    finally:
        for rule in done:
            _run(*namespace, "-D", *rule)


@contextmanager
def frozen(engine: Engine) -> Iterator[float]:
    """dockerd is stopped by SIGSTOP: the kernel accepts connections, and nobody answers on them."""
    daemon = engine.daemon
    assert daemon is not None, "there is no dockerd to stop"
    daemon.signal(signal.SIGSTOP)
    try:
        yield time.monotonic()
    finally:
        daemon.signal(signal.SIGCONT)


def memory_of(pid: int) -> int:
    """Resident bytes of a process."""
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123 - no file in the usual sense
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has no memory any more")


class Memory(threading.Thread):
    """Watches the resident memory of a process, for its highest value."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.first = self.highest = memory_of(pid)
        self._pid = pid
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.05):
            try:
                self.highest = max(self.highest, memory_of(self._pid))
            except (ProcessLookupError, FileNotFoundError):
                return

    @property
    def growth(self) -> int:
        """How many bytes more than at the beginning it ever had."""
        return self.highest - self.first

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self.join(5)


def _run(*command: str) -> None:
    answer = subprocess.run(
        command, env={**os.environ, "PATH": search_path()}, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, f"`{' '.join(command)}` failed: {answer.stderr.strip()}"


def is_gone(container: Container) -> bool:
    """Whether the engine does not have the container any more."""
    try:
        container.reload()
    except NotFound:
        return True
    return False
