"""The time of a claim does not grow with the table."""

from __future__ import annotations

import time
from statistics import quantiles
from typing import TYPE_CHECKING

from tests.benchmarks.context import Context
from tests.benchmarks.ours import set_up
from tests.benchmarks.place import SQLITE
from tests.benchmarks.report import Row

if TYPE_CHECKING:
    from container_manager.models import ExecutorHost
    from container_manager.models.lease import HeldLease

SMALL, LIMIT, GOAL = 1000, 8, 1.2
_SERIES = {
    SQLITE: "WITH RECURSIVE series(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < {count}) ",
    "postgres": "WITH series(n) AS (SELECT * FROM generate_series(1, {count})) ",
}
_ID = {SQLITE: "lower(hex(randomblob(16)))", "postgres": "gen_random_uuid()"}
#: Jobs of one age would have to be sorted by their ids; in life no two are.
_AGE = {
    SQLITE: "strftime('%%Y-%%m-%%d %%H:%%M:%%f', created_at, '+' || n || ' seconds')",
    "postgres": "created_at + n * interval '1 second'",
}


def measure(context: Context) -> list[Row]:
    """Claims of a full hand among few rows, then among many."""
    host = set_up(context.engine_url)
    from container_manager.models import EngineLease

    lease = EngineLease.acquire("bench", "bench", 3600.0)
    assert lease is not None
    pending, finished = context.pick(30_000, 100_000), context.pick(70_000, 300_000, 1_000_000)
    turns = context.pick(20, 40)
    _fill(context.database, host, SMALL, "pending")
    few = _claims(lease, host, turns)
    _fill(context.database, host, pending, "pending")
    _fill(context.database, host, finished, "completed")
    many = _claims(lease, host, turns)
    slow, fast = _undisturbed(many), _undisturbed(few)
    ratio = slow / fast
    return [
        Row(
            measure=f"claim of {LIMIT} among {pending:,} pending, {finished:,} finished ({context.database})",
            yardstick=f"{fast:.2f} ms among {SMALL:,} rows",
            ours=f"{slow:.2f} ms",
            comparison=f"{ratio:.2f} times",
            goal=f"<= {GOAL} times",
            holds=ratio <= GOAL,
            figures={"few": few, "many": many, "ratio": ratio, "pending": pending, "finished": finished},
        )
    ]


def _undisturbed(times: list[float]) -> float:
    """The lower quartile: the two sizes cannot alternate, so what else the machine did must be left out."""
    return quantiles(times, n=4)[0]


def _claims(lease: HeldLease, host: ExecutorHost, turns: int) -> list[float]:
    """Milliseconds of each claim. What was claimed stays claimed, as in life."""
    from container_manager import lifecycle

    times = []
    for turn in range(turns + 3):
        began = time.perf_counter()
        taken = lifecycle.claim(lease, host, limit=LIMIT, worker="bench")
        milliseconds = (time.perf_counter() - began) * 1e3
        if len(taken) != LIMIT:
            raise RuntimeError(f"{len(taken)} of {LIMIT} jobs were claimed")
        if turn >= 3:  # the first ones warm the caches
            times.append(milliseconds)
    return times


def _fill(database: str, host: ExecutorHost, count: int, status: str) -> None:
    """Rows by the hundred thousand: one made in the proper way, and copies of it made by the database."""
    from django.db import connection

    from container_manager.models import ContainerJob

    one = ContainerJob.objects.create_job("bench:1", ["true"], docker_host=host)
    quote = connection.ops.quote_name
    columns = [str(field.column) for field in ContainerJob._meta.concrete_fields]
    values = {column: quote(column) for column in columns}
    values["id"] = _ID[database]
    values["status"] = "%s"
    values["created_at"] = _AGE[database]
    values["priority"] = "(n %% 5)"
    quoted = ", ".join(quote(column) for column in columns)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {ContainerJob._meta.db_table} ({quoted}) "
            + _SERIES[database].format(count=count)
            + f"SELECT {', '.join(values[column] for column in columns)} "
            f"FROM {ContainerJob._meta.db_table}, series WHERE id = %s",
            [status, one.pk.hex if database == SQLITE else one.pk],
        )
        cursor.execute("ANALYZE")
