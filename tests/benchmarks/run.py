"""The benchmarks: what the engine can do by itself, and what is left of it with us in between.

    python -m tests.benchmarks.run                    everything, about six minutes
    python -m tests.benchmarks.run --quick            the same with fewer rounds, about two
    python -m tests.benchmarks.run --only latency     one measure; repeatable
    python -m tests.benchmarks.run --json FILE        the figures of every round as well

Each measure runs in a process of its own, on a fresh database, against a private engine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks import report
from tests.benchmarks.context import Context
from tests.benchmarks.place import IMAGE, POSTGRES, SQLITE, NotHere, Place, prepared
from tests.benchmarks.report import Row

#: Measure (a module beside this one) and the databases that it runs on, in the order of the table.
MEASURES = {
    "throughput": (SQLITE, POSTGRES),
    "latency": (SQLITE, POSTGRES),
    "idle": (SQLITE,),
    "flood": (SQLITE, POSTGRES),
    "bulk": (SQLITE, POSTGRES),
    "claim": (SQLITE, POSTGRES),
}
#: These take longest, and the database matters least: a quick run takes both on SQLite alone.
QUICK_ON_ONE = {"throughput", "flood"}
PATIENCE_SECONDS = 900


def main() -> int:
    """The command line; 1 when a measure could not be taken. A missed goal is told, not an error."""
    options = _options()
    if options.child:
        return _child(options.child)
    rows: list[Row] = []
    failed = False
    began = time.monotonic()
    try:
        with prepared() as place:
            for name, databases in MEASURES.items():
                if options.only and name not in options.only:
                    continue
                for database in _chosen(name, databases, options):
                    taken = _measure(place, name, database, options)
                    failed = failed or taken is None
                    for row in taken or ():
                        print(f"  {row.measure}: {row.ours} {row.comparison}", file=sys.stderr, flush=True)
                    rows += taken or [Row(measure=f"{name} ({database})", ours="not measured", figures={})]
    except NotHere as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    cores, load = os.cpu_count(), os.getloadavg()[1]
    report.show(rows, f"{cores} cores, load average {load:.1f} over the last five minutes")
    if options.json:
        report.store(options.json, rows, _circumstances(options))
    print(f"{time.monotonic() - began:.0f} s in all", file=sys.stderr)
    return int(failed)


def _chosen(name: str, databases: tuple[str, ...], options: argparse.Namespace) -> tuple[str, ...]:
    if options.database:
        return tuple(database for database in databases if database == options.database)
    return databases[:1] if options.quick and name in QUICK_ON_ONE else databases


def _measure(place: Place, name: str, database: str, options: argparse.Namespace) -> list[Row] | None:
    context = Context(
        engine_url=place.engine_url,
        image=IMAGE,
        database=database,
        quick=options.quick,
        full=options.full,
    )
    began = time.monotonic()
    print(f"bench: {name} on {database} ...", end=" ", file=sys.stderr, flush=True)
    try:
        with place.database(database) as environment:
            answer = subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.run", "--child", name],
                input=json.dumps(asdict(context)),
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                timeout=PATIENCE_SECONDS,
                check=True,
            )
    except (NotHere, subprocess.SubprocessError) as error:
        print(error, file=sys.stderr)
        return None
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return [Row.load(stored) for stored in json.loads(answer.stdout)]


def _child(name: str) -> int:
    """Take one measure: context on stdin, rows on stdout."""
    context = Context(**json.load(sys.stdin))
    module = importlib.import_module(f"tests.benchmarks.{name}")
    with contextlib.redirect_stdout(sys.stderr):
        rows: list[Row] = module.measure(context)
    print(json.dumps([row.dump() for row in rows]))
    return 0


def _circumstances(options: argparse.Namespace) -> dict[str, object]:
    return {
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "quick": options.quick,
        "full": options.full,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The raw engine's speed and ours, in one run.")
    parser.add_argument("--only", action="append", choices=list(MEASURES), help="this measure; repeatable")
    parser.add_argument("--database", choices=[SQLITE, POSTGRES], help="on this database alone")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller tables, more noise")
    parser.add_argument("--full", action="store_true", help="the sizes of the goals themselves")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    parser.add_argument("--child", choices=list(MEASURES), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
