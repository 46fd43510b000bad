"""What the fault tests about databases, registries and clocks share: a database of a test's own under the
ORM, workers in processes with their logs, and the engine's own account of what was started."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

from django.db import connections
from docker.types.daemon import CancellableStream

from container_manager.core.spec import LABEL_INSTALLATION, LABEL_JOB
from container_manager.models import ContainerJob, ExecutionMetadata, ExecutorHost, JobEvent
from tests import engines
from tests.acceptance.running import connect, remove

#: Longest wait for anything: only a failing test waits that long.
PATIENCE_SECONDS = 120.0
_T = TypeVar("_T")


def until(look: Callable[[], _T], what: str | Callable[[], str], *, seconds: float = PATIENCE_SECONDS) -> _T:
    """The first true answer of `look`; fails after a deadline. The pause only says how often we ask."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (answer := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain: {what if isinstance(what, str) else what()}")
        pause.wait(0.05)
    return answer


# --------------------------------------------------------------------------------------- databases


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A database of a test's own: for this process's ORM, and for the environment of its children."""

    settings: Mapping[str, Any]
    environment: Mapping[str, str]

    @classmethod
    def on_postgres(cls, url: str, name: str) -> Database:
        """The database `name` on the server at `url`."""
        server = urlsplit(url)
        settings = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": name,
            "USER": unquote(server.username or ""),
            "PASSWORD": unquote(server.password or ""),
            "HOST": server.hostname or "",
            "PORT": server.port or 5432,
        }
        environment = {"CM_TEST_DB": "postgres", "CM_TEST_POSTGRES_URL": url, "CM_TEST_DB_NAME": name}
        return cls(settings=settings, environment=environment)

    @classmethod
    def in_file(cls, path: Path) -> Database:
        """An SQLite file, with the options of the tests' settings."""
        settings = {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(path),
            "OPTIONS": {
                "timeout": 20,
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
            },
        }
        return cls(settings=settings, environment={"CM_TEST_DB": "sqlite", "CM_TEST_DB_NAME": str(path)})

    def child_environment(self, **further: str) -> dict[str, str]:
        """The environment of a process that works on this database."""
        return {
            **os.environ,
            **self.environment,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(engines.PROJECT), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
            **further,
        }

    def migrate(self) -> None:
        """Make the tables."""
        manage(self, "migrate", "--verbosity", "0")

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """This process's ORM works on this database, in every thread that connects within the block."""
        handler = connections.settings
        before, connection = handler["default"], connections["default"]
        # The defaults that Django fills in are the same for every database, but for what is named here.
        handler["default"] = {**before, "OPTIONS": {}, **self.settings}
        del connections["default"]
        try:
            yield
        finally:
            connections["default"].close()
            handler["default"] = before
            connections["default"] = connection

    def forget_connection(self) -> None:
        """Drop this thread's connection: the server behind it may have gone."""
        connections["default"].close()


