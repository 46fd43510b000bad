"""A worker is told to stop with its hands full: nothing of what runs notices."""

from __future__ import annotations

import signal
import time

import pytest

from tests.acceptance.running import register, stored, until, until_status
from tests.fault import harm, jobs

pytestmark = pytest.mark.engine

JOBS = 20
#: What a process needs beyond the grace: to be scheduled on a busy machine, and to end.
MARGIN_SECONDS = 2.0


def test_row_30_sigterm_with_twenty_running_jobs(
    transactional_db: None, child_environment: dict[str, str]
) -> None:
    engine = harm.engine("one")
    host = register(engine.url, "one", max_concurrent_jobs=JOBS)
    crowd = [jobs.make(host, jobs.counting(every=0.1), cpu_limit=0.5) for _ in range(JOBS)]
    grace = harm.QUICK["SHUTDOWN_GRACE_SECONDS"]
    with harm.seen(engine) as client:
        with harm.worker(child_environment) as first:
            for job in crowd:
                until_status(job, "running")
            until(lambda: all("line 3\n" in stored(job).stdout_log for job in crowd), "all to be followed")
            processes = {job: harm.main_process(harm.container_of(client, job)) for job in crowd}
            began = time.monotonic()
            first.send_signal(signal.SIGTERM)
            assert first.wait(60) == 0
            took = time.monotonic() - began
        assert took <= grace + MARGIN_SECONDS, f"the worker took {took:.1f} s to stop, its grace is {grace} s"
        for job, process in processes.items():
            assert process.alive, f"{job} did not survive the worker's stop"
            assert stored(job).status == "running"
        with harm.worker(child_environment):
            for process in processes.values():
                process.signal(signal.SIGUSR1)
            for job in crowd:
                until_status(job, "completed", "failed")
            harm.nothing_left(client)
    for job in crowd:
        assert jobs.ended(job) == ("completed", "success", 0), stored(job).docker_log
        assert stored(job).attempt == 1
        assert "adopt" in stored(job).docker_log
        assert jobs.starts(job) == 1
        jobs.ended_once(job)
        jobs.lines_are_whole(job)
