"""Rows 18 and 19: the database goes away, loses its connections, refuses writes or is full, under load.

Each test has a database of its own, a worker in a process, a real engine, and the same story: programs run,
the fault comes, some of them end meanwhile, the fault goes. Nothing is lost and nothing runs twice, the
worker lives, and no container goes before its result is stored.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pytest_django import DjangoDbBlocker

from container_manager.models import ContainerJob, ExecutionMetadata, Installation
from tests import engines
from tests.acceptance.running import WAITING_PROGRAM
from tests.fault.commit_cutter import CommitCutter
from tests.fault.parts import (
    PATIENCE_SECONDS,
    Database,
    EngineWatch,
    WorkerProcess,
    audit,
    local_host,
    python,
    states,
    until,
    until_cleaned,
    until_ended,
)
from tests.fault.server import Server
from tools.postgres import Cluster
from tools.private_server import ServerError

pytestmark = pytest.mark.engine

#: A lease has run out by then, and every repeated look was taken.
SOON_SECONDS = 45.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from _server(Cluster(name=f"fault-{os.getpid()}"))


@pytest.fixture(scope="module")
def small_server() -> Iterator[Server]:
    """A server whose tables lie on a disk that is soon full."""
    if os.geteuid() != 0:
        engines.missing("a small file system", "mounting one needs root")
    yield from _server(Cluster(name=f"small-{os.getpid()}", disk_mb=90))


def _server(cluster: Cluster) -> Iterator[Server]:
    try:
        yield Server(cluster)
    except ServerError as error:
        engines.missing("a PostgreSQL of the tests' own", str(error))
    finally:
        cluster.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A database in the ORM's hands, a host, and eyes on the engine."""

    database: Database
    watch: EngineWatch


@contextmanager
def scene(
    database: Database, docker_url: str, blocker: DjangoDbBlocker, *, slots: int = 6
) -> Iterator[Scene]:
    with blocker.unblock(), database.in_use():
        local_host(docker_url, max_concurrent_jobs=slots)
        with EngineWatch(docker_url, Installation.current()) as watch:
            yield Scene(database=database, watch=watch)


@pytest.fixture
def on_postgres(server: Server, docker_url: str, django_db_blocker: DjangoDbBlocker) -> Iterator[Scene]:
    with scene(server.new_database(), docker_url, django_db_blocker) as one:
        yield one
        server.cluster.resume()  # a failed test may have left it off


# ------------------------------------------------------------------------------------------- the story


def waiting_jobs(number: int) -> list[ContainerJob]:
    """Programs that run until they are sent SIGUSR1."""
    wish = {"image": engines.BASE_IMAGE, "command": ["python", "-c", WAITING_PROGRAM]}
    return ContainerJob.objects.create_jobs(wish for _ in range(number))


def quick_jobs(number: int) -> list[ContainerJob]:
    """Programs that say one line and end."""
    wish = {"image": engines.BASE_IMAGE, "command": ["echo", "ran"]}
    return ContainerJob.objects.create_jobs(wish for _ in range(number))


def until_all_say(jobs: list[ContainerJob], words: str, *, seconds: float = PATIENCE_SECONDS) -> None:
    ids = [job.pk for job in jobs]
    until(
        lambda: ContainerJob.objects.filter(pk__in=ids, stdout_log__contains=words).count() == len(ids),
        lambda: f"{len(ids)} jobs to say {words!r}; they are {states(jobs)}",
        seconds=seconds,
    )


def until_exited(watch: EngineWatch, jobs: list[ContainerJob]) -> None:
    until(lambda: all(watch.of(job).deaths for job in jobs), f"{len(jobs)} programs to end")


def must_be_kept(watch: EngineWatch, jobs: list[ContainerJob]) -> None:
    """Their results cannot have been stored: the containers are all there is."""
    names = {container.name for container in watch.containers()}
    for job in jobs:
        assert any(job.pk.hex in name for name in names), (
            f"the container of {job.pk} was removed while the database could not store its result"
        )


def must_be_right(watch: EngineWatch, waiting: list[ContainerJob], quick: list[ContainerJob]) -> None:
    """Every job ended as if nothing had happened, by the database's word and by the engine's."""
    assert audit(watch, [*waiting, *quick]) == []
    outputs = [*((job, "first words\nlast words\n") for job in waiting), *((job, "ran\n") for job in quick)]
    for job, output in outputs:
        job.refresh_from_db()
        assert (job.status, job.exit_reason, job.exit_code) == ("completed", "success", 0), (
            f"{job.pk}: {job.status} {job.exit_reason}: {job.exit_message}\n{job.docker_log}"
        )
        assert job.clean_output == output
        assert len(watch.of(job).starts) == 1, f"{job.pk} was started {watch.of(job).starts}"


