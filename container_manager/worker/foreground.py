"""One job followed in the foreground: its output as it is stored, its end, and what Ctrl-C means.

The main thread reads what the worker has stored, whichever process that worker is in. Where no worker
serves the job's host, one is run here for this job alone, in a thread with a connection of its own.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Protocol, TypeVar

from django.db import InterfaceError, OperationalError, connections, router

from container_manager.conf import get_settings
from container_manager.core.errors import ConfigurationError, ContainerManagerError, HostFault
from container_manager.core.outcome import ExitReason
from container_manager.core.states import FINAL, Status
from container_manager.executors.registry import open_executor
from container_manager.models import ContainerJob, EngineLease, LogChunk
from container_manager.worker.supervisor import Worker
from container_manager.worker.wakeup import Polling, SqliteDataVersion, Wakeup

logger = logging.getLogger("container_manager.worker")

POLL_SECONDS = 0.2
HOLDER_SECONDS = 1.0  # how often we look whether a worker serves the host
CHUNKS_AT_ONCE = 8
ASKS_TO_DETACH = 3
DATABASE_PATIENCE_SECONDS = 60.0
EMBEDDED_PATIENCE_SECONDS = 10.0  # for the removal of the container after the end
DETACHED_PATIENCE_SECONDS = 0.5  # for the lease to be given back, when nobody wants to wait

EXIT_CANCELLED = 130
EXIT_NOT_RUN = 125
EXIT_TIMEOUT = 124
EXIT_OUT_OF_MEMORY = 137
_BY_REASON = {
    ExitReason.TIMEOUT: EXIT_TIMEOUT,
    ExitReason.CANCELLED: EXIT_CANCELLED,
    ExitReason.OUT_OF_MEMORY: EXIT_OUT_OF_MEMORY,
    ExitReason.COMMAND_NOT_EXECUTABLE: 126,
    ExitReason.COMMAND_NOT_FOUND: 127,
}
_THE_PROGRAMS_OWN = {ExitReason.SUCCESS, ExitReason.APPLICATION_ERROR, ExitReason.KILLED_EXTERNALLY}

_T = TypeVar("_T")


class NotRun(ContainerManagerError):
    """The job could not be run, or could not be followed to its end; the text says why."""


class Detached(ContainerManagerError):
    """The user did not wait for the end. The job's cancel is on its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where the job is, for the line on a terminal."""

    status: str
    seconds: float  # in this status, as seen from here
    note: str = ""  # what it waits for, where that is known


class View(Protocol):
    """What the user sees. Called from the main thread; `say` also from another one."""

    def output(self, stream: int, data: bytes, *, meanwhile: Callable[[], None]) -> None:
        """Pass on the job's bytes; `meanwhile` is called again and again while the reader stalls.

        Raises OSError when nobody reads any more.
        """

    def progress(self, progress: Progress) -> None:
        """Show where the job is."""

    def say(self, text: str) -> None:
        """One sentence to the user."""


def exit_code(job: ContainerJob) -> int:
    """The exit code that stands for the job's end: the program's own, or one that says why it has none.

    124 timeout, 126 and 127 as a shell has them, 130 cancelled, 137 out of memory, 125 for what did not
    run or was lost.
    """
    if job.exit_reason in _THE_PROGRAMS_OWN and job.exit_code is not None:
        return job.exit_code
    return _BY_REASON.get(ExitReason(job.exit_reason), EXIT_NOT_RUN) if job.exit_reason else EXIT_NOT_RUN


