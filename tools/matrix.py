"""Run the tests that need no engine on every supported pair of Python and Django.

Each pair has an environment of its own below .state/matrix, made once. Only interpreters that are here
are used; the others are named.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import bootstrap

PROJECT = Path(__file__).resolve().parent.parent
PLACE = PROJECT / ".state" / "matrix"
PAIRS = [
    ("3.11", "5.2"),
    *((python, django) for python in ("3.12", "3.13") for django in ("5.2", "6.0", "6.1")),
]


def interpreter(version: str) -> Path | None:
    """An interpreter of this version on the machine: from PATH, pyenv, or where uv knows one."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [*sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)]
    if on_path := shutil.which(f"python{version}"):
        candidates.append(Path(on_path))
    answer = subprocess.run(
        [bootstrap.uv(), "python", "find", "--no-python-downloads", "--no-project", version],
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode == 0:
        candidates.append(Path(answer.stdout.strip()))
    for candidate in candidates:
        # A shim of pyenv exists for versions that are not active, and fails only when it is called.
        command = [str(candidate), "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode == 0 and told.stdout.strip() == version:
            return candidate
    return None


def environment(python: Path, version: str, django: str) -> Path:
    """The pair's environment, made or brought up to date. Raises `bootstrap.BootstrapError`."""
    folder = PLACE / f"py{version}-django{django}"
    wanted = hashlib.sha256((PROJECT / "uv.lock").read_bytes() + str(python).encode()).hexdigest()
    stamp = folder / ".ready"
    if not stamp.exists() or stamp.read_text() != wanted:
        bootstrap.sync(folder, python=str(python))
        command = [
            str(bootstrap.uv()),
            "pip",
            "install",
            "--quiet",
            "--python",
            str(folder),
            f"Django=={django}.*",
        ]
        if subprocess.run(command, check=False).returncode:
            raise bootstrap.BootstrapError(f"Django {django} cannot be installed")
        stamp.write_text(wanted)
    return folder


def run(version: str, django: str) -> str:
    """Run the pair's tests; returns its verdict for the table."""
    python = interpreter(version)
    if python is None:
        return "no interpreter"
    try:
        folder = environment(python, version, django)
    except bootstrap.BootstrapError as error:
        return f"FAILED: {error}"
    command = [f"{folder}/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m"]
    command += ["not engine and not postgres and not browser", "tests/unit", "tests/db", "tests/contract"]
    code = subprocess.run(
        command, cwd=PROJECT, env={**os.environ, "CM_TEST_DB": "sqlite"}, check=False
    ).returncode
    return "FAILED" if code else "passed"


def main() -> int:
    """Every pair in turn, then the table; returns the exit code."""
    table = []
    for number, (version, django) in enumerate(PAIRS, start=1):
        print(f"\n=== [{number}/{len(PAIRS)}] Python {version}, Django {django}", flush=True)
        started = time.monotonic()
        table.append((version, django, run(version, django), time.monotonic() - started))
    print()
    for version, django, verdict, seconds in table:
        print(f"  Python {version:<6} Django {django:<6} {verdict:<16} {seconds:6.1f} s")
    return 1 if any(verdict.startswith("FAILED") for _, _, verdict, _ in table) else 0


if __name__ == "__main__":
    sys.exit(main())