def goes_through(
    scene: Scene,
    break_it: Callable[[], None],
    mend_it: Callable[[], None],
    *,
    noticed: str = "database:",
    quick: int = 8,
    total: bool = True,
) -> None:
    """The story, for a fault that lasts until it is mended. `total`: nothing can be stored meanwhile."""
    watch = scene.watch
    waiting = waiting_jobs(4)
    with WorkerProcess(scene.database, "--poll-interval", "0.2") as worker:
        until_all_say(waiting, "first words")
        jobs = quick_jobs(quick)
        until(lambda: any(watch.of(job).starts for job in jobs), "the first quick job to be started")
        before = len(worker.log)
        scene.database.forget_connection()
        broken_at = time.time()
        break_it()
        try:
            ends_meanwhile = waiting[:2]
            for job in ends_meanwhile:
                watch.signal(job, "SIGUSR1")
            until_exited(watch, ends_meanwhile)
            worker.until_it_says(noticed, after=before)
            if total:
                worker.until_it_says(noticed, after=len(worker.log))  # again: it goes on trying
                must_be_kept(watch, ends_meanwhile)
            worker.must_be_alive()
        finally:
            mend_it()
        mended_at = time.time()
        scene.database.forget_connection()
        until_ended([*ends_meanwhile, *jobs])
        for job in waiting[2:]:
            watch.signal(job, "SIGUSR1")
        until_ended(waiting)
        until_cleaned(watch)
        worker.must_be_alive()
    must_be_right(watch, waiting, jobs)
    for job in ends_meanwhile if total else []:
        ended = watch.of(job).deaths[0]
        stored = ExecutionMetadata.objects.get(job=job).recorded_at
        assert stored is not None
        assert broken_at <= ended <= mended_at <= stored.timestamp() + 0.5, (
            f"{job.pk} ended at {ended} and was stored at {stored.timestamp()}; "
            f"the database was broken from {broken_at} to {mended_at}"
        )


# ---------------------------------------------------------------------------------------------- row 18


def test_row_18_a_database_that_refuses_connections_for_a_while(on_postgres: Scene, server: Server) -> None:
    goes_through(on_postgres, server.cluster.halt, server.cluster.resume)


def test_row_18_a_database_that_is_killed_and_comes_back(on_postgres: Scene, server: Server) -> None:
    goes_through(on_postgres, server.cluster.kill, server.cluster.resume)


@pytest.mark.parametrize("fault", ["restart", "kill", "terminate"])
def test_row_18_connections_that_break_again_and_again(
    on_postgres: Scene, server: Server, fault: str
) -> None:
    watch = on_postgres.watch
    waiting = waiting_jobs(3)

    def kill_and_resume() -> None:
        server.cluster.kill()
        server.cluster.resume()

    def terminate() -> None:
        server.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = '{on_postgres.database.settings['NAME']}'"
        )

    strike = {"restart": server.cluster.restart, "kill": kill_and_resume, "terminate": terminate}[fault]
    with WorkerProcess(on_postgres.database, "--poll-interval", "0.2") as worker:
        until_all_say(waiting, "first words")
        jobs = quick_jobs(16)
        for number in range(4):
            died = sum(len(watch.of(job).deaths) for job in jobs)
            until(
                lambda died=died: sum(len(watch.of(job).deaths) for job in jobs) > died,  # type: ignore[misc]
                lambda: f"jobs to run on after strike {number}; the worker said\n{worker.log[-3000:]}",  # noqa: B023
            )
            if number < len(waiting):
                watch.signal(waiting[number], "SIGUSR1")
            on_postgres.database.forget_connection()
            strike()
            worker.must_be_alive()
        on_postgres.database.forget_connection()
        until_ended([*waiting, *jobs])
        until_cleaned(watch)
    must_be_right(watch, waiting, jobs)


@pytest.mark.parametrize(
    ("moment", "marker"),
    [
        ("acquire", '"acquired_at" ='),
        ("claim", 'INSERT INTO "container_manager_executionmetadata"'),
        ("start", "'running'"),
        ("finish", "'completed'"),
        ("removed", '"removed_at" ='),
    ],
)
def test_row_18_a_commit_whose_answer_is_lost(
    on_postgres: Scene, server: Server, moment: str, marker: str
) -> None:
    """The database has committed, and the worker cannot know: it must not do the thing twice, nor never."""
    watch = on_postgres.watch
    with CommitCutter(server.url, marker) as cutter:
        with WorkerProcess(
            on_postgres.database, "--poll-interval", "0.2", CM_TEST_POSTGRES_URL=cutter.url
        ) as worker:
            waiting, jobs = waiting_jobs(1), quick_jobs(4)
            assert cutter.cut.wait(60), f"no commit with {marker} went through\n{worker.log}"
            worker.until_it_says("database:")
            until_all_say(waiting, "first words", seconds=SOON_SECONDS)
            watch.signal(waiting[0], "SIGUSR1")
            until_ended([*waiting, *jobs], seconds=SOON_SECONDS)
            until_cleaned(watch)
        must_be_right(watch, waiting, jobs)


