"""A host that takes calls and never answers: its neighbours do not notice."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from container_manager.models import ContainerJob, ExecutorHost
from tests.acceptance.running import register, stored, until, until_says, until_status
from tests.fault import FULL, harm, jobs
from tools.engine import Engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

KINDS: dict[str, Callable[[Engine], AbstractContextManager[float]]] = {
    "half-open connection": harm.half_open,
    "daemon stopped by SIGSTOP": harm.frozen,
}
#: How soon a host that does not answer has to be recorded as unreachable, and one that does as healthy.
NOTICED_SECONDS = 20.0
#: The rate of the neighbour beside a sick host, as a part of its rate beside a sound one.
LEAST_RATE = 0.9
BATCH = 12
MOST_PAIRS = 8  # the machine is shared: more pairs where the first few do not tell


def rate(host: ExecutorHost) -> float:
    """Short jobs a second on this host, from the first launch to the last result, by the worker's clock."""
    batch = [jobs.make(host, "true") for _ in range(BATCH)]
    ids = [job.pk for job in batch]

    def done() -> bool:
        return bool(ContainerJob.objects.filter(pk__in=ids, status="completed").count() == BATCH)

    began = time.monotonic()
    until(done, f"{BATCH} short jobs on {host.name} to complete", seconds=120)
    return BATCH / (time.monotonic() - began)


@pytest.mark.parametrize("kind", KINDS)
def test_row_17_sick_host_beside_a_sound_one(
    transactional_db: None, child_environment: dict[str, str], kind: str
) -> None:
    sick, sound = harm.engine("two"), harm.engine("one")
    sick_host, sound_host = register(sick.tcp_url, "sick"), register(sound.tcp_url, "sound")
    outlives = jobs.make(sick_host, jobs.counting(every=0.2, code=4))
    alone: list[float] = []
    beside: list[float] = []
    with harm.seen(sick) as client, harm.worker(child_environment):
        until_status(outlives, "running")
        until_says(outlives, "line 3\n")
        process = harm.main_process(harm.container_of(client, outlives))
        rate(sound_host)  # warm
        for number in _pairs(alone, beside):
            alone.append(rate(sound_host))
            with KINDS[kind](sick) as since:
                # From the first moment on, with launches that hang there, too.
                stuck = [jobs.make(sick_host, "true") for _ in range(3)]
                beside.append(rate(sound_host))
                harm.until_health(sick_host, "unreachable", seconds=NOTICED_SECONDS)
                if number == 0:
                    harm.hold_for(harm.pick(0, 60), since=since)
                beside.append(rate(sound_host))
                assert stored(outlives).status == "running"
            harm.until_health(sick_host, "healthy", seconds=NOTICED_SECONDS)
            alone.append(rate(sound_host))
            for job in stuck:
                until_status(job, "completed")
        process.signal(signal.SIGUSR1)
        until_status(outlives, "completed", "failed")
        harm.nothing_left(client)
    assert jobs.ended(outlives) == ("failed", "application_error", 4)
    jobs.lines_are_whole(outlives)
    for job in ContainerJob.objects.all():
        jobs.ended_once(job)
    ratio = _ratio(alone, beside)
    assert ratio >= LEAST_RATE, (
        f"beside a sick host the sound one did {ratio:.0%} of its rate: jobs a second alone "
        f"{_shown(alone)}, beside {_shown(beside)}"
    )


def _pairs(alone: list[float], beside: list[float]) -> Iterator[int]:
    """Measure on, until the medians of at least `least` pairs say yes, or for as long as there is doubt."""
    least = round(harm.pick(1, 3))
    for number in range(MOST_PAIRS // 2 if not FULL else MOST_PAIRS):
        if number >= least and _ratio(alone, beside) >= LEAST_RATE:
            return
        yield number


def _ratio(alone: list[float], beside: list[float]) -> float:
    return statistics.median(beside) / statistics.median(alone)


def _shown(rates: list[float]) -> str:
    return ", ".join(f"{each:.1f}" for each in rates)


def test_row_17_worker_stops_in_time_beside_a_host_that_hangs(
    transactional_db: None, child_environment: dict[str, str]
) -> None:
    engine = harm.engine("two")
    host = register(engine.tcp_url, "sick")
    job = jobs.make(host, jobs.counting())
    with harm.seen(engine) as client:
        with harm.worker(child_environment) as process:
            until_status(job, "running")
            until_says(job, "line 3\n")
            main = harm.main_process(harm.container_of(client, job))
            with harm.frozen(engine):
                launched = jobs.make(host, "true")
                until_status(launched, "launching")
                # By then a launch and a comparison hang, each for the minute that a call may take.
                harm.until_health(host, "unreachable", seconds=NOTICED_SECONDS)
                process.terminate()
                began = time.monotonic()
                process.wait(60)
                took = time.monotonic() - began
        grace = harm.QUICK["SHUTDOWN_GRACE_SECONDS"]
        assert took <= grace + 3, f"the worker took {took:.1f} s to stop, its grace is {grace} s"
        assert main.alive
        with harm.worker(child_environment):
            main.signal(signal.SIGUSR1)
            until_status(job, "completed")
            until_status(launched, "completed")
            harm.nothing_left(client)
    jobs.ended_once(job)
    jobs.ended_once(launched)
    jobs.lines_are_whole(job)
