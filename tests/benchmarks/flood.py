"""A hundred megabytes of output, both streams in turn: stored soon, exactly, and in little memory."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tests.benchmarks.context import Context
from tests.benchmarks.ours import NONE, WorkerProcess, check_all, set_up
from tests.benchmarks.raw import RawEngine, engine_seconds
from tests.benchmarks.report import Row

if TYPE_CHECKING:
    from container_manager.models import ContainerJob

MEBIBYTE = 1024 * 1024
WITHIN_GOAL, MEMORY_GOAL = 2.0, 64  # seconds after the end, MiB of growth
#: Short lines: a million of them are what a log costs, not their bytes.
LINE_BYTES = 100
#: Line N is its number, padded with one letter that goes round: a lost or doubled line shows.
PROGRAM = """
import os
for number in range({lines}):
    head = b"%d " % number
    line = head + bytes([97 + number % 26]) * ({size} - 1 - len(head)) + b"\\n"
    os.write(1 + number % 2, line)
"""


def measure(context: Context) -> list[Row]:
    """One flooding job after a small one has warmed the worker up."""
    size = context.pick(25, 100)
    lines = size * 1_000_000 // LINE_BYTES
    set_up(context.engine_url)
    raw_within = _raw(context, lines)
    with WorkerProcess() as worker:
        _run(context, 200)
        worker.forget_highest_memory()
        before = worker.memory("VmRSS")
        cpu = worker.cpu_seconds()
        job, within = _run(context, lines)
        growth = (worker.memory("VmHWM") - before) / MEBIBYTE
        cpu = worker.cpu_seconds() - cpu
    exact = all(_digest(job.iter_log(name)) == _expected(lines, stream) for stream, name in _STREAMS)
    title = f"{size} MB of alternating stdout and stderr ({context.database})"
    duration = job.duration.total_seconds() if job.duration else 0.0
    return [
        Row(
            measure=f"{title}: stored after the end",
            yardstick=f"{raw_within:.2f} s until the engine has handed it out",
            ours=f"{within:.2f} s (it ran {duration:.1f} s, worker {cpu:.1f} s of processor)",
            comparison=f"{within - raw_within:+.2f} s",
            goal=f"<= {WITHIN_GOAL:g} s",
            holds=within <= WITHIN_GOAL,
            figures={"raw": raw_within, "within": within, "duration": duration, "cpu": cpu, "lines": lines},
        ),
        Row(
            measure=f"{title}: worker's memory",
            ours=f"{growth:+.0f} MiB",
            goal=f"<= {MEMORY_GOAL} MiB",
            holds=growth <= MEMORY_GOAL,
            figures={"growth": growth, "before": before / MEBIBYTE},
        ),
        Row(
            measure=f"{title}: bytes",
            ours="exact" if exact else "NOT the bytes that were written",
            goal="exact",
            holds=exact,
            figures={},
        ),
    ]


_STREAMS = ((0, "stdout"), (1, "stderr"))


def _raw(context: Context, lines: int) -> float:
    """Seconds from the end until a reader that does nothing else has the last byte."""
    with RawEngine(context.engine_url, context.image) as raw:
        container = raw.create(["python3", "-c", PROGRAM.format(lines=lines, size=LINE_BYTES)], "none")
        raw.start(container)
        raw.follow(container)
        now = time.time()
        return now - engine_seconds(raw.inspect(container)["State"]["FinishedAt"])


def _run(context: Context, lines: int) -> tuple[ContainerJob, float]:
    """The job as stored, and how long after its end that was."""
    from container_manager.models import ContainerJob

    program = PROGRAM.format(lines=lines, size=LINE_BYTES)
    job = ContainerJob.objects.create_job(
        context.image, ["python3", "-c", program], name="flood", network_configuration=NONE
    )
    row = ContainerJob.objects.filter(pk=job.pk, completed_at__isnull=False)
    deadline = time.monotonic() + 300
    while not row.exists():
        if time.monotonic() > deadline:
            raise TimeoutError("the flooding job has no result after 300 s")
        time.sleep(0.02)
    stored = time.time()
    (job,) = check_all([job])
    assert job.completed_at is not None
    return job, stored - job.completed_at.timestamp()


def _digest(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _expected(lines: int, stream: int) -> str:
    digest = hashlib.sha256()
    for number in range(stream, lines, 2):
        head = b"%d " % number
        digest.update(head + bytes([97 + number % 26]) * (LINE_BYTES - 1 - len(head)) + b"\n")
    return digest.hexdigest()