class Foreground:
    """Follows one stored job to its end."""

    def __init__(self, job: ContainerJob, view: View) -> None:
        self.reader_gone = False
        self._job = job
        self._view = view
        self._alias = router.db_for_read(ContainerJob)
        self._tail = _Tail(job.pk)
        self._asks: queue.SimpleQueue[None] = queue.SimpleQueue()  # its put is safe in a signal handler
        self._asked = 0
        self._embedded: _EmbeddedWorker | None = None
        self._holder_seen_at: float | None = None
        self._look_for_holder_at = 0.0
        self._status, self._status_since, self._note = "", time.monotonic(), ""
        self._deaf: set[int] = set()

    def interrupt(self) -> None:
        """Ask for the end; callable from a signal handler. Twice: kill. Three times: do not wait."""
        self._asks.put(None)

    def run(self) -> ContainerJob:
        """Follow the job and return it as it ended. Raises NotRun, Detached."""
        wakeup = self._wakeup()
        try:
            while True:
                job = self._with_database(self._read)
                self._drain(job.attempt)  # all that an ended job has stored came with its final status
                if job.status in FINAL:
                    return job
                self._with_database(self._see_to_a_worker)
                self._show(job)
                self._wait(wakeup)
        except Detached:
            if self._embedded is not None:
                self._embedded.leave()
                self._embedded = None
            raise
        finally:
            wakeup.close()
            if self._embedded is not None:
                self._embedded.close()

    # ----------------------------------------------------------------------------------- following

    def _read(self) -> ContainerJob:
        found = ContainerJob.objects.without_logs().select_related("docker_host")
        job: ContainerJob | None = found.filter(pk=self._job.pk).first()
        if job is None:
            raise NotRun(f"the job {self._job.pk} was deleted while it was followed")
        self._job = job
        return job

    def _drain(self, attempt: int) -> None:
        while chunks := self._with_database(lambda: self._tail.read(attempt)):
            for chunk in chunks:
                # Short lines come one to a frame: a write for each would cost more than all the rest.
                for stream, frames in groupby(chunk.frames(), key=attrgetter("stream")):
                    self._pass_on(stream, b"".join(frame.payload for frame in frames))
                    self._heed()

    def _pass_on(self, stream: int, data: bytes) -> None:
        if stream in self._deaf:
            return
        try:
            self._view.output(stream, data, meanwhile=self._heed)
        except OSError:
            self._deaf.add(stream)
            if not self.reader_gone:
                self.reader_gone = True
                # A local command would have died of SIGPIPE here.
                self._view.say("nobody reads the output any more; the job is cancelled")
                self.interrupt()

    def _show(self, job: ContainerJob) -> None:
        now = time.monotonic()
        if job.status != self._status:
            self._status, self._status_since = job.status, now
        note = self._note if job.status == Status.PENDING else ""
        self._view.progress(Progress(status=job.status, seconds=now - self._status_since, note=note))

    def _wakeup(self) -> Wakeup:
        connection = connections[self._alias]
        return SqliteDataVersion(connection) if connection.vendor == "sqlite" else Polling()

    def _wait(self, wakeup: Wakeup) -> None:
        """Until something was written, somebody asks for the end, or the poll is due."""
        deadline = time.monotonic() + POLL_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            try:
                self._asks.get(timeout=min(left, wakeup.look_seconds or left))
            except queue.Empty:
                if self._with_database(wakeup.changed):
                    return
            else:
                self._end()
                return

    # -------------------------------------------------------------------------------------- ending

    def _heed(self) -> None:
        while True:
            try:
                self._asks.get_nowait()
            except queue.Empty:
                return
            self._end()

    def _end(self) -> None:
        self._asked += 1
        if self._asked == 1:
            if self._with_database(lambda: self._job.cancel(by="run_in_container")):
                grace = get_settings().STOP_GRACE_SECONDS
                self._view.say(
                    f"asked the job to stop: SIGTERM now, SIGKILL after {grace:g} s. "
                    "Ctrl-C again kills it at once."
                )
        elif self._asked == 2:
            self._view.say("killing the job")
            # In a thread: an engine that hangs must not keep us from hearing the third Ctrl-C.
            threading.Thread(target=self._kill, name="kill", daemon=True).start()
        else:
            raise self._detached()

    def _detached(self) -> Detached:
        return Detached(
            f"not waiting for the end of job {self._job.pk}; its worker, or the next one, ends it."
        )

    def _kill(self) -> None:
        job = self._job
        if not job.attempt:
            return  # it never had a container, and being cancelled it never will
        try:
            executor = open_executor(job.docker_host.executor_type, job.docker_host.as_config())
            try:
                executor.stop(job.container_name, force=True)
            finally:
                executor.close()
        except (ConfigurationError, HostFault) as error:
            self._view.say(f"cannot kill it from here, its worker will after the grace period: {error}")

    # -------------------------------------------------------------------------------------- worker

    def _see_to_a_worker(self) -> None:
        """Run a worker here if nobody else serves the host."""
        if self._embedded is not None:
            self._see_to_the_embedded(self._embedded)
            return
        now = time.monotonic()
        if now < self._look_for_holder_at:
            return
        self._look_for_holder_at = now + HOLDER_SECONDS
        host = self._job.docker_host
        holder = EngineLease.holder(host.engine_id) if host.engine_id else ""
        if holder:
            self._holder_seen_at = now
            self._note = f"the worker {holder} serves the host; the job is in its queue"
            return
        if self._holder_seen_at is not None and now - self._holder_seen_at < get_settings().LEASE_SECONDS:
            self._note = "its worker has left; another one may be starting"
            return
        self._note = "no worker serves the host; this process does"
        self._embedded = _EmbeddedWorker(self._job.pk, host.name)
        self._embedded.start()

    def _see_to_the_embedded(self, embedded: _EmbeddedWorker) -> None:
        if embedded.is_alive():
            return
        self._embedded = None
        if self._read().status in FINAL:
            return
        if embedded.yielded:  # to a worker that serves the host for good, and has the job now or soon
            self._holder_seen_at = time.monotonic()
            self._note = "a worker has started; it takes the job over"
            return
        if embedded.error is not None:
            raise NotRun(
                f"the worker in this process failed: {embedded.error}. "
                f"The job {self._job.pk} is left as it is; the next worker takes it over."
            ) from embedded.error
        self._job.cancel(by="run_in_container")  # nobody waits for it any more
        raise NotRun("; ".join(embedded.left_behind) or f"no worker could take the job {self._job.pk}")

    # ------------------------------------------------------------------------------------ database

    def _with_database(self, call: Callable[[], _T]) -> _T:
        """Do it, and again while the database is away for a moment. Raises NotRun after a minute."""
        deadline = time.monotonic() + DATABASE_PATIENCE_SECONDS
        while True:
            try:
                return call()
            except (OperationalError, InterfaceError) as error:
                if time.monotonic() > deadline:
                    raise NotRun(
                        f"the database is away: {str(error).strip()}. The job {self._job.pk} goes on."
                    ) from error
                if self._asked + self._asks.qsize() >= ASKS_TO_DETACH:
                    raise self._detached() from error
                logger.warning("database: %s; trying again", str(error).strip())
                connection = connections[self._alias]
                if not connection.in_atomic_block:
                    connection.close()
                time.sleep(POLL_SECONDS)


