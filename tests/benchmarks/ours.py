"""Our side of a measurement: a database with one host, and a worker in a process of its own.

Import this module only in a process whose environment names the settings and the database.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import django

if TYPE_CHECKING:
    from container_manager.models import ContainerJob, ExecutorHost

NONE = [{"network_name": "none"}]
TICKS = os.sysconf("SC_CLK_TCK")


def set_up(url: str, *, slots: int = 100) -> ExecutorHost:
    """Make the tables, and register the engine."""
    django.setup()
    from django.core.management import call_command

    from container_manager.models import ExecutorHost

    call_command("migrate", verbosity=0)
    return ExecutorHost.objects.create(
        name="bench", executor_type="docker", connection_string=url, max_concurrent_jobs=slots
    )


def until(met: Callable[[], bool], seconds: float, what: str, *, every: float = 0.02) -> None:
    """Look again and again until something is so. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not met():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:g} s: not {what}")
        time.sleep(every)


def check_all(jobs: Iterable[ContainerJob], wanted: str = "completed") -> list[ContainerJob]:
    """The jobs as stored, each of which must have ended as wanted with its log read to the end."""
    from container_manager.models import ContainerJob

    stored = list(ContainerJob.objects.filter(pk__in=[job.pk for job in jobs]))
    for job in stored:
        execution = job.latest_execution
        if job.status != wanted or execution is None or not execution.logs_complete:
            raise RuntimeError(f"job {job.name}: {job.status}, {job.exit_reason}: {job.exit_message}")
    return stored


class WorkerProcess:
    """`manage.py process_container_jobs` as a child; ready when the context is entered."""

    def __init__(self, *options: str, patience: float = 30.0) -> None:
        self._options, self._patience = options, patience
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed on exit
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        from container_manager.models import EngineLease

        command = [sys.executable, "-m", "django", "process_container_jobs", *self._options]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, text=True)
        until(self._serves(EngineLease), self._patience, "a worker that serves the engine")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if error is not None or self._process.returncode:
            self._log.seek(0)
            print(self._log.read()[-6000:], file=sys.stderr)
        self._log.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self, name: str) -> int:
        """Bytes of a line of /proc/PID/status, such as VmRSS or VmHWM (the highest so far)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise KeyError(name)

    def forget_highest_memory(self) -> None:
        """Let VmHWM begin anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _serves(self, leases: Any) -> Callable[[], bool]:
        def met() -> bool:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"the worker ended at once with exit code {self._process.returncode}")
            return bool(leases.objects.exclude(worker="").exists())

        return met
