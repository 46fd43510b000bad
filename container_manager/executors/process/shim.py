"""The process that stands beside each job: starts the program, records it, and outlives the worker.

Started by `launch`, once for each container; it holds the container's lock while it lives. Signals to it
are orders: SIGTERM asks the program to end, SIGUSR1 kills it. Standard library only.

The memory limit is watched, not enforced by the kernel: 20 times a second the anonymous memory of all
processes of the job is added up (pages shared after a fork count once for each), and over the limit the
largest one is killed, as the kernel's own out-of-memory killer would do. What grows past the limit and
ends between two looks is not seen; what maps a gigabyte more than its limit is refused by the kernel
(RLIMIT_DATA) and fails as any allocation does.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from container_manager.executors.process import bells, procfs, statedir
from container_manager.executors.process.program import NotStartedError, Program, become_subreaper, start
from container_manager.executors.process.recorder import Recorder

STARTED = "started"
BUSY = "busy"  # another shim has the container
GONE = "gone"

TERMINATE = signal.SIGTERM
KILL = signal.SIGUSR1

_MEMORY_SECONDS = 0.05
_DRAIN_MS = 2000
_READ_BYTES = 256 * 1024
_REPORT = 1  # the launcher reads it


def main() -> None:
    """Detach, and care for the container whose directory is the last argument."""
    directory = Path(sys.argv[-1])
    if os.fork():
        os._exit(0)
    os.setsid()
    try:
        lock = statedir.take_lock(directory)
    except FileNotFoundError:
        _report(GONE)
        return
    if lock is None or _was_started(directory):
        _report(BUSY)
        return
    Shim(directory).run()


class Shim:
    """One run of one program, from the fork to the record of its end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._bells = directory.parent.parent / statedir.BELLS
        self._spec = statedir.read_json(directory / statedir.SPEC) or {}
        self._recorder = Recorder(directory)
        self._signals = _signal_pipe()
        self._poll = select.poll()
        self._exit_code: int | None = None
        self._out_of_memory = False
        self._cpu_seconds = 0.0
        self._peak_bytes = 0
        self._look_at = 0.0

    def run(self) -> None:
        """Start the program and stay until it and all its children are gone and everything is recorded."""
        become_subreaper()
        run = {"pid": os.getpid(), "started_at_ns": time.time_ns()}
        # First the intent: should we die now, nobody may start the program a second time.
        statedir.write_json(self._directory / statedir.RUN, run)
        try:
            program = start(self._spec)
        except NotStartedError as error:
            refusal = {"exit_code": error.exit_code, "error": str(error)}
            statedir.write_json(self._directory / statedir.REFUSED, refusal)
            bells.ring(self._directory / statedir.BELLS)
            _report(json.dumps(refusal))
            return
        statedir.write_json(self._directory / statedir.RUN, {**run, "program": program.pid})
        self._announce("start", run["started_at_ns"])
        bells.ring(self._directory / statedir.BELLS)
        _report(STARTED)
        open_pipes = self._attend(program)
        finished_at_ns = time.time_ns()
        self._kill_rest()
        self._drain(open_pipes)
        self._recorder.finish()
        self._record_end(finished_at_ns)

    def _attend(self, program: Program) -> dict[int, int]:
        """Read, watch and obey until the program ends; the pipes that are still open, with their streams."""
        pipes = {program.stdout: 1, program.stderr: 2}
        for descriptor in (self._signals, *pipes):
            self._poll.register(descriptor, select.POLLIN)
        while self._exit_code is None:
            for descriptor, _ in self._poll.poll(_MEMORY_SECONDS * 1000):
                if descriptor in pipes:
                    self._read(descriptor, pipes)
                else:
                    self._obey(program)
            if time.monotonic() >= self._look_at:
                self._look_at = time.monotonic() + _MEMORY_SECONDS
                self._watch_memory()
        return pipes

    def _read(self, descriptor: int, pipes: dict[int, int]) -> None:
        data = os.read(descriptor, _READ_BYTES)
        if data:
            self._recorder.feed(pipes[descriptor], data)
        else:
            self._poll.unregister(descriptor)
            del pipes[descriptor]
            os.close(descriptor)

    def _obey(self, program: Program) -> None:
        for number in os.read(self._signals, 4096):
            if number == signal.SIGCHLD:
                self._reap(program)
            elif self._exit_code is None:
                self._signal(program, signal.SIGKILL if number == KILL else signal.SIGTERM)

    def _signal(self, program: Program, number: int) -> None:
        # The program is not reaped yet, so its number is its own. A stopped one hears only after CONT.
        for one in (number, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, one)
            if os.getpgid(program.pid) != program.pid:  # it moved; else it would get the signal twice
                os.kill(program.pid, one)

    def _reap(self, program: Program) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._account(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
            if pid == program.pid:
                code = os.waitstatus_to_exitcode(status)
                self._exit_code = code if code >= 0 else 128 - code

    def _account(self, cpu_seconds: float, peak_kib: int) -> None:
        self._cpu_seconds += cpu_seconds
        self._peak_bytes = max(self._peak_bytes, peak_kib * 1024)

    def _watch_memory(self) -> None:
        sizes = {pid: procfs.anonymous_bytes(pid) for pid in procfs.descendants(os.getpid())}
        used = sum(sizes.values())
        if used > self._spec["memory_bytes"]:
            self._out_of_memory = True
            self._peak_bytes = max(self._peak_bytes, used)
            with contextlib.suppress(ProcessLookupError):
                os.kill(max(sizes, key=sizes.__getitem__), signal.SIGKILL)

    def _kill_rest(self) -> None:
        """End what the program left running, also what has moved to another group or session."""
        while True:
            for pid in procfs.descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                _, _, usage = os.wait4(-1, 0)
            except ChildProcessError:
                return
            self._account(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)

    def _drain(self, pipes: dict[int, int]) -> None:
        """Read what is left in the pipes; nobody of ours can write any more."""
        self._poll.unregister(self._signals)
        while pipes:
            ready = self._poll.poll(_DRAIN_MS)
            if not ready:
                return  # somebody outside was handed the other end and keeps it
            for descriptor, _ in ready:
                self._read(descriptor, pipes)

    def _record_end(self, finished_at_ns: int) -> None:
        end = {
            "exit_code": self._exit_code,
            "oom_killed": self._out_of_memory,
            "finished_at_ns": finished_at_ns,
            "cpu_seconds": round(self._cpu_seconds, 6),
            "peak_bytes": self._peak_bytes,
            "left_out_bytes": self._recorder.left_out_bytes,
        }
        statedir.write_json(self._directory / statedir.EXIT, end)

    def _announce(self, action: str, at_ns: int) -> None:
        event: dict[str, Any] = {
            "action": action,
            "id": self._spec["id"],
            "name": self._directory.name,
            "at_ns": at_ns,
        }
        bells.ring(self._bells, json.dumps({**event, "labels": self._spec["labels"]}).encode())


def _signal_pipe() -> int:
    """Signals as bytes of a pipe, so that one poll waits for everything."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, TERMINATE, KILL):
        signal.signal(number, _heard)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return reading


def _heard(number: int, frame: object) -> None:
    """Python must have a handler for a signal to reach the pipe."""


def _was_started(directory: Path) -> bool:
    return (directory / statedir.RUN).exists()


def _report(text: str) -> None:
    """Tell the launcher how the start went, and let go of it."""
    os.write(_REPORT, text.encode())
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, _REPORT)
    os.close(null)
