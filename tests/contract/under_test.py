"""What the contract suite needs to know of each executor. A new one is a class here and a name in ALL."""

from __future__ import annotations

import base64
import json
import os
import signal
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import docker

from container_manager.core.errors import CommandNotExecutable, CommandNotFound
from container_manager.core.observation import STDOUT
from container_manager.core.spec import ContainerSpec
from container_manager.executors.base import Executor, HostConfig
from container_manager.executors.docker.executor import DockerExecutor
from container_manager.executors.process import procfs
from container_manager.executors.process.executor import ProcessExecutor
from container_manager.testing import FakeEngine, FakeExecutor, FakeRun
from tests.engines import BASE_IMAGE, docker_url

READY = b"ready\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a container is to do, in terms that every executor can express."""

    output: tuple[tuple[int, bytes, int], ...] = ()  # stream, bytes, how often in a row
    seconds: float = 0.0  # then it sleeps
    exit_code: int = 0
    term_exit_code: int | None = 143  # its answer to SIGTERM; None: none
    exhausts_memory: bool = False

    def written(self, stream: int) -> bytes:
        """All that it writes to a stream."""
        return b"".join(data * times for number, data, times in self.output if number == stream)

    def dump(self) -> str:
        """As one word without special characters."""
        parts = [(stream, data.decode("latin-1"), times) for stream, data, times in self.output]
        return base64.b64encode(json.dumps({**asdict(self), "output": parts}).encode()).decode()

    @classmethod
    def load(cls, text: str) -> Program:
        """The program that was dumped."""
        fields = json.loads(base64.b64decode(text))
        parts = tuple((stream, data.encode("latin-1"), times) for stream, data, times in fields.pop("output"))
        return cls(output=parts, **fields)


#: Says that it is there, so that a test can wait for it, and stays.
LASTING = Program(output=((STDOUT, READY, 1),), seconds=120)

_INTERPRETER = """
import base64, json, os, signal, sys, time
program = json.loads(base64.b64decode(sys.argv[1]))
code = program["term_exit_code"]
signal.signal(signal.SIGTERM, signal.SIG_IGN if code is None else lambda *_: os._exit(code))
for stream, text, times in program["output"]:
    data = text.encode("latin-1") * times
    while data:
        data = data[os.write(stream, data):]
hoard = []
while program["exhausts_memory"]:
    hoard.append(b"x" * (1 << 20))
time.sleep(program["seconds"])
os._exit(program["exit_code"])
"""


class ExecutorUnderTest(ABC):
    """One executor with a host of its own, or a part of one that nobody else touches."""

    image = "contract:test"
    missing_image = "contract-missing:test"
    missing_command: tuple[str, ...] = ("/no/such/program",)
    forbidden_command: tuple[str, ...] = ("/proc/version",)  # a file that is there and no program

    def __init__(self) -> None:
        self.installation = self.new_installation()
        self._installations: list[str] = [self.installation]
        self._opened: list[Executor] = []

    @abstractmethod
    def connect(self) -> Executor:
        """A new executor for the host."""

    @abstractmethod
    def unreachable(self) -> Executor:
        """An executor for a host of the same kind that is not there."""

    @abstractmethod
    def pause(self, container_id: str) -> None:
        """Freeze a container behind the executor's back."""

    @abstractmethod
    def kill(self, container_id: str) -> None:
        """Send SIGKILL to a container's main process behind the executor's back."""

    def argv(self, program: Program) -> tuple[str, ...]:
        """The command that does it."""
        return ("python3", "-c", _INTERPRETER, program.dump())

    def open(self) -> Executor:
        """What another worker, or one after a restart, would have."""
        executor = self.connect()
        self._opened.append(executor)
        return executor

    def new_installation(self) -> str:
        """Another Django project on the same host."""
        installation = f"contract-{uuid.uuid4().hex[:12]}"
        if hasattr(self, "_installations"):
            self._installations.append(installation)
        return installation

    def spec(self, program: Program = LASTING, **changes: Any) -> ContainerSpec:
        """A container as the policy would have it, with a name of its own."""
        spec = ContainerSpec(
            name=f"contract-{uuid.uuid4().hex[:16]}",
            installation=self.installation,
            job_id=str(uuid.uuid4()),
            attempt=1,
            image=self.image,
            argv=self.argv(program),
            environment=(("LANG", "C.UTF-8"),),
            working_directory="/",
            user="10001:10001",
            memory_bytes=64 * 1024 * 1024,
            cpus=1.0,
            pids_limit=64,
            read_only_root=True,
            tmpfs=(("/tmp", "rw,noexec,nosuid,nodev,size=16m"),),
            networks=(),
            cap_drop=("ALL",),
            security_opt=("no-new-privileges:true",),
        )
        return replace(spec, **changes)

    def close(self) -> None:
        """Remove what the test left behind."""
        executor = self.connect()
        for installation in self._installations:
            for container in executor.list_owned(installation):
                executor.remove(container.container_id)
        for opened in [*self._opened, executor]:
            opened.close()


