"""Starting a shim: the worker's side of it."""

from __future__ import annotations

import select
import subprocess
import sys
import time
from pathlib import Path

from container_manager.core.errors import EngineFault, HostTimeout
from container_manager.executors.process import statedir

#: The shim sees the standard library and this package, no site-packages: it starts in a third of the time.
_BOOT = """
import sys
sys.path.append(sys.argv[1])
from container_manager.executors.process.shim import main
main()
"""
_PACKAGE_ROOT = Path(__file__).resolve().parents[3]


def launch(directory: Path, *, timeout_seconds: float) -> str:
    """Start the shim of a container and return its report. Raises `HostTimeout`, `EngineFault`."""
    if not sys.executable:
        raise EngineFault(
            "The process executor needs the path of the Python interpreter, and sys.executable is empty."
        )
    command = [sys.executable, "-I", "-S", "-c", _BOOT, str(_PACKAGE_ROOT), str(directory)]
    with (directory / statedir.SHIM_ERRORS).open("ab") as errors:
        launcher = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd="/",
            start_new_session=True,  # Ctrl-C in the worker's terminal is not for the jobs
        )
    with launcher:  # it forks and ends at once
        report = _read_to_end(launcher, time.monotonic() + timeout_seconds)
    if report is None:
        raise HostTimeout(f"The shim of {directory.name} did not report within {timeout_seconds:g} s.")
    if not report:
        detail = (directory / statedir.SHIM_ERRORS).read_text(errors="replace")[-2000:]
        raise EngineFault(f"The shim of {directory.name} ended without a report.", detail=detail)
    return report


def _read_to_end(launcher: subprocess.Popen[bytes], deadline: float) -> str | None:
    pipe = launcher.stdout
    if pipe is None:
        raise AssertionError("the launcher's output is a pipe")
    report = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        piece = pipe.read1(65536)  # type: ignore[attr-defined]
        if not piece:
            return report.decode(errors="replace")
        report += piece