def test_row_18_an_adoption_whose_answer_is_lost(on_postgres: Scene, server: Server) -> None:
    """The next worker's first act is cut off: what runs is in its name, and it has to find that out."""
    watch = on_postgres.watch
    with WorkerProcess(on_postgres.database, "--poll-interval", "0.2") as first:
        waiting = waiting_jobs(3)
        until_all_say(waiting, "first words")
        first.stop()
    with CommitCutter(server.url, "'adopt'") as cutter:
        through = {"CM_TEST_POSTGRES_URL": cutter.url}
        with WorkerProcess(on_postgres.database, "--poll-interval", "0.2", **through) as second:
            assert cutter.cut.wait(60), f"nothing was adopted\n{second.log}"
            second.until_it_says("database:")
            for job in waiting:
                watch.signal(job, "SIGUSR1")
            until_ended(waiting, seconds=SOON_SECONDS)
            until_cleaned(watch)
        must_be_right(watch, waiting, [])


CREATOR = """
import threading
from django.db import OperationalError
from container_manager.models import ContainerJob

for number in range(int(sys.argv[2])):
    while True:
        try:
            job = ContainerJob.objects.create_job(sys.argv[1], ["echo", "ran"])
        except OperationalError:  # what SERIALIZABLE asks of every caller: try again
            continue
        break
    print(job.pk, flush=True)
"""


def test_row_18_serialization_failures_cost_the_worker_no_job(on_postgres: Scene, server: Server) -> None:
    name = on_postgres.database.settings["NAME"]
    server.run(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    on_postgres.database.forget_connection()
    watch = on_postgres.watch
    with WorkerProcess(on_postgres.database, "--poll-interval", "0.05") as worker:
        creators = [python(on_postgres.database, CREATOR, engines.BASE_IMAGE, "8") for _ in range(3)]
        try:
            said = [creator.communicate(timeout=120) for creator in creators]
        finally:
            for creator in creators:
                creator.kill()
        assert [creator.returncode for creator in creators] == [0, 0, 0], said
        jobs = list(ContainerJob.objects.all())
        assert {str(job.pk) for job in jobs} == {line for out, _ in said for line in out.split()}
        until_ended(jobs)
        until_cleaned(watch)
        worker.must_be_alive()
    must_be_right(watch, [], jobs)


# ---------------------------------------------------------------------------------------------- row 19


def test_row_19_a_read_only_database(on_postgres: Scene, server: Server) -> None:
    def switch(value: str) -> None:
        server.run(f"ALTER SYSTEM SET default_transaction_read_only = {value}", "SELECT pg_reload_conf()")

    goes_through(on_postgres, lambda: switch("on"), lambda: switch("off"), noticed="read-only transaction")


class Ballast:
    """A file that takes all that is left of a file system."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "ballast"

    def fill(self) -> None:
        """Write until there is no room for another byte."""
        with self._file.open("wb", buffering=0) as out:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        out.write(b"x" * size)
                except OSError:
                    continue

    def drop(self) -> None:
        """Give the room back."""
        self._file.unlink(missing_ok=True)


def test_row_19_a_full_postgres(
    small_server: Server, docker_url: str, django_db_blocker: DjangoDbBlocker
) -> None:
    ballast = Ballast(small_server.cluster.data)
    with scene(small_server.new_database(), docker_url, django_db_blocker) as one:
        try:
            # Rows change in place for a while: the queue is long enough to use up the pages that are there.
            goes_through(
                one, ballast.fill, ballast.drop, noticed="No space left on device", quick=60, total=False
            )
        finally:
            ballast.drop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        engines.missing("a small file system", "mounting one needs root")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_row_19_a_full_sqlite(small_disk: Path, docker_url: str, django_db_blocker: DjangoDbBlocker) -> None:
    database = Database.in_file(small_disk / "jobs.sqlite3")
    database.migrate()
    ballast = Ballast(small_disk)
    reader = sqlite3.connect(database.settings["NAME"], isolation_level=None)

    def fill() -> None:
        # As long as somebody reads, the write-ahead log can only grow.
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM container_manager_containerjob").fetchall()
        ballast.fill()

    def drop() -> None:
        reader.execute("COMMIT")
        ballast.drop()

    with scene(database, docker_url, django_db_blocker) as one, closing(reader):
        goes_through(one, fill, drop, noticed="database or disk is full")
