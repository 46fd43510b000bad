"""The yardstick: the engine driven by a hand-written loop over docker-py, without anything of ours."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import docker
from docker.types import LogConfig

from tools import engine_http

MEBIBYTE = 1024 * 1024
LABEL = "container-jobs-bench"


class RawEngine:
    """Containers with the same limits and the same hardening as a job's."""

    def __init__(self, url: str, image: str, *, threads: int = 1) -> None:
        self._url, self._image = url, image
        self._client = docker.APIClient(base_url=url, version="1.41", num_pools=2, max_pool_size=threads + 2)
        self._client.trust_env = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for container in self._client.containers(all=True, filters={"label": LABEL}):
            self._client.remove_container(container["Id"], force=True)
        self._client.close()

    def create(self, command: list[str], network: str) -> str:
        """Create a container and return its id."""
        limits = self._client.create_host_config(
            mem_limit=256 * MEBIBYTE,
            memswap_limit=256 * MEBIBYTE,
            nano_cpus=1_000_000_000,
            pids_limit=256,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            read_only=True,
            tmpfs={"/tmp": "rw,exec,nosuid,nodev,mode=1777,size=64m"},
            network_mode=network,
            log_config=LogConfig(
                type="local", config={"max-file": "2", "max-size": "384m", "compress": "false"}
            ),
        )
        answer = self._client.create_container(
            self._image,
            command,
            user="10001:10001",
            environment={"HOME": "/tmp"},
            labels={LABEL: "1"},
            host_config=limits,
        )
        return str(answer["Id"])

    def start(self, container: str) -> None:
        self._client.start(container)

    def read_to_end(self, container: str) -> bytes:
        """Wait for the exit, and read the log."""
        self._client.wait(container)
        return bytes(self._client.logs(container))

    def follow(self, container: str) -> int:
        """Read a log as it comes and drop it: how fast the engine hands it out. Bytes on the wire."""
        path = f"/v1.41/containers/{container}/logs?stdout=1&stderr=1&timestamps=1&follow=1"
        connection = engine_http.connect(self._url, 300.0)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            total = 0
            while block := connection.sock.recv(1 << 20):
                total += len(block)
        finally:
            connection.close()
        return total

    def inspect(self, container: str) -> dict[str, Any]:
        return dict(self._client.inspect_container(container))

    def remove(self, container: str) -> None:
        self._client.remove_container(container, v=True, force=True)

    def run(self, command: list[str], network: str) -> bytes:
        """The whole life of one container; its output."""
        container = self.create(command, network)
        self.start(container)
        output = self.read_to_end(container)
        self.remove(container)
        return output

    def loop(self, jobs: int, threads: int, command: list[str], network: str) -> float:
        """Run many, so many at a time; containers a second."""
        began = time.monotonic()
        with ThreadPoolExecutor(threads) as pool:
            outputs = list(pool.map(lambda _: self.run(command, network), range(jobs)))
        seconds = time.monotonic() - began
        if not all(outputs):
            raise RuntimeError("a container of the raw loop left no output")
        return jobs / seconds


def engine_seconds(text: str) -> float:
    """A time of the engine (nanoseconds, any zone) as seconds since the epoch."""
    head, _, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    zone = rest[len(digits) :].replace("Z", "+00:00")
    return datetime.fromisoformat(head + zone).timestamp() + float(f"0.{digits or 0}")
