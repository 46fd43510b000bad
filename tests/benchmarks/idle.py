"""What a worker costs while its jobs just run: processor time, and requests to the engine."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.context import Context
from tests.benchmarks.ours import NONE, WorkerProcess, set_up, until
from tests.benchmarks.proxy import CountingProxy
from tests.benchmarks.report import Row

CPU_GOAL = 1.0  # percent of a core
REQUESTS_GOAL = 150  # a minute, for a hundred containers
MINUTE = 60.0


def measure(context: Context) -> list[Row]:
    """Start sleepers, wait until all run and were sampled once, and then look on."""
    sleepers, seconds = context.pick(20, 50, 100), context.pick(20, 30, 60)
    with (
        tempfile.TemporaryDirectory(prefix="cj-bench-") as folder,
        CountingProxy(context.engine_url, Path(folder) / "docker.sock") as proxy,
    ):
        room = sleepers + 10  # a worker with free slots looks for jobs all the time
        set_up(proxy.url, slots=room)
        with WorkerProcess("--concurrency", str(room)) as worker:
            jobs = _start(context, sleepers)
            try:
                _settle(proxy, sleepers)
                requests, cpu = _look_on(proxy, worker, seconds)
            finally:
                _end(jobs)
    per_minute = sum(requests.values()) / seconds * MINUTE
    percent = cpu / seconds * 100
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(requests.items(), key=lambda pair: -pair[1]))
    title = f"{sleepers} sleepers, {seconds} s ({context.database})"
    return [
        Row(
            measure=f"worker's processor time, {title}",
            ours=f"{percent:.2f} % of a core",
            goal=f"<= {CPU_GOAL:g} %",
            holds=percent <= CPU_GOAL,
            figures={"percent": percent, "seconds": seconds, "sleepers": sleepers},
        ),
        Row(
            measure=f"requests to the engine, {title}",
            ours=f"{per_minute:.0f} a minute",
            comparison=kinds,
            goal=f"<= {REQUESTS_GOAL}",
            holds=per_minute <= REQUESTS_GOAL,
            figures={"per_minute": per_minute, "kinds": requests},
        ),
    ]


def _start(context: Context, count: int) -> list[Any]:
    from container_manager.models import ContainerJob

    jobs = ContainerJob.objects.create_jobs(
        {
            "image": context.image,
            "command": ["sleep", "600"],
            "name": f"sleeper-{number}",
            "memory_limit": 32,
            "timeout_seconds": 900,
            "network_configuration": NONE,
        }
        for number in range(count)
    )
    running = ContainerJob.objects.filter(status="running")
    until(lambda: running.count() == count, 30 + count, f"{count} jobs running", every=0.5)
    return jobs


def _settle(proxy: CountingProxy, count: int) -> None:
    """A container's first sample comes soon after its start; what follows is the steady state."""

    def sampled() -> bool:
        return sum(n for kind, n in proxy.counts().items() if kind.endswith("/stats")) >= count

    until(sampled, 30 + 2 * count, "every container sampled once", every=0.2)


def _look_on(proxy: CountingProxy, worker: WorkerProcess, seconds: int) -> tuple[dict[str, int], float]:
    counts, cpu = proxy.counts(), worker.cpu_seconds()
    time.sleep(seconds)
    return dict(proxy.counts() - counts), worker.cpu_seconds() - cpu


def _end(jobs: list[Any]) -> None:
    from container_manager.models import ContainerJob, ExecutionMetadata

    for job in jobs:
        job.cancel(by="bench")
    ended = ContainerJob.objects.filter(pk__in=[job.pk for job in jobs], status="cancelled")
    until(lambda: ended.count() == len(jobs), 60 + 2 * len(jobs), "all sleepers ended", every=0.5)
    left = ExecutionMetadata.objects.filter(removed_at__isnull=True).exclude(container_id="")
    until(lambda: not left.exists(), 30 + len(jobs), "all containers removed", every=0.5)
