"""The engine's event stream loses events: no end may depend on them."""

from __future__ import annotations

import signal
import time

import pytest

from tests.acceptance.running import register, stored, until, until_says, until_status
from tests.fault import harm, jobs
from tests.fault.gate import Gate

pytestmark = pytest.mark.engine

#: The engine keeps this many events for whoever asks later.
RING = 256
JOBS = 5


def test_row_24_burst_behind_a_stream_that_is_not_read(
    transactional_db: None, child_environment: dict[str, str]
) -> None:
    engine = harm.engine("one")
    with Gate(engine.url) as gate, harm.seen(engine) as client:
        host = register(gate.url, "gated")
        crowd = [jobs.make(host, jobs.counting(code=number)) for number in range(JOBS)]
        survivor = jobs.make(host, jobs.counting(code=9))
        with harm.worker(child_environment):
            for job in (*crowd, survivor):
                until_status(job, "running")
                until_says(job, "line 3\n")
            gate.hold_events()
            # Events of our own containers, as others never reach our stream. In turn: an engine that is asked
            # at once to resume what it has just paused may hear of the pause afterwards, and believe in it.
            ours = [harm.container_of(client, job) for job in (*crowd, survivor)]
            for _ in range(round(harm.pick(RING, 8 * RING)) // (2 * len(ours)) + 2):
                for container in ours:
                    container.pause()
                for container in ours:
                    container.unpause()
            *_, victim = ours
            for container in ours[:-1]:
                container.kill(signal=signal.SIGUSR1)
            began = time.monotonic()
            for job in crowd:
                until_status(job, "completed", "failed")
            took = time.monotonic() - began
            # Short ones, that no follower reads.
            for job in (brief := [jobs.make(host, "echo brief") for _ in range(3)]):
                until_status(job, "completed")
            assert harm.health_of(host) == "healthy"
            gate.cut_events()
            until(lambda: gate.count("GET /events") >= 2, "the worker to watch again")
            assert stored(survivor).status == "running"
            victim.kill(signal=signal.SIGUSR1)
            until_status(survivor, "completed", "failed")
            harm.nothing_left(client)
    assert took < 15, f"ends that only a comparison can find took {took:.1f} s"
    for number, job in enumerate(crowd):
        wanted = ("completed", "success", 0) if number == 0 else ("failed", "application_error", number)
        assert jobs.ended(job) == wanted
    assert jobs.ended(survivor) == ("failed", "application_error", 9)
    for job in (*crowd, survivor):
        jobs.ended_once(job)
        jobs.lines_are_whole(job)
    for job in brief:
        assert stored(job).clean_output == "brief\n"
        jobs.ended_once(job)


def test_row_24_stream_cut_again_and_again(transactional_db: None, child_environment: dict[str, str]) -> None:
    engine = harm.engine("one")
    with Gate(engine.url) as gate, harm.seen(engine) as client:
        host = register(gate.url, "gated")
        long = jobs.make(host, jobs.counting())
        with harm.worker(child_environment):
            until_status(long, "running")
            until_says(long, "line 3\n")
            short = []
            for number in range(round(harm.pick(6, 40))):
                short.append(jobs.make(host, "echo brief"))
                streams = gate.count("GET /events")
                gate.cut_events()
                until(lambda streams=streams: gate.count("GET /events") > streams, f"stream {number + 2}")  # type: ignore[misc]
            for job in short:
                until_status(job, "completed", "failed")
            assert stored(long).status == "running"
            harm.container_of(client, long).kill(signal=signal.SIGUSR1)
            until_status(long, "completed", "failed")
            harm.nothing_left(client)
    for job in short:
        assert jobs.ended(job) == ("completed", "success", 0)
        assert stored(job).clean_output == "brief\n"
        jobs.ended_once(job)
    assert jobs.ended(long) == ("completed", "success", 0)
    jobs.ended_once(long)
    jobs.lines_are_whole(long)
