"""An executor over a directory of the test, and short ways to run something on it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from container_manager.core.observation import STDOUT
from container_manager.core.spec import ContainerSpec
from container_manager.executors.base import HostConfig
from container_manager.executors.process.executor import ProcessExecutor

INSTALLATION = "unit"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def executor(state: Path) -> Iterator[ProcessExecutor]:
    executor = ProcessExecutor(config(state))
    yield executor
    for container in executor.list_owned(INSTALLATION):
        executor.remove(container.container_id)
    executor.close()


def config(state: Path, **options: Any) -> HostConfig:
    return HostConfig(
        name="unit", connection_string=f"process://{state}", timeout_seconds=30, options=options
    )


def spec(*argv: str, **changes: Any) -> ContainerSpec:
    made = ContainerSpec(
        name=f"unit-{uuid.uuid4().hex[:12]}",
        installation=INSTALLATION,
        job_id=str(uuid.uuid4()),
        attempt=1,
        image="any:tag",
        argv=argv,
        environment=(),
        working_directory="/",
        user="10001:10001",
        memory_bytes=64 * 1024 * 1024,
        cpus=1.0,
        pids_limit=64,
        read_only_root=True,
        tmpfs=(),
        networks=(),
        cap_drop=("ALL",),
        security_opt=(),
    )
    return replace(made, **changes)


def output(executor: ProcessExecutor, container_id: str, stream: int = STDOUT) -> bytes:
    """All that a job wrote, once it has ended."""
    frames = executor.logs(container_id, follow=True)
    return b"".join(frame.payload for frame in frames if frame.stream == stream)


def run(executor: ProcessExecutor, job: ContainerSpec) -> str:
    """Run a job to its end; its id."""
    container_id = executor.create(job)
    executor.start(container_id)
    output(executor, container_id)
    return container_id
