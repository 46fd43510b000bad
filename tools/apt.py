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
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEBIAN = "http://deb.debian.org/debian"


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


def download(package: str, *, suite: str, folder: Path) -> list[Path]:
    """Fetch a package of another Debian release and all that it needs, into `folder`; installs nothing.

    What lies there already is not fetched again. Raises `CannotInstallError`.
    """
    if not shutil.which("apt-get") or not KEYRING.exists():
        raise CannotInstallError(f"cannot fetch {package}: this is not Debian (no apt-get, or no {KEYRING})")
    print(f"apt: fetching {package} of Debian {suite}", file=sys.stderr, flush=True)
    # A little world in which nothing is installed, so that apt chooses the C library of that release as well.
    for part in ("etc", "lists/partial", "archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "etc" / "sources.list").write_text(f"deb [signed-by={KEYRING}] {DEBIAN} {suite} main\n")
    (folder / "status").touch()
    world = {
        "Dir::Etc::sourcelist": folder / "etc" / "sources.list",
        "Dir::Etc::sourceparts": "/nonexistent",
        "Dir::Etc::preferencesparts": "/nonexistent",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache::archives": folder / "archives",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "APT::Sandbox::User": "root",
    }
    options = [part for name, value in world.items() for part in ("-o", f"{name}={value}")]
    _apt(*options, "update")
    _apt(*options, "install", "-y", "--no-install-recommends", "--download-only", package)
    return sorted((folder / "archives").glob("*.deb"))


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
