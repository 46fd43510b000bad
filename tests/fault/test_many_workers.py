"""Row 10: many workers on one database and one host. Each job is started once, slots are never exceeded, and
nobody complains: neither a worker's log nor the processes that create and cancel jobs meanwhile."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pytest_django import DjangoDbBlocker

from container_manager.models import ContainerJob, EngineLease, ExecutorHost, Installation
from tests import engines
from tests.fault import FULL
from tests.fault.parts import (
    Database,
    EngineWatch,
    WorkerProcess,
    audit,
    local_host,
    python,
    states,
    until,
    until_cleaned,
)
from tests.fault.server import Server
from tools.postgres import Cluster
from tools.private_server import ServerError

SLOTS = 8
JOBS = 1000 if FULL else 60
CREATORS = 4
#: Two cores run about five containers a second; the machine may be busy.
DEADLINE_SECONDS = 60 + JOBS * 1.5

pytestmark = [pytest.mark.engine, pytest.mark.timeout(DEADLINE_SECONDS * 2 + 120)]

#: Creates its share of the jobs one by one, cancels every tenth, and says which is which.
CREATOR = """
from container_manager.models import ContainerJob

image, number = sys.argv[1], int(sys.argv[2])
for index in range(number):
    job = ContainerJob.objects.create_job(image, ["echo", f"ran {index}"], name=f"share {index}")
    print("created", job.pk, flush=True)
    if index % 10 == 9:
        print("cancelled" if job.cancel(by="a test") else "late", job.pk, flush=True)
"""


@pytest.fixture(scope="module")
def postgres_database() -> Iterator[Database]:
    cluster = Cluster(name=f"many-{os.getpid()}")
    try:
        yield Server(cluster).new_database()
    except ServerError as error:
        engines.missing("a PostgreSQL of the tests' own", str(error))
    finally:
        cluster.stop()


def test_row_10_ten_workers_on_postgres(
    postgres_database: Database, docker_url: str, django_db_blocker: DjangoDbBlocker
) -> None:
    with django_db_blocker.unblock(), postgres_database.in_use():
        many_workers(postgres_database, docker_url, workers=10)


def test_row_10_four_workers_on_sqlite(
    tmp_path: Path, docker_url: str, django_db_blocker: DjangoDbBlocker
) -> None:
    database = Database.in_file(tmp_path / "jobs.sqlite3")
    database.migrate()
    with django_db_blocker.unblock(), database.in_use():
        many_workers(database, docker_url, workers=4)


def many_workers(database: Database, docker_url: str, *, workers: int) -> None:
    local_host(docker_url, max_concurrent_jobs=SLOTS)
    with EngineWatch(docker_url, Installation.current()) as watch, ExitStack() as stack:
        crew = [stack.enter_context(WorkerProcess(database)) for _ in range(workers)]
        until(
            lambda: EngineLease.objects.exclude(worker="").exists(),
            lambda: (
                f"a worker to take the host: {ExecutorHost.objects.values_list('health', 'health_error')}"
            ),
        )
        said = create_in_processes(database)
        jobs = list(ContainerJob.objects.all())
        assert len(jobs) == JOBS
        assert {str(job.pk) for job in jobs} == said["created"]
        ended = ContainerJob.objects.exclude(status__in=["pending", "launching", "running"])
        until(
            lambda: ended.count() == JOBS,
            lambda: f"{JOBS} jobs to end; they are {states(jobs)}",
            seconds=DEADLINE_SECONDS,
        )
        until_cleaned(watch)
        for worker in crew:
            worker.must_be_alive()
        complaints = [line for worker in crew for line in worker.complaints]
        logs = [worker.log for worker in crew]
    assert not complaints, f"{len(complaints)} complaints of {workers} workers:\n" + "\n".join(
        complaints[:20]
    )
    assert not [log for log in logs if "locked" in log]
    must_be_right(watch, jobs, said)


def create_in_processes(database: Database) -> dict[str, set[str]]:
    """Several processes create and cancel at once, as web processes do; the ids by what they said of them."""
    share = str(JOBS // CREATORS)
    creators = [python(database, CREATOR, engines.BASE_IMAGE, share) for _ in range(CREATORS)]
    said: dict[str, set[str]] = {"created": set(), "cancelled": set(), "late": set()}
    try:
        for creator in creators:
            out, errors = creator.communicate(timeout=DEADLINE_SECONDS)
            assert creator.returncode == 0, f"a process that creates and cancels jobs failed:\n{errors}"
            assert not errors, errors
            for line in out.splitlines():
                word, job_id = line.split()
                said[word].add(job_id)
    finally:
        _end(creators)
    return said


def _end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def must_be_right(watch: EngineWatch, jobs: list[ContainerJob], said: dict[str, set[str]]) -> None:
    assert audit(watch, jobs) == []
    starts = Counter(len(watch.of(job).starts) for job in jobs)
    assert max(starts) == 1, f"jobs by the number of their starts: {dict(starts)}"
    assert watch.most_at_once <= SLOTS, f"{watch.most_at_once} containers ran at once in {SLOTS} slots"
    assert watch.most_at_once > 1, "nothing ran side by side: this test saw no contention"
    for job in ContainerJob.objects.all():
        told = f"{job.pk}: {job.status} {job.exit_reason}: {job.exit_message}\n{job.docker_log}"
        assert job.attempt <= 1, told
        if str(job.pk) in said["cancelled"]:
            # A cancel that came while the program ran is one that it may have outrun.
            assert job.status in {"cancelled", "completed"}, told
        else:
            assert (job.status, job.exit_reason, job.exit_code) == ("completed", "success", 0), told
        if job.status == "completed":
            assert job.clean_output == f"ran {job.name.removeprefix('share ')}\n", told
            assert len(watch.of(job).starts) == 1, told
