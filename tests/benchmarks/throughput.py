"""Jobs a second: the raw loop at several thread counts, and a worker draining the same containers."""

from __future__ import annotations

import time
import uuid
from statistics import median

from tests.benchmarks.context import Context
from tests.benchmarks.events import Witness
from tests.benchmarks.ours import WorkerProcess, check_all, set_up, until
from tests.benchmarks.place import SQLITE
from tests.benchmarks.raw import RawEngine
from tests.benchmarks.report import Row

COMMAND = ["sh", "-c", "echo done"]
GOAL, FLOOR = 0.95, 0.85
SLOTS = (4, 8)


def measure(context: Context) -> list[Row]:
    """Rounds of raw, ours, raw, ours: whatever else the machine does hits both."""
    host = set_up(context.engine_url)
    rows = []
    with (
        RawEngine(context.engine_url, context.image, threads=16) as raw,
        Witness(context.engine_url) as seen,
        WorkerProcess(),
    ):
        ours = _Drain(context, seen, host.pk)
        raw.loop(4, 4, COMMAND, "none")  # warm both up
        ours.run(4, "none", 4)
        sweep = (1, 4, 8, 16) if context.database == SQLITE else (4, 8)
        rows.append(_compare(context, raw, ours, "none", sweep, rounds=context.pick(1, 2, 5)))
        if context.database == SQLITE or context.full:
            rows.append(_compare(context, raw, ours, "bridge", (4, 8), rounds=context.pick(1, 1, 5)))
    return rows


class _Drain:
    """Enqueue, and wait until the last container is removed and the last row is written."""

    def __init__(self, context: Context, seen: Witness, host: int) -> None:
        self._context, self._seen, self._host = context, seen, host

    def run(self, count: int, network: str, slots: int) -> float:
        """Jobs a second, from the call of `create_jobs` to the last trace."""
        from container_manager.models import ContainerJob, ExecutionMetadata, ExecutorHost

        host = ExecutorHost.objects.get(pk=self._host)
        if host.max_concurrent_jobs != slots:
            host.max_concurrent_jobs = slots
            host.save(update_fields=["max_concurrent_jobs"])
            time.sleep(5.5)  # the worker reads its hosts every 5 s
        wish = {
            "image": self._context.image,
            "command": COMMAND,
            "network_configuration": [{"network_name": network}],
        }
        began = time.time()
        jobs = ContainerJob.objects.create_jobs([{**wish, "name": uuid.uuid4().hex} for _ in range(count)])
        names = {f"cj-{job.pk.hex}-1" for job in jobs}
        removed = self._seen.wait_for("destroy", names, 60 + count * 2)
        attempts = ExecutionMetadata.objects.filter(job__in=[job.pk for job in jobs])
        until(lambda: not attempts.filter(recorded_at__isnull=True).exists(), 10, "recorded", every=0.1)
        recorded = max(
            moment.timestamp() for moment in attempts.values_list("recorded_at", flat=True) if moment
        )
        check_all(jobs)
        return count / (max(max(removed.values()), recorded) - began)


def _compare(
    context: Context, raw: RawEngine, ours: _Drain, network: str, sweep: tuple[int, ...], *, rounds: int
) -> Row:
    jobs = context.pick(16, 32, 100)
    yardstick: dict[int, list[float]] = {threads: [] for threads in sweep}
    figures: dict[int, list[float]] = {slots: [] for slots in SLOTS}
    for turn in range(rounds):
        for threads in sweep:
            yardstick[threads].append(
                raw.loop(jobs if threads > 1 else max(8, jobs // 4), threads, COMMAND, network)
            )
        # There and back: a change of slots takes the worker seconds to see.
        for slots in SLOTS if turn % 2 == 0 else reversed(SLOTS):
            figures[slots].append(ours.run(jobs, network, slots))
    raw_at, raw_best = max(((n, median(speeds)) for n, speeds in yardstick.items()), key=lambda pair: pair[1])
    our_slots, our_best = max(((n, median(s)) for n, s in figures.items()), key=lambda pair: pair[1])
    every = ", ".join(f"{median(speeds):.1f} at {threads}" for threads, speeds in yardstick.items())
    ratio = our_best / raw_best
    return Row(
        measure=f"trivial jobs, network {network} ({context.database})",
        yardstick=f"{every}: best {raw_best:.2f}/s at {raw_at} threads",
        ours=", ".join(f"{median(s):.2f}/s with {n} slots" for n, s in figures.items()),
        comparison=f"{ratio:.2f} of the raw loop"
        + ("" if ratio >= FLOOR else f", below the floor of {FLOOR}"),
        goal=f">= {GOAL}",
        holds=ratio >= GOAL,
        figures={"raw": yardstick, "ours": figures, "ratio": ratio, "slots": our_slots, "jobs": jobs},
    )
