"""Who a worker is, so that another one on the same machine can prove that it is gone.

A process is known by the machine's name and boot, its process id in a namespace of ids, and the moment of
its start: the kernel gives ids out again, never all of these. (Copies of a running virtual machine share a
boot; they are told apart by name.) Anything that cannot be read is no proof. Linux alone tells these things;
elsewhere a dead worker's lease has to run out.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")
_DEAD_STATES = {"Z", "X"}
#: How often a watch without a pidfd looks, and how often one with a pidfd sees whether it is still wanted.
LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """One process, for all time. Empty texts and zeros: unknown."""

    hostname: str = ""
    boot_id: str = ""
    pid_namespace: str = ""
    pid: int = 0
    start_ticks: int = 0  # since boot, field 22 of /proc/PID/stat

    @classmethod
    def current(cls) -> ProcessIdentity:
        """This process; nothing but its id where the system does not tell."""
        pid = os.getpid()
        stat = _stat(pid)
        if stat is None:
            return cls(hostname=socket.gethostname(), pid=pid)
        try:
            hostname, boot_id, namespace = _machine()
        except OSError:
            return cls(hostname=socket.gethostname(), pid=pid)
        return cls(
            hostname=hostname,
            boot_id=boot_id,
            pid_namespace=namespace,
            pid=pid,
            start_ticks=stat.start_ticks,
        )

    @property
    def is_known(self) -> bool:
        """Whether it tells enough to prove anything."""
        return bool(self.hostname and self.boot_id and self.pid_namespace and self.pid and self.start_ticks)

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process that we could see: same boot, same namespace of process ids."""
        try:
            return self.is_known and (self.hostname, self.boot_id, self.pid_namespace) == _machine()
        except OSError:
            return False

    def is_gone(self) -> bool:
        """True only where it is proven that the process has ended and can do nothing any more."""
        if not self.is_here:
            return False
        try:
            os.kill(self.pid, 0)  # told even where /proc hides the processes of others
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        stat = _stat(self.pid)
        if stat is None:
            return False
        # A dead leader may leave threads that still run.
        return stat.start_ticks != self.start_ticks or (stat.state in _DEAD_STATES and stat.threads <= 1)


class DeathWatch:
    """Calls `told` once, as soon as a process of this machine has ended."""

    def __init__(self, identity: ProcessIdentity, told: Callable[[], None]) -> None:
        self.identity = identity
        self._told = told
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="death-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Watch no longer."""
        self._stop.set()

    def _run(self) -> None:
        descriptor = self._open()
        try:
            while not self._stop.is_set() and not self.identity.is_gone():
                if descriptor is None:
                    self._stop.wait(LOOK_SECONDS)
                elif select.select([descriptor], [], [], LOOK_SECONDS)[0]:
                    self._stop.wait(0.01)  # it has ended; its threads may take a moment
        finally:
            if descriptor is not None:
                os.close(descriptor)
        if not self._stop.is_set():
            self._told()

    def _open(self) -> int | None:
        try:
            return os.pidfd_open(self.identity.pid)
        except (OSError, AttributeError):
            return None


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    threads: int
    start_ticks: int


def _stat(pid: int) -> _Stat | None:
    try:
        # The program's name comes first, in brackets, and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return _Stat(state=fields[0], threads=int(fields[17]), start_ticks=int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None


def _machine() -> tuple[str, str, str]:
    return socket.gethostname(), _BOOT_ID.read_text().strip(), str(_PID_NAMESPACE.readlink())