class _Tail:
    """Where we are in the stored output."""

    def __init__(self, job_id: uuid.UUID) -> None:
        self._job_id = job_id
        self._attempt = 1
        self._sequence = 0

    def read(self, attempt: int) -> list[LogChunk]:
        """The next chunks, up to and including those of `attempt`; empty when nothing is there yet."""
        while True:
            found = LogChunk.objects.filter(
                execution__job_id=self._job_id,
                execution__attempt=self._attempt,
                sequence__gte=self._sequence,
            )
            chunks = list(found.order_by("sequence")[:CHUNKS_AT_ONCE])
            if chunks:
                self._sequence = chunks[-1].sequence + 1
                return chunks
            if self._attempt >= attempt:
                return []
            self._attempt, self._sequence = self._attempt + 1, 0


class _EmbeddedWorker:
    """A worker for one job, in a thread of this process."""

    def __init__(self, job_id: uuid.UUID, host_name: str) -> None:
        self.left_behind: list[str] = []
        self.error: BaseException | None = None
        self._worker = Worker(hosts=[host_name], once=True, only={job_id})
        self._thread = threading.Thread(target=self._run, name="foreground-worker", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def yielded(self) -> bool:
        """Whether it has made room for a worker that serves the host for good."""
        return self._worker.yielded

    def is_alive(self) -> bool:
        """Whether it still works."""
        return self._thread.is_alive()

    def leave(self) -> None:
        """Tell it to stop, and hardly wait: an engine that hangs would hold it up for all its grace."""
        self._worker.stop()
        self._thread.join(DETACHED_PATIENCE_SECONDS)

    def close(self) -> None:
        """Let it remove the container, then stop it; other jobs on the host are left to the next worker."""
        self._thread.join(EMBEDDED_PATIENCE_SECONDS)
        self._worker.stop()
        self._thread.join(EMBEDDED_PATIENCE_SECONDS)

    def _run(self) -> None:
        try:
            self.left_behind = self._worker.run()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self.error = error
        finally:
            connections.close_all()
