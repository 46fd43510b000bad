"""Processes that outlive the command which started them: found again, told apart, and ended."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process by its id and the moment of its start: the kernel gives ids out again, never both."""

    pid: int
    start_ticks: int  # since boot, field 22 of /proc/PID/stat
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this id now. Raises ProcessLookupError."""
        ticks = _start_ticks(pid)
        if ticks is None:
            raise ProcessLookupError(f"no process {pid}")
        return cls(pid=pid, start_ticks=ticks, boot_id=_boot_id())

    @classmethod
    def load(cls, stored: Mapping[str, Any]) -> Process:
        """The counterpart of `dump`."""
        return cls(pid=stored["pid"], start_ticks=stored["start_ticks"], boot_id=stored["boot_id"])

    def dump(self) -> dict[str, Any]:
        """A form for JSON."""
        return asdict(self)

    @property
    def alive(self) -> bool:
        """Whether this very process runs (a zombie does not)."""
        return self.boot_id == _boot_id() and _start_ticks(self.pid) == self.start_ticks

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; no effect once it is gone."""
        if self.alive:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def wait(self, seconds: float) -> bool:
        """Wait for its end; True when it has ended."""
        if not self.alive:
            return True
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            # Between the look above and the open another process may have taken the id.
            return not self.alive or bool(select.select([descriptor], [], [], seconds)[0])
        finally:
            os.close(descriptor)

    def end(self, *, grace: float) -> bool:
        """SIGTERM, `grace` seconds, SIGKILL; True when the first was enough."""
        self.signal(signal.SIGTERM)
        if self.wait(grace):
            return True
        self.signal(signal.SIGKILL)
        self.wait(10)
        return False


def search_path() -> str:
    """PATH with the places of system programs, which an account's own PATH may lack."""
    return f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


def launch(command: list[str], *, log: Path) -> Process:
    """Start a process in a session of its own that outlives ours; its output is appended to `log`."""
    # The shell in between ends at once, so that init, not a test run, is the parent.
    script = 'log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!'
    answer = subprocess.run(
        ["setsid", "sh", "-c", script, "sh", str(log), *command],
        env={**os.environ, "PATH": search_path()},
        capture_output=True,
        text=True,
        check=True,
    )
    return Process.of(int(answer.stdout))


def with_cgroup_of(ids: set[str]) -> list[Process]:
    """Every process whose control group carries one of the given container ids."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            groups = (folder / "cgroup").read_text()
            if any(part in ids for line in groups.splitlines() for part in line.split("/")):
                found.append(Process.of(int(folder.name)))
        except (OSError, ProcessLookupError):
            continue  # it ended while we looked
    return found


def with_argument(text: str) -> list[Process]:
    """Every process of which one command-line argument is exactly `text`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(Process.of(int(folder.name)))
        except (OSError, ProcessLookupError):
            continue  # it ended while we looked
    return found


def _start_ticks(pid: int) -> int | None:
    try:
        # The program's name comes first, in brackets, and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
