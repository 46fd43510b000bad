"""The Docker driver on a real engine: containers as the policy builds them, and what a test needs around."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from container_manager.core.observation import ContainerState, LogFrame, Observation
from container_manager.core.policy import JobRequest, Policy, build_spec
from container_manager.core.spec import ContainerSpec, NetworkAttachment
from container_manager.executors.base import HostConfig
from container_manager.executors.docker.executor import DockerExecutor
from tests.engines import BASE_IMAGE

DEADLINE_SECONDS = 30.0


class Driving:
    """An executor under test, and what a test needs around it."""

    def __init__(self, url: str, **config: Any) -> None:
        self.url = url
        self.installation = f"driver-{uuid.uuid4().hex[:12]}"
        self.executor = self.another(**config)
        self.networks: list[str] = []
        self.client = self.executor.docker_client()

    def another(self, **config: Any) -> DockerExecutor:
        """One more executor for the same engine."""
        defaults: dict[str, Any] = {"name": "engine", "connection_string": self.url, "timeout_seconds": 30}
        return DockerExecutor(HostConfig(**{**defaults, **config}))

    def spec(
        self,
        *argv: str,
        memory_mb: int = 64,
        cpus: float = 0.5,
        networks: Sequence[NetworkAttachment] = (),
        policy: Policy | None = None,
        **changes: Any,
    ) -> ContainerSpec:
        """What a job with this command becomes; `changes` to the finished spec get past the policy."""
        job_id = str(uuid.uuid4())
        request = JobRequest(
            image=BASE_IMAGE,
            argv=argv,
            environment={},
            working_directory="",
            memory_limit=memory_mb,
            cpu_limit=cpus,
            timeout_seconds=60,
            networks=tuple(networks),
            user="",
            read_only_root=True,
        )
        spec = build_spec(
            request,
            policy or Policy(),
            name=f"{self.installation}-{job_id[:8]}",
            installation=self.installation,
            job_id=job_id,
            attempt=1,
        )
        return replace(spec, **changes)

    def started(self, spec: ContainerSpec) -> str:
        """A container, created and started."""
        container_id = self.executor.create(spec)
        self.executor.start(container_id)
        return container_id

    def ended(self, container_id: str) -> Observation:
        """What an inspect says once the container has ended."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (seen := self.executor.inspect(container_id)).state is not ContainerState.EXITED:
            assert time.monotonic() < deadline, f"still {seen.state}"
            time.sleep(0.02)
        return seen

    def output(self, container_id: str) -> list[LogFrame]:
        """All that a container wrote, once it has ended."""
        self.ended(container_id)
        return list(self.executor.logs(container_id))

    def said(self, *argv: str, **wishes: Any) -> str:
        """What a command prints, which has to succeed."""
        container_id = self.started(self.spec(*argv, **wishes))
        frames = self.output(container_id)
        assert self.ended(container_id).exit_code == 0, frames
        return joined(frames).decode()

    def network(self) -> str:
        """A network of this test."""
        name = f"{self.installation}-net-{len(self.networks)}"
        self.client.networks.create(name)
        self.networks.append(name)
        return name

    def close(self) -> None:
        """Remove what is left."""
        for container in self.executor.list_owned(self.installation):
            self.executor.remove(container.container_id)
        for name in self.networks:
            self.client.networks.get(name).remove()
        self.client.close()
        self.executor.close()


def joined(frames: Iterable[LogFrame], stream: int | None = None) -> bytes:
    """The bytes of one stream, or of both."""
    return b"".join([frame.payload for frame in frames if stream in {None, frame.stream}])


def python(program: str) -> tuple[str, ...]:
    """The command that runs a program."""
    return ("python3", "-c", program)


def facts(driving: Driving, program: str, **wishes: Any) -> Any:
    """What a program prints as JSON."""
    return json.loads(driving.said(*python(f"import json, os, socket\n{program}"), **wishes))


class Following(threading.Thread):
    """A thread that follows a container's log to its end."""

    def __init__(self, executor: DockerExecutor, container_id: str) -> None:
        super().__init__(daemon=True)
        self.frames: list[LogFrame] = []
        self.arrived = threading.Event()
        self._executor = executor
        self._container_id = container_id
        self.start()

    def run(self) -> None:
        for frame in self._executor.logs(self._container_id, follow=True):
            self.frames.append(frame)
            self.arrived.set()