class DockerUnderTest(ExecutorUnderTest):
    """A real daemon, which other tests use at the same time."""

    image = BASE_IMAGE

    def __init__(self) -> None:
        super().__init__()
        self._url = docker_url()
        self._client = docker.DockerClient(base_url=self._url, version="1.41")

    def connect(self) -> Executor:
        return DockerExecutor(
            HostConfig(
                name="contract", connection_string=self._url, auto_pull_images=False, timeout_seconds=30
            )
        )

    def unreachable(self) -> Executor:
        return DockerExecutor(
            HostConfig(name="nowhere", connection_string="unix:///nowhere/docker.sock", timeout_seconds=5)
        )

    def pause(self, container_id: str) -> None:
        self._client.api.pause(container_id)

    def kill(self, container_id: str) -> None:
        self._client.api.kill(container_id)

    def close(self) -> None:
        super().close()
        self._client.close()


class ProcessUnderTest(ExecutorUnderTest):
    """Local processes below a directory of the test."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory

    def connect(self) -> Executor:
        return ProcessExecutor(
            HostConfig(name="contract", connection_string=f"process://{self._directory}", timeout_seconds=30)
        )

    def unreachable(self) -> Executor:
        return ProcessExecutor(
            HostConfig(name="nowhere", connection_string="process:///proc/version/nowhere")
        )

    def pause(self, container_id: str) -> None:
        program = self._program(container_id)
        os.kill(program, signal.SIGSTOP)
        deadline = time.monotonic() + 5  # a running process stops at its next entry to the kernel
        while (seen := procfs.stat(program)) is not None and seen.state != "T":
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def kill(self, container_id: str) -> None:
        os.kill(self._program(container_id), signal.SIGKILL)

    def _program(self, container_id: str) -> int:
        directory = (self._directory / "ids" / container_id).readlink()
        return int(json.loads((directory / "run.json").read_text())["program"])


class FakeUnderTest(ExecutorUnderTest):
    """The engine in memory."""

    missing_command = ("missing",)
    forbidden_command = ("forbidden",)

    def __init__(self) -> None:
        super().__init__()
        self._engine = FakeEngine(runs=self._run)
        self._engine.missing_images.add(self.missing_image)
        self._engine.images.add(self.image)

    def connect(self) -> Executor:
        return FakeExecutor.on(self._engine)

    def unreachable(self) -> Executor:
        engine = FakeEngine("nowhere")
        engine.go_down()
        return FakeExecutor.on(engine)

    def pause(self, container_id: str) -> None:
        self._engine.pause(self._name(container_id))

    def kill(self, container_id: str) -> None:
        self._engine.kill(self._name(container_id))

    def argv(self, program: Program) -> tuple[str, ...]:
        return ("program", program.dump())

    def _name(self, container_id: str) -> str:
        container = self._engine.find(container_id)
        assert container is not None
        return container.spec.name

    def _run(self, spec: ContainerSpec) -> FakeRun:
        if spec.argv == self.missing_command:
            return FakeRun(error=CommandNotFound("there is no such program"))
        if spec.argv == self.forbidden_command:
            return FakeRun(error=CommandNotExecutable("that is no program"))
        program = Program.load(spec.argv[1])
        return FakeRun(
            output=[(stream, data * times) for stream, data, times in program.output],
            duration=program.seconds,
            exit_code=137 if program.exhausts_memory else program.exit_code,
            oom_killed=program.exhausts_memory,
            term_exit_code=program.term_exit_code,
        )


#: Every executor that has to keep the contract: its name, and how to make one below a directory.
ALL: dict[str, Callable[[Path], ExecutorUnderTest]] = {
    "docker": lambda directory: DockerUnderTest(),
    "process": ProcessUnderTest,
    "fake": lambda directory: FakeUnderTest(),
}
