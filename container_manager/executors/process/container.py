"""One container, seen from outside: what its files and its shim tell."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from container_manager.core.observation import ContainerState, Observation, UsageSample
from container_manager.executors.process import procfs, statedir
from container_manager.executors.process.shim import KILL, TERMINATE

#: What an engine reports when host or shim went down under a container.
LOST_EXIT = 255
_LOST = "the shim of this job is gone (killed, or the machine went down); how the program ended is not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A directory with a spec in it. Holds no state of its own; any process may have one."""

    directory: Path
    spec: dict[str, Any]

    @classmethod
    def load(cls, directory: Path) -> Container | None:
        """The container in a directory; None where there is none."""
        spec = statedir.read_json(directory / statedir.SPEC)
        return None if spec is None else cls(directory=directory, spec=spec)

    @property
    def id(self) -> str:
        """Unique for ever, unlike the name."""
        return str(self.spec["id"])

    @property
    def name(self) -> str:
        """The deterministic name."""
        return self.directory.name

    @property
    def labels(self) -> dict[str, str]:
        """As the spec gave them."""
        return dict(self.spec["labels"])

    def read(self, file: str) -> dict[str, Any] | None:
        """One of the state files; None where it is not there (yet)."""
        return statedir.read_json(self.directory / file)

    def ever_started(self) -> bool:
        """Whether a shim has had it; then it is never started again."""
        return (self.directory / statedir.RUN).exists()

    def has_ended(self) -> bool:
        """Whether nothing will be written to the log any more; a removed container has ended too."""
        if (self.directory / statedir.REFUSED).exists() or not self.directory.exists():
            return True
        return self.ever_started() and not statedir.is_locked(self.directory)

    @contextlib.contextmanager
    def shim(self) -> Iterator[int | None]:
        """A descriptor of the living shim, readable at its end; None when it does not run.

        It is opened before the lock is looked at: whatever happens in between, it is the shim's, never
        another process that was given the same number.
        """
        descriptor = self.open_shim()
        try:
            yield descriptor
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def open_shim(self) -> int | None:
        """The same descriptor, for the caller to close."""
        run = self.read(statedir.RUN)
        if run is None:
            return None
        try:
            descriptor = os.pidfd_open(run["pid"])
        except ProcessLookupError:
            return None
        if statedir.is_locked(self.directory):
            return descriptor
        os.close(descriptor)
        return None

    def observe(self) -> Observation:
        """The facts, from the strongest evidence to the weakest."""
        ended = self.read(statedir.EXIT)
        if ended is not None:
            return self._ended(ended)
        refused = self.read(statedir.REFUSED)
        if refused is not None:
            return self._observation(
                ContainerState.CREATED, exit_code=refused["exit_code"], error=refused["error"]
            )
        run = self.read(statedir.RUN)
        if run is None:
            return self._observation(ContainerState.CREATED)
        if statedir.is_locked(self.directory):
            seen = procfs.stat(run["program"]) if "program" in run else None
            state = (
                ContainerState.PAUSED if seen is not None and seen.state == "T" else ContainerState.RUNNING
            )
            return self._observation(state, run=run)
        ended, refused = self.read(statedir.EXIT), self.read(statedir.REFUSED)
        if ended is not None or refused is not None:  # written between our looks
            return self.observe()
        return self._observation(ContainerState.EXITED, run=run, exit_code=LOST_EXIT, error=_LOST)

    def usage(self) -> UsageSample | None:
        """Counters of all processes of a running job; None when it is not running."""
        run = self.read(statedir.RUN)
        if run is None or not statedir.is_locked(self.directory):
            return None
        shim = procfs.stat(run["pid"])
        pids = procfs.descendants(run["pid"])
        stats = [seen for pid in pids if (seen := procfs.stat(pid)) is not None]
        if shim is None or not stats:
            return None
        now = sum(procfs.anonymous_bytes(pid) for pid in pids)
        return UsageSample(
            taken_at=datetime.now(UTC),
            # The shim has waited for the orphans, their time is in its children's.
            cpu_ns=shim.children_cpu_ns + sum(seen.cpu_ns + seen.children_cpu_ns for seen in stats),
            memory_bytes=now,
            # The kernel keeps a peak for each process, not for all; one process is the usual case.
            memory_peak_bytes=max(now, *(procfs.peak_bytes(pid) for pid in pids)),
        )

    def signal(self, *, force: bool) -> None:
        """Order the shim to end the program, or to kill it; clean up after a shim that is gone."""
        with self.shim() as shim:
            if shim is None:
                self._kill_leftovers()
                return
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(shim, KILL if force else TERMINATE)

    def kill(self, *, timeout_seconds: float) -> bool:
        """Kill and wait until the shim has recorded the end; False when that took too long."""
        deadline = time.monotonic() + timeout_seconds
        with self.shim() as shim:
            if shim is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(shim, KILL)
                ready, _, _ = select.select([shim], [], [], max(0.0, deadline - time.monotonic()))
                return bool(ready)
        self._kill_leftovers()
        return True

    def _kill_leftovers(self) -> None:
        """What a killed shim left behind; its program died with it, the children of that did not."""
        run = self.read(statedir.RUN)
        if run is None or self.read(statedir.EXIT) is not None or statedir.is_locked(self.directory):
            return
        for pid in procfs.session_members(run["pid"]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _ended(self, ended: dict[str, Any]) -> Observation:
        return self._observation(
            ContainerState.EXITED,
            run=self.read(statedir.RUN),
            exit_code=ended["exit_code"],
            oom_killed=ended["oom_killed"],
            finished_at=_moment(ended["finished_at_ns"]),
        )

    def _observation(
        self, state: ContainerState, *, run: dict[str, Any] | None = None, **facts: Any
    ) -> Observation:
        return Observation(
            state=state,
            container_id=self.id,
            name=self.name,
            labels=self.labels,
            created_at=_moment(self.spec["created_at_ns"]),
            started_at=None if run is None else _moment(run["started_at_ns"]),
            **facts,
        )


def _moment(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)
