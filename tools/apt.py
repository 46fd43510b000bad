"""Install Debian packages that the demo and the tests need, where we may: root on Debian or Ubuntu."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLICY = Path("/usr/sbin/policy-rc.d")


class CannotInstallError(RuntimeError):
    """Packages are missing and cannot be installed here; the text says which and why."""


def may_install() -> str:
    """Why packages cannot be installed on this machine; empty where they can."""
    if os.geteuid() != 0:
        return "not root"
    if not shutil.which("apt-get"):
        return "not Debian or Ubuntu (no apt-get)"
    return ""


def install(packages: list[str]) -> None:
    """Install packages without starting their services; progress goes to stderr.

    Raises `CannotInstallError`.
    """
    names = " ".join(packages)
    if reason := may_install():
        raise CannotInstallError(f"cannot install {names}: {reason}")
    print(f"apt: installing {names} (about a minute)", file=sys.stderr, flush=True)
    with _no_services():
        # The lists may be as old as the machine's image, or missing: an install alone tells nothing then.
        _apt("update")
        _apt("install", "-y", "--no-install-recommends", *packages)


def _apt(*arguments: str) -> None:
    command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=180", *arguments]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        for line in process.stdout:
            log.write(line)
            if line.startswith(("Get:", "Setting up ")):
                print(f"apt: {line.strip()[:100]}", file=sys.stderr, flush=True)
        if process.wait():
            log.seek(0)
            tail = "".join(log.readlines()[-15:])
            raise CannotInstallError(
                f"`{' '.join(command)}` failed with exit code {process.returncode}:\n{tail}"
            )


@contextmanager
def _no_services() -> Iterator[None]:
    """Packages start their daemons unless this file forbids it; one that is there already is left alone."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)
