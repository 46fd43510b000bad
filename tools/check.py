"""Run the project's checks stage by stage, on the real parts, and sum them up in a table.

    python tools/check.py                 every stage but those that run on request
    python tools/check.py unit contract   some of them
    python tools/check.py --stop          switch off what earlier runs left running

Engines and databases are started once and shared by all stages, and stopped at the end unless
CM_KEEP_ENGINE=1 asks for a quicker next run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.parts import Share

PROJECT = Path(__file__).resolve().parent.parent
HERE = Path(sys.executable).parent  # of the virtual environment, hence not resolved
PYTEST = [sys.executable, "-m", "pytest", "-q", "--durations=3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One line of the table: commands of which every one must succeed."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    database: str = "sqlite"
    on_request: bool = False  # runs only when it is named


def _tests(name: str, folder: str) -> Stage:
    return Stage(name=name, commands=((*PYTEST, f"tests/{folder}"),))


def _database(database: str, *, on_request: bool = False) -> Stage:
    """The tests of the records. They wait more than they compute; each process has its own database."""
    command = (*PYTEST, "-n", "4", "tests/db")
    return Stage(name=f"db-{database}", commands=(command,), database=database, on_request=on_request)


def _records_on_postgres() -> Stage:
    """What the database could make different, on PostgreSQL as well: how jobs live and end."""
    files = ("engine/test_outcomes.py", *(f"acceptance/test_{name}.py" for name in _LIVES))
    command = (*PYTEST, *(f"tests/{file}" for file in files))
    return Stage(name="records-postgres", commands=(command,), database="postgres")


def _deaths_on_postgres() -> Stage:
    """Workers that die, on PostgreSQL as well; part of `make test-faults` alone."""
    files = ("test_rows.py", "test_kill_points.py", "test_random_killer.py")
    command = (*PYTEST, *(f"tests/fault/{file}" for file in files))
    return Stage(name="faults-postgres", commands=(command,), database="postgres", on_request=True)


_LIVES = ("cancel", "integration", "jobs", "logs", "monitoring")

STAGES = (
    Stage(name="lint", commands=((f"{HERE}/ruff", "check", "."), (f"{HERE}/ruff", "format", "--check", "."))),
    Stage(name="imports", commands=((f"{HERE}/lint-imports",),)),
    Stage(
        name="types",
        commands=((f"{HERE}/mypy",), (f"{HERE}/mypy", "-p", "tools"), (f"{HERE}/mypy", "-p", "tests.fault")),
    ),
    _tests("unit", "unit"),
    _database("sqlite"),
    _database("postgres"),
    _database("mariadb"),
    _database("mysql", on_request=True),  # it hangs on Debian unstable
    _tests("contract", "contract"),
    _tests("engine", "engine"),
    _tests("acceptance", "acceptance"),
    _tests("faults", "fault"),
    _deaths_on_postgres(),
    _records_on_postgres(),
    _tests("browser", "browser"),
    _tests("docs", "docs"),
)


def run(stages: Iterable[Stage]) -> int:
    """Run the stages, print the table; returns the number of those that failed."""
    stages = list(stages)
    table: list[tuple[str, str, float]] = []
    share = Share()
    share.join()
    try:
        for number, stage in enumerate(stages, start=1):
            _say(f"\n=== [{number}/{len(stages)}] {stage.name}")
            started = time.monotonic()
            passed = _run(stage)
            table.append((stage.name, "passed" if passed else "FAILED", time.monotonic() - started))
    finally:
        share.leave(keep=bool(os.environ.get("CM_KEEP_ENGINE")))
    _say("")
    for name, verdict, seconds in table:
        _say(f"  {name:<22}{verdict:<8}{seconds:7.1f} s")
    failed = sum(verdict == "FAILED" for _, verdict, _ in table)
    total = sum(seconds for *_, seconds in table)
    _say(f"  {'total':<22}{f'{failed} FAILED' if failed else 'passed':<8}{total:7.1f} s")
    return failed


def _run(stage: Stage) -> bool:
    # The parts stay for the next stage; `run` counts itself in and out around all of them.
    environment = {**os.environ, "CM_KEEP_ENGINE": "1", "CM_TEST_DB": stage.database, "PYTHONUNBUFFERED": "1"}
    codes = [
        subprocess.run(command, cwd=PROJECT, env=environment, check=False).returncode
        for command in stage.commands
    ]
    return not any(codes)


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Run the project's checks.")
    parser.add_argument("stage", nargs="*", help=", ".join(stage.name for stage in STAGES))
    parser.add_argument("--stop", action="store_true", help="switch off what earlier runs left running")
    options = parser.parse_args()
    if options.stop:
        share = Share()
        share.join()
        share.leave()
        return 0
    if unknown := set(options.stage) - {stage.name for stage in STAGES}:
        parser.error(
            f"no stage {', '.join(sorted(unknown))}; there are {', '.join(stage.name for stage in STAGES)}"
        )
    wanted = options.stage or [stage.name for stage in STAGES if not stage.on_request]
    chosen = [stage for stage in STAGES if stage.name in wanted]
    return 1 if run(chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
