"""The state directory: where it is, whose it is, and what is said when it is not right."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from container_manager.core.errors import ConfigurationError, CreateFailed, EngineFault, HostUnreachable
from container_manager.executors.base import HostConfig
from container_manager.executors.process.executor import ProcessExecutor
from container_manager.executors.process.store import Store, state_root
from tests.unit.process.conftest import INSTALLATION, config, run, spec


def test_where_it_is() -> None:
    own = Path(tempfile.gettempdir()) / f"container-jobs-{os.geteuid()}"
    assert state_root("process:///srv/jobs") == Path("/srv/jobs")
    assert state_root("process:///srv/jobs", "/srv/other") == Path("/srv/other")
    assert state_root("process://") == state_root("") == own


@pytest.mark.parametrize(
    "address", ["process://relative/dir", "process:///srv/a\0b", "unix:///run/docker.sock"]
)
def test_what_is_no_directory_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="connection_string"):
        ProcessExecutor(HostConfig(name="unit", connection_string=address))


def test_nothing_in_it_is_for_others_to_read(executor: ProcessExecutor, state: Path) -> None:
    container_id = run(executor, spec("true", environment=(("PASSWORD", "secret"),)))
    for path in [state, *state.rglob("*")]:
        if not path.is_symlink():
            assert path.stat().st_mode & 0o077 == 0, path
    assert executor.inspect(container_id).exit_code == 0


def test_a_directory_that_others_may_write_to_is_not_used(state: Path) -> None:
    state.mkdir()
    state.chmod(0o777)
    with pytest.raises(HostUnreachable, match=r"use a directory of user \d+ with mode 700"):
        ProcessExecutor(config(state)).health()


def test_the_engine_is_the_directory_on_this_machine(state: Path, tmp_path: Path) -> None:
    first = ProcessExecutor(config(state)).health()
    assert ProcessExecutor(config(state)).health().engine_id == first.engine_id
    assert ProcessExecutor(config(tmp_path / "other")).health().engine_id != first.engine_id
    assert first.details["isolation"] == "none"


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a\0b", "x" * 201])
def test_a_name_that_is_no_file_name(executor: ProcessExecutor, name: str) -> None:
    with pytest.raises(CreateFailed, match="cannot be a file name"):
        executor.create(spec("true", name=name))
    assert executor.inspect(name).state == "not-found"


def test_a_damaged_file_is_a_fault_of_the_host_and_named(executor: ProcessExecutor, state: Path) -> None:
    job = spec("true")
    executor.create(job)
    file = state / "containers" / job.name / "spec.json"
    whole = file.read_text()
    file.write_text(whole[:20])
    with pytest.raises(EngineFault, match=rf"{job.name}/spec.json is damaged"):
        executor.list_owned(INSTALLATION)
    file.write_text(whole)


def test_what_a_dead_worker_left_half_done_is_swept_later(executor: ProcessExecutor, state: Path) -> None:
    executor.health()
    left = state / "staging" / "left"
    left.mkdir()
    executor.health()
    assert left.exists(), "it may be somebody's work in progress"
    Store(state).sweep(stale_seconds=-1)
    assert not left.exists()
