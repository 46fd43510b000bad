"""Workers of the test build as processes of their own, and what a test waits for."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.acceptance.running import until

_DEAD = -signal.SIGKILL


class WorkerUnderFire:
    """One process of the test build."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return self._log.read_text(errors="replace")

    def dies(self, *, seconds: float = 30.0) -> None:
        """Wait for it to kill itself at its point."""
        until(
            lambda: self.process.poll() is not None,
            f"the worker to die; it says:\n{self.log}",
            seconds=seconds,
        )
        assert self.process.returncode == _DEAD, f"it ended with {self.process.returncode}:\n{self.log}"
        assert "killed at" in self.log

    def stops(self, *, seconds: float = 30.0) -> None:
        """Wait for it to stop itself at its point."""
        stat = Path(f"/proc/{self.process.pid}/stat")

        def state() -> bool:
            return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "T"

        until(state, f"the worker to stop itself; it says:\n{self.log}", seconds=seconds)

    def goes_on(self) -> None:
        """Let it run on."""
        self.process.send_signal(signal.SIGCONT)

    def says(self, words: str, *, seconds: float = 30.0) -> None:
        """Wait for words in its log."""
        until(
            lambda: words in self.log, f"the worker to say {words!r}; it says:\n{self.log}", seconds=seconds
        )

    def ends(self, *, seconds: float = 60.0) -> None:
        """Wait for it to end well by itself, as with `--once`."""
        until(
            lambda: self.process.poll() is not None,
            f"the worker to end; it says:\n{self.log}",
            seconds=seconds,
        )
        assert self.process.returncode == 0, f"it ended with {self.process.returncode}:\n{self.log}"

    def stop(self) -> None:
        """Ask it to end, and see that it does."""
        self.process.terminate()
        self.ends()

    def kill(self) -> None:
        """End it, however it stands."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


class Fleet:
    """Starts workers for one test."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._environment = environment
        self._folder = folder
        self.workers: list[WorkerUnderFire] = []

    def start(self, *options: str, kill_at: str = "", stop_at: str = "", **settings: Any) -> WorkerUnderFire:
        """Start one. `settings`: keys of CONTAINER_MANAGER_SETTINGS."""
        environment = {
            **self._environment,
            "CM_KILL_AT": kill_at,
            "CM_STOP_AT": stop_at,
            "CM_FAULT_SETTINGS": json.dumps(settings),
        }
        path = self._folder / f"worker-{len(self.workers)}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.fault.worker", *options], env=environment, stderr=log
            )
        self.workers.append(WorkerUnderFire(process, path))
        return self.workers[-1]

    def close(self) -> None:
        """End what is left."""
        for worker in self.workers:
            worker.kill()

    def logs(self) -> str:
        """Everything that they said."""
        return "\n".join(f"--- worker {n}\n{worker.log}" for n, worker in enumerate(self.workers))


@contextmanager
def fleet(environment: dict[str, str], folder: Path) -> Iterator[Fleet]:
    """Workers that end with the block."""
    ours = Fleet({**environment, "DJANGO_SETTINGS_MODULE": "tests.fault.settings"}, folder)
    try:
        yield ours
    finally:
        ours.close()
        sys.stderr.write(ours.logs())  # pytest shows it with a failure
