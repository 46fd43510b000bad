"""Twenty jobs that write as fast as they can: the worker's memory stays, and so does the database."""

from __future__ import annotations

import pytest

from container_manager.models import LogChunk
from tests.acceptance.running import register, stored, until_status
from tests.fault import harm, jobs

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

MB = 1 << 20
JOBS = 20
#: How much the worker may grow: twenty readers with a chunk of 256 KiB on its way, the inbox's batches, the
#: columns' heads and tails, and what the allocator keeps of all that.
GROWTH_BYTES = 64 * MB
#: Frames are stored with 13 bytes each; a line here is a thousand.
OVERHEAD = 1.05

FLOODING = """
import sys
left, line = int(sys.argv[1]), b"x" * 999 + b"\\n"
block = line * 64
while left > 0:
    sys.stdout.buffer.write(block)
    left -= len(block)
sys.stdout.buffer.flush()
"""


def test_row_21_twenty_jobs_flood_their_logs(
    transactional_db: None, child_environment: dict[str, str]
) -> None:
    total = round(harm.pick(100, 1000)) * MB
    cap = round(harm.pick(2, 16)) * MB
    engine = harm.engine("one")
    host = register(engine.url, "one", max_concurrent_jobs=JOBS)
    with harm.seen(engine) as client, harm.worker(child_environment, LOG_MAX_BYTES=cap) as process:
        until_status(jobs.make(host, "echo warm"), "completed")
        flood = [jobs.make(host, jobs.python(FLOODING, str(total // JOBS))) for _ in range(JOBS)]
        with harm.Memory(process.pid) as memory:
            for job in flood:
                until_status(job, "completed", "failed", "timeout", seconds=harm.pick(120, 600))
        harm.nothing_left(client)
    assert memory.growth <= GROWTH_BYTES, f"the worker grew by {memory.growth / MB:.0f} MB"
    for job in flood:
        job = stored(job)
        assert jobs.ended(job) == ("completed", "success", 0), job.exit_message
        execution = job.executions.get()
        assert execution.logs_truncated
        assert not execution.logs_complete
        kept = sum(len(chunk.data) for chunk in LogChunk.objects.filter(execution=execution).iterator(4))
        assert cap * 0.9 <= execution.stdout_bytes <= cap, f"{execution.stdout_bytes} of {cap} bytes"
        assert kept <= cap * OVERHEAD, f"{kept} bytes are in the database, the cap is {cap}"
        assert "left out here" in job.stdout_log
        assert job.stdout_log.count("left out here") == 1
        assert "LOG_MAX_BYTES" in job.stdout_log + job.docker_log + job.exit_message, (
            "nobody tells that the log was cut at LOG_MAX_BYTES: the mark promises all of it"
        )
        jobs.ended_once(job)