def manage(database: Database, *arguments: str) -> str:
    """Run a management command on the database, in a process of its own; what it printed."""
    answer = subprocess.run(
        [sys.executable, "-m", "django", *arguments],
        env=database.child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, f"{' '.join(arguments)} failed:\n{answer.stderr}"
    return answer.stdout


def python(database: Database, program: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a small program with Django ready, on the database; both its outputs are pipes."""
    text = f"import sys, django\ndjango.setup()\n{program}"
    return subprocess.Popen(
        [sys.executable, "-c", text, *arguments],
        env=database.child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# ----------------------------------------------------------------------------------------- workers


class WorkerProcess:
    """`process_container_jobs` in a process of its own; its log is a file that a failure shows.

    The block asserts that the worker lived to its end and then obeyed SIGTERM.
    """

    def __init__(self, database: Database, *options: str, **environment: str) -> None:
        self._log = Path(tempfile.mkstemp(prefix="worker-", suffix=".log")[1])
        self._stopped = False
        command = [sys.executable, "-m", "django", "process_container_jobs", *options]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=database.child_environment(**environment), stdout=log, stderr=log
            )

    @property
    def log(self) -> str:
        """What the worker wrote so far."""
        return self._log.read_text(errors="replace")

    @property
    def complaints(self) -> list[str]:
        """Its lines of level WARNING and above, and tracebacks."""
        marks = (" WARNING ", " ERROR ", " CRITICAL ", "Traceback", "Error: ", "Exception")
        return [line for line in self.log.splitlines() if any(mark in line for mark in marks)]

    def must_be_alive(self) -> None:
        """Fail, with its log, when the worker has ended."""
        code = self.process.poll()
        assert code is None, f"the worker exited with {code} in the middle of the test:\n{self.log[-6000:]}"

    def until_it_says(self, words: str, *, after: int = 0) -> None:
        """Wait for words in its log beyond the first `after` characters."""

        def look() -> bool:
            self.must_be_alive()
            return words in self.log[after:]

        until(look, lambda: f"the worker to log {words!r}; it said:\n{self.log[-3000:]}")

    def __enter__(self) -> Self:
        return self

    def stop(self) -> None:
        """SIGTERM, before the end of the block; fails when the worker does not obey."""
        self.must_be_alive()
        self._stopped = True
        code = self._terminate()
        assert code == 0, f"the worker ended with {code} at SIGTERM:\n{self.log[-6000:]}"

    def _terminate(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        early = None if self._stopped else self.process.poll()
        code = self._terminate()
        log = self.log
        self._log.unlink()
        if kind is not None:
            sys.stderr.write(f"--- the worker's log:\n{log[-20000:]}")  # pytest shows it with the failure
            return
        assert early is None, f"the worker exited with {early} in the middle of the test:\n{log[-6000:]}"
        assert code == 0, f"the worker ended with {code} at SIGTERM:\n{log[-6000:]}"


# ---------------------------------------------------------------------------------- the engine's word


@dataclass(slots=True)
class Seen:
    """What the engine said about the containers of one job."""

    starts: list[float] = field(default_factory=list)  # by the engine's clock, seconds since the epoch
    deaths: list[float] = field(default_factory=list)
    removals: list[float] = field(default_factory=list)


class EngineWatch:
    """The engine's events about one installation's containers, read by a client of our own."""

    def __init__(self, url: str, installation: str) -> None:
        self._label = f"{LABEL_INSTALLATION}={installation}"
        self._client = connect(url)
        self._lock = threading.Lock()
        self._jobs: dict[str, Seen] = {}
        self._running: Counter[str] = Counter()
        self.most_at_once = 0
        self._stream: CancellableStream[dict[str, Any]] = self._client.events(
            filters={"type": "container", "label": self._label}, decode=True
        )
        self._thread = threading.Thread(target=self._read, name="engine-watch", daemon=True)

    def of(self, job: ContainerJob) -> Seen:
        """What happened to the job's containers so far."""
        with self._lock:
            seen = self._jobs.get(str(job.pk), Seen())
            return Seen(list(seen.starts), list(seen.deaths), list(seen.removals))

    def containers(self) -> list[Any]:
        """The installation's containers that are on the engine now, whatever their state."""
        found = self._client.containers.list(all=True, filters={"label": self._label}, ignore_removed=True)
        return list(found)

    def container_of(self, job: ContainerJob) -> Any:
        """The job's container, by its label. Fails when there is not exactly one."""
        found = [one for one in self.containers() if one.labels.get(LABEL_JOB) == str(job.pk)]
        assert len(found) == 1, f"{len(found)} containers of {job} are on the engine: {found}"
        return found[0]

    def signal(self, job: ContainerJob, name: str) -> None:
        """Send the job's program a signal, from outside."""
        self.container_of(job).kill(signal=name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        # Of a failed test: the others wait for their removal.
        remove(self._client, [str(container.id) for container in self.containers()])
        self._stream.close()
        self._thread.join(10)
        self._client.close()

    def _read(self) -> None:
        for event in self._stream:
            attributes = event["Actor"]["Attributes"]
            job, at = attributes.get(LABEL_JOB, ""), event["timeNano"] / 1e9
            with self._lock:
                seen = self._jobs.setdefault(job, Seen())
                match event["Action"]:
                    case "start":
                        seen.starts.append(at)
                        self._running[event["Actor"]["ID"]] = 1
                        self.most_at_once = max(self.most_at_once, len(self._running))
                    case "die":
                        seen.deaths.append(at)
                        self._running.pop(event["Actor"]["ID"], None)
                    case "destroy":
                        seen.removals.append(at)


def audit(watch: EngineWatch, jobs: Iterable[ContainerJob], *, clocks_agree: bool = True) -> list[str]:
    """What is wrong with ended jobs, by the database and by the engine; each line reads like a report.

    One final state, one start and one end in the history, one container that ran, and that one removed only
    after the result was committed (which only clocks that agree can tell: `recorded_at` is the worker's).
    """
    jobs = list(ContainerJob.objects.filter(pk__in=[job.pk for job in jobs]))
    attempts: dict[Any, list[ExecutionMetadata]] = {}
    for execution in ExecutionMetadata.objects.filter(job__in=jobs):
        attempts.setdefault(execution.job_id, []).append(execution)
    history: dict[Any, Counter[str]] = {}
    for job_id, transition in JobEvent.objects.filter(job__in=jobs).values_list("job_id", "transition"):
        history.setdefault(job_id, Counter())[transition] += 1
    wrong: list[str] = []
    for job in jobs:
        seen, events = watch.of(job), history.get(job.pk, Counter())
        if job.status not in {"completed", "failed", "timeout", "cancelled"}:
            wrong.append(f"{job.pk} never ended: it is {job.status}, attempt {job.attempt}\n{job.docker_log}")
            continue
        ends = sum(events[name] for name in ("finish", "cancel", "reject", "expire"))
        if ends != 1:
            wrong.append(f"{job.pk} has {ends} ends in its history: {dict(events)}")
        if len(seen.starts) > len(attempts.get(job.pk, [])):
            wrong.append(f"{job.pk} was started {len(seen.starts)} times in {job.attempt} attempts")
        stored_at = [one.recorded_at.timestamp() for one in attempts.get(job.pk, []) if one.recorded_at]
        wrong.extend(
            f"{job.pk}: its container was removed at {_clock(removal)}, before its result was stored "
            f"({', '.join(map(_clock, stored_at)) or 'never'})"
            for removal in seen.removals
            if not stored_at or (clocks_agree and removal < min(stored_at))
        )
    return wrong


def all_ended(jobs: Iterable[ContainerJob]) -> Callable[[], bool]:
    """A look at whether every one of these jobs has ended."""
    ids = [job.pk for job in jobs]
    ended = ["completed", "failed", "timeout", "cancelled"]
    return lambda: ContainerJob.objects.filter(pk__in=ids, status__in=ended).count() == len(ids)


def states(jobs: Iterable[ContainerJob]) -> str:
    """The jobs by status and reason, for messages."""
    rows = ContainerJob.objects.filter(pk__in=[job.pk for job in jobs]).values_list("status", "exit_reason")
    return str(dict(Counter(" ".join(row).strip() for row in rows)))


def until_ended(jobs: Iterable[ContainerJob], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until every job has ended."""
    jobs = list(jobs)
    until(all_ended(jobs), lambda: f"{len(jobs)} jobs to end; they are {states(jobs)}", seconds=seconds)


def until_cleaned(watch: EngineWatch) -> None:
    """Wait until the worker has removed the containers of ended jobs."""
    until(
        lambda: not watch.containers(),
        lambda: f"the containers of ended jobs to be removed; there are {watch.containers()}",
    )


def local_host(url: str, **fields: Any) -> ExecutorHost:
    """A host row for the engine."""
    return ExecutorHost.objects.create(
        name="local", connection_string=url, executor_type="docker", is_active=True, **fields
    )


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).time().isoformat("milliseconds")
