"""Programs that resist: each is gone by its grace and two seconds, and the record says what it was."""

from __future__ import annotations

import time

import docker
import pytest

from container_manager.models import ContainerJob
from tests.acceptance.running import register, stored, until, until_says, until_status
from tests.fault import harm, jobs
from tools.processes import with_cgroup_of

pytestmark = pytest.mark.engine

GRACE_SECONDS = 2.0
#: Beyond the grace, until the end is recorded.
MARGIN_SECONDS = 2.0

IGNORES_TERM = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True:
    signal.pause()
"""
#: Its grandchild has a session of its own, holds the output open and ignores everything that it can.
DOUBLE_FORK = """
import os, signal, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        print("ready", flush=True)
        while True:
            signal.pause()
    os._exit(0)
os.wait()
if sys.argv[1] == "stay":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        signal.pause()
"""
FORK_BOMB = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
FILLS_TMPFS = """
import sys
try:
    with open("/tmp/ballast", "wb") as file:
        while True:
            file.write(b"x" * (1 << 20))
except OSError as error:
    print(error.strerror, flush=True)
    sys.exit(error.errno)
"""
ENOSPC = 28
OOM_CHILD = ["sh", "-c", "python -c 'x = b\"x\" * (400 << 20)'; echo done; exit 0"]


def ids_of(client: docker.DockerClient, job: ContainerJob) -> set[str]:
    return {str(harm.container_of(client, job).id)}


def gone(ids: set[str]) -> None:
    """Not one process of these containers is left."""
    until(lambda: not with_cgroup_of(ids), f"the processes of {ids} to be gone")


def ends_in_time(job: ContainerJob, seconds: float) -> ContainerJob:
    """The end of the job is recorded within so many seconds from now, and the margin."""
    began = time.monotonic()
    ended = until_status(job, "completed", "failed", "timeout", "cancelled")
    took = time.monotonic() - began
    assert took <= seconds + MARGIN_SECONDS, f"{job} took {took:.1f} s to end, {seconds:g} s are its time"
    jobs.ended_once(ended)
    return ended


def test_row_22_stubborn_programs_are_ended(
    transactional_db: None, child_environment: dict[str, str]
) -> None:
    engine = harm.engine("one")
    host = register(engine.url, "one")
    programs = {
        "ignores TERM": jobs.make(host, jobs.python(IGNORES_TERM)),
        "double fork": jobs.make(host, jobs.python(DOUBLE_FORK, "stay")),
        "fork bomb": jobs.make(host, jobs.python(FORK_BOMB), cpu_limit=0.3, memory_limit=512),
    }
    with (
        harm.seen(engine) as client,
        harm.worker(child_environment, STOP_GRACE_SECONDS=GRACE_SECONDS, PIDS_LIMIT=64),
    ):
        ids = {}
        for name, job in programs.items():
            until_says(job, "ready")
            ids[name] = ids_of(client, job)
        for job in programs.values():
            assert job.cancel(by="a test")
        for name, job in programs.items():
            ended = ends_in_time(job, GRACE_SECONDS)
            assert (ended.status, ended.exit_reason) == ("cancelled", "cancelled"), name
            gone(ids[name])
        harm.nothing_left(client)
    assert stored(programs["ignores TERM"]).exit_code == 137
    assert stored(programs["double fork"]).exit_code == 0


def test_row_22_fork_bomb_runs_into_its_timeout_and_its_neighbour_does_not_notice(
    transactional_db: None, child_environment: dict[str, str]
) -> None:
    engine = harm.engine("one")
    host = register(engine.url, "one")
    limit = 3
    bomb = jobs.make(host, jobs.python(FORK_BOMB), cpu_limit=0.3, memory_limit=512, timeout_seconds=limit)
    with (
        harm.seen(engine) as client,
        harm.worker(child_environment, STOP_GRACE_SECONDS=GRACE_SECONDS, PIDS_LIMIT=64),
    ):
        until_says(bomb, "ready")
        ids = ids_of(client, bomb)
        neighbour = jobs.make(host, "echo fine")
        assert ends_in_time(neighbour, 10).clean_output == "fine\n"
        ended = ends_in_time(bomb, limit + GRACE_SECONDS)
        gone(ids)
        harm.nothing_left(client)
    assert (ended.status, ended.exit_reason, ended.exit_code) == ("timeout", "timeout", 137)
    assert ended.duration is not None
    assert ended.duration.total_seconds() <= limit + GRACE_SECONDS + MARGIN_SECONDS


def test_row_22_what_a_program_does_to_itself_has_its_reason(
    transactional_db: None, child_environment: dict[str, str]
) -> None:
    engine = harm.engine("one")
    host = register(engine.url, "one")
    full_tmpfs = jobs.make(host, jobs.python(FILLS_TMPFS), memory_limit=256)
    tmpfs_is_memory = jobs.make(host, jobs.python(FILLS_TMPFS), memory_limit=32)
    child = jobs.make(host, OOM_CHILD)
    left_behind = jobs.make(host, jobs.python(DOUBLE_FORK, "leave"))
    with harm.seen(engine) as client, harm.worker(child_environment):
        ended = {job: ends_in_time(job, 20) for job in (full_tmpfs, tmpfs_is_memory, child, left_behind)}
        harm.nothing_left(client)
    assert jobs.ended(full_tmpfs) == ("failed", "application_error", ENOSPC)
    assert ended[full_tmpfs].clean_output == "No space left on device\n"
    assert jobs.ended(tmpfs_is_memory) == ("failed", "out_of_memory", 137)
    assert "32 MB" in ended[tmpfs_is_memory].exit_message
    assert jobs.ended(child) == ("completed", "success", 0)
    assert "out of memory" in ended[child].exit_message, "a success with a warning"
    assert ended[child].clean_output == "done\n"
    # Process 1 decides; what it left goes with it.
    assert jobs.ended(left_behind) == ("completed", "success", 0)
