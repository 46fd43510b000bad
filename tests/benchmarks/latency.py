"""How long an idle worker takes to start a job, and how long after its end the record is complete."""

from __future__ import annotations

import time
import uuid
from statistics import median
from typing import NamedTuple

from tests.benchmarks.context import Context
from tests.benchmarks.events import Witness
from tests.benchmarks.ours import NONE, WorkerProcess, check_all, set_up
from tests.benchmarks.place import SQLITE
from tests.benchmarks.raw import RawEngine, engine_seconds
from tests.benchmarks.report import Row

#: Lives long enough to be followed, and says a little: an ordinary quiet job.
COMMAND = ["sh", "-c", "echo begin; sleep 0.7; echo end"]
START_GOAL = {SQLITE: 60, "postgres": 15}  # ms above raw
END_GOAL = 50  # ms


def measure(context: Context) -> list[Row]:
    """One raw container, one job, and so on."""
    set_up(context.engine_url)
    raws: list[_RawTimes] = []
    ours: list[_Times] = []
    with (
        RawEngine(context.engine_url, context.image) as raw,
        Witness(context.engine_url) as seen,
        WorkerProcess(),
    ):
        for number in range(context.pick(6, 10, 30) + 1):
            yardstick = _raw_once(raw)
            times = _our_once(context, seen)
            if number:  # the first pair warms both up
                raws.append(yardstick)
                ours.append(times)
    return [
        _start_row(context.database, raws, ours),
        _end_row(context.database, raws, ours),
    ]


class _RawTimes(NamedTuple):
    """Milliseconds: two since the first call, one since FinishedAt."""

    created: float
    started: float
    read: float  # wait answered, the log and the inspection in hand


class _Times(NamedTuple):
    """Milliseconds; all but the last since the call of `create_job`."""

    returned: float  # the call
    claimed: float
    created: float  # the engine has answered
    started: float  # by the engine
    stored: float  # since the `die` event, the row as others see it


def _raw_once(raw: RawEngine) -> _RawTimes:
    began = time.time()
    container = raw.create(COMMAND, "none")
    created = time.time()
    raw.start(container)
    raw.read_to_end(container)
    state = raw.inspect(container)["State"]
    now = time.time()
    raw.remove(container)
    return _RawTimes(
        created=(created - began) * 1e3,
        started=(engine_seconds(state["StartedAt"]) - began) * 1e3,
        read=(now - engine_seconds(state["FinishedAt"])) * 1e3,
    )


def _our_once(context: Context, seen: Witness) -> _Times:
    from container_manager.models import ContainerJob

    began = time.time()
    job = ContainerJob.objects.create_job(
        context.image, COMMAND, name=uuid.uuid4().hex, network_configuration=NONE
    )
    returned = time.time()
    name = f"cj-{job.pk.hex}-1"
    died = seen.wait_for("die", {name}, 30)[name]
    row = ContainerJob.objects.filter(pk=job.pk, completed_at__isnull=False)
    deadline = time.monotonic() + 30
    while not row.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"job {job.pk} has no result 30 s after its container's end")
        time.sleep(0.001)
    stored = time.time()
    (job,) = check_all([job])
    assert job.started_at is not None
    assert job.launched_at is not None
    created = next(line for line in job.docker_log.splitlines() if " create: " in line).split()[0]
    seen.wait_for("destroy", {name}, 30)  # the next one finds an idle engine
    return _Times(
        returned=(returned - began) * 1e3,
        claimed=(job.launched_at.timestamp() - began) * 1e3,
        created=(engine_seconds(created) - began) * 1e3,
        started=(job.started_at.timestamp() - began) * 1e3,
        stored=(stored - died) * 1e3,
    )


def _start_row(database: str, raw: list[_RawTimes], ours: list[_Times]) -> Row:
    yardstick = _RawTimes(*(median(column) for column in zip(*raw, strict=True)))
    middle = _Times(*(median(column) for column in zip(*ours, strict=True)))
    more = median(mine.started - theirs.started for mine, theirs in zip(ours, raw, strict=True))
    goal = START_GOAL[database]
    return Row(
        measure=f"create_job to started, idle worker ({database})",
        yardstick=f"{yardstick.started:.0f} ms, created at {yardstick.created:.0f}",
        ours=f"{middle.started:.0f} ms: call {middle.returned:.0f}, claimed at {middle.claimed:.0f}, "
        f"created at {middle.created:.0f}",
        comparison=f"{more:+.0f} ms (median of pairs)",
        goal=f"<= +{goal} ms",
        holds=more <= goal,
        figures={
            "raw": [times._asdict() for times in raw],
            "ours": [times._asdict() for times in ours],
            "difference": more,
        },
    )


def _end_row(database: str, raw: list[_RawTimes], ours: list[_Times]) -> Row:
    stored = [times.stored for times in ours]
    return Row(
        measure=f"die event to final row, quiet job ({database})",
        yardstick=f"{median(times.read for times in raw):.0f} ms (end to log in hand, by wait)",
        ours=f"{median(stored):.0f} ms, worst {max(stored):.0f}",
        goal=f"<= {END_GOAL} ms",
        holds=median(stored) <= END_GOAL,
        figures={"raw": [times.read for times in raw], "ours": stored},
    )
