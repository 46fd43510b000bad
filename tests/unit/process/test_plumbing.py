"""Bells, locks and the kernel's list of processes."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

from container_manager.executors.process import procfs, statedir
from container_manager.executors.process.bells import Bell, ring

PROJECT = Path(__file__).resolve().parents[3]


def test_a_ring_reaches_every_bell(tmp_path: Path) -> None:
    with Bell(tmp_path) as one, Bell(tmp_path) as other:
        ring(tmp_path, b"first")
        ring(tmp_path, b"second")
        assert select.select([one, other], [], [], 0)[0] == [one, other]
        assert one.take() == other.take() == [b"first", b"second"]
        assert one.take() == []
    assert list(tmp_path.iterdir()) == []


def test_a_ring_waits_for_nobody(tmp_path: Path) -> None:
    with Bell(tmp_path) as sleepy:
        for _ in range(5000):
            ring(tmp_path, b"more than its socket holds")
        assert sleepy.take()
    ring(tmp_path / "gone")


def test_the_bell_of_a_dead_process_is_taken_away(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path;"
        " from container_manager.executors.process.bells import Bell;"
        " bell = Bell(Path(sys.argv[1])); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=PROJECT, check=True)
    assert len(list(tmp_path.iterdir())) == 1
    ring(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_held_by_one_and_seen_by_all(tmp_path: Path) -> None:
    (tmp_path / statedir.LOCK).touch()
    assert not statedir.is_locked(tmp_path)
    descriptor = statedir.take_lock(tmp_path)
    assert descriptor is not None
    assert statedir.is_locked(tmp_path)
    assert statedir.take_lock(tmp_path) is None
    os.close(descriptor)
    assert not statedir.is_locked(tmp_path)


def test_descendants_are_found_either_way() -> None:
    with subprocess.Popen(
        ["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, process_group=0
    ) as shell:
        assert shell.stdout is not None
        grandchild = int(shell.stdout.readline())
        assert procfs.descendants(shell.pid) == [grandchild]
        assert {shell.pid, grandchild} <= set(procfs.descendants(os.getpid()))
        assert procfs._listed_children(shell.pid) == procfs._searched_children(shell.pid) == [grandchild]
        os.killpg(shell.pid, 9)


def test_a_process_that_is_gone_has_nothing() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert procfs.stat(process.pid) is None
    assert procfs.descendants(process.pid) == []
    assert procfs.anonymous_bytes(process.pid) == 0
    assert procfs.peak_bytes(process.pid) == 0


def test_a_shim_needs_the_standard_library_only() -> None:
    code = (
        "import sys; sys.path.append(sys.argv[1]);"
        " import container_manager.executors.process.shim; print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(PROJECT)], check=True, capture_output=True, text=True
    ).stdout.split()
    ours = {name for name in loaded if name.startswith("container_manager.")}
    assert ours == {
        "container_manager.executors",
        "container_manager.executors.process",
        *(f"container_manager.executors.process.{name}" for name in
          ("bells", "procfs", "program", "recorder", "shim", "statedir")),
    }  # fmt: skip
    assert "dataclasses" not in loaded, "it is slow to import, and there is one shim for each job"
