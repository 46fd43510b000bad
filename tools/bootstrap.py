"""Make the development environment: a virtual environment with what uv.lock names, from the ordinary index.

    python tools/bootstrap.py .venv

uv lives in an environment of its own (.state/bootstrap), since it removes from .venv whatever the lock
file does not have.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import apt

PROJECT = Path(__file__).resolve().parent.parent
BOOTSTRAP = PROJECT / ".state" / "bootstrap"
EXTRAS = ["dev", "postgres"]


class BootstrapError(RuntimeError):
    """The environment cannot be made; the text says what to do."""


def uv() -> Path:
    """The program uv, installed by pip where it is missing. Raises `BootstrapError`."""
    program = BOOTSTRAP / "bin" / "uv"
    if (
        program.exists()
        and subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0
    ):
        return program
    _make_environment(BOOTSTRAP)
    _run([str(BOOTSTRAP / "bin" / "python"), "-m", "pip", "install", "--quiet", "--upgrade", "uv"])
    return program


def _make_environment(folder: Path) -> None:
    try:
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    except BootstrapError as error:
        # Debian keeps the part of Python that makes environments in a package of its own.
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        if not Path(sys.executable).resolve().is_relative_to("/usr/bin"):
            raise
        try:
            apt.install([package])
        except apt.CannotInstallError as refusal:
            raise BootstrapError(f"{error}\n{refusal}") from refusal
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])


def sync(venv: Path, *, python: str = sys.executable, extras: list[str] | None = None) -> None:
    """Bring `venv` to what the lock file names. Raises `BootstrapError`."""
    chosen = [part for extra in EXTRAS if extras is None or extra in extras for part in ("--extra", extra)]
    _run(
        [
            str(uv()),
            "sync",
            "--frozen",
            "--no-progress",
            "--python",
            python,
            "--no-python-downloads",
            *chosen,
        ],
        UV_PROJECT_ENVIRONMENT=str(venv.absolute()),
    )


def _run(command: list[str], **variables: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    code = subprocess.run(command, cwd=PROJECT, env={**environment, **variables}, check=False).returncode
    if code:
        raise BootstrapError(f"`{' '.join(command)}` failed with exit code {code}; its own words are above")


def main() -> int:
    """The command line; returns the exit code."""
    venv = Path(sys.argv[1] if len(sys.argv) > 1 else ".venv")
    print(f"environment {venv}: installing what uv.lock names", file=sys.stderr, flush=True)
    try:
        sync(venv)
    except BootstrapError as error:
        print(f"environment {venv}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
