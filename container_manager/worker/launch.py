"""From an intent to a running program, once: by launching it, or by finding out what became of a launch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol

from container_manager.core.errors import (
    ContainerGone,
    CreateFailed,
    ExecutorError,
    HostFault,
    ImageNotFound,
    JobFault,
    NetworkNotFound,
    NeverStarted,
)
from container_manager.core.observation import ALIVE, ContainerState, ImageFacts
from container_manager.core.outcome import Intent
from container_manager.worker.crew import Crew
from container_manager.worker.harvest import FOLLOW_AFTER_SECONDS, Harvester
from container_manager.worker.link import Link
from container_manager.worker.messages import Inbox, Launched, LaunchFailed
from container_manager.worker.pulls import End, GoOn, Pulls
from container_manager.worker.run import Phase, Run
from container_manager.worker.stopping import Stopper

#: How long a launch waits for the connection to stand again, before its job is given back.
CONNECT_PATIENCE_SECONDS = 2.0
#: How soon we look what became of a start whose answer got lost.
LOOK_AGAIN_SECONDS = 0.5
#: What an engine that is not ours would say to a launch.
ABSENCES = (ImageNotFound, NetworkNotFound, ContainerGone)


class Fence(Protocol):
    """Whether this worker may still act on the host, by its own clock."""

    def is_valid(self) -> bool:
        """False from a safe moment before the lease runs out."""


class Launcher:
    """Starts only what was never started; reports `Launched` or `LaunchFailed`."""

    def __init__(
        self, link: Link, crew: Crew, inbox: Inbox, fence: Fence, harvester: Harvester, stopper: Stopper
    ) -> None:
        self._link = link
        self._executor = link.executor
        self._crew = crew
        self._inbox = inbox
        self._fence = fence
        self._harvester = harvester
        self._stopper = stopper
        self._pulls = Pulls(crew, self._fetch)

    def launch(self, run: Run) -> None:
        """Pull, create, start; a run that waits for its image holds no thread, so that others start."""
        with self._answered(run):
            if not self._link.wait(CONNECT_PATIENCE_SECONDS):
                self._fail(run, HostFault("the connection to the engine broke and does not stand yet"))
            elif not self._given_up(run):
                self._await_image(run, self._go_on)

    def heed(self, run: Run) -> None:
        """It is to end, or the worker is: answer at once for a run that waits for its image."""
        if self._pulls.leave(run):
            self._given_up(run)

    def close(self) -> None:
        """The worker stops: give back what waits for an image."""
        for run in self._pulls.runs():
            self.heed(run)

    def resolve(self, run: Run) -> None:
        """Find out what a run of unknown fate has come to, and go on from there. One thread at a time."""
        with run.lock:
            if run.phase is not Phase.UNCERTAIN or run.resolving:
                return
            run.resolving = True
        try:
            self._resolve(run)
        finally:
            with run.lock:
                run.resolving = False

    def _resolve(self, run: Run) -> None:
        seen = self._link.look(run.name)
        if seen is None or seen.state is ContainerState.UNKNOWN:
            return  # the comparison after the next connect asks again
        run.container_id = seen.container_id or run.container_id
        unstarted = seen.state is ContainerState.CREATED and not seen.ever_started and not seen.error
        if unstarted or (seen.state is ContainerState.NOT_FOUND and not run.ever_running):
            # A start of somebody else's may be on its way yet: the engine decides which of us comes first.
            with self._link.surely() as executor:
                is_withdrawn = executor.withdraw(run.name)
            if is_withdrawn:
                what = "created and never started" if unstarted else "never created"
                kind = HostFault if run.start_failed else NeverStarted
                self._fail(run, kind(f"the container was {what}; the job is given back"))
            else:
                run.note("adopt: the engine remembers that it was started")
                run.ever_running = True
                self._crew.after(0.0, self.resolve, run)
            return
        run.note(f"adopt: container {run.name[:12]} is {seen.state}")
        run.interrupted = seen.state not in ALIVE
        if self._is_running_now(run, None, seen.started_at or self._link.engine_now()):
            if seen.state in ALIVE:
                self._look_after(run)
            else:
                self._harvester.harvest(run)

    def _await_image(self, run: Run, then: GoOn) -> None:
        self._pulls.join(run, then)
        if run.intent is not Intent.NONE or self._crew.stopping.is_set():
            self.heed(run)  # it came behind our last look, and found nobody waiting

    def _fetch(self, image: str, progress: Callable[[str], None]) -> ImageFacts:
        try:
            return self._executor.pull(image, progress=progress)
        except ImageNotFound as error:
            raise self._borne_out(error) from error

    def _go_on(self, run: Run, pulled: End) -> None:
        self._create_and_start(run, pulled, may_pull=True)

    def _go_on_at_last(self, run: Run, pulled: End) -> None:
        self._create_and_start(run, pulled, may_pull=False)

    def _create_and_start(self, run: Run, pulled: End, *, may_pull: bool) -> None:
        with self._answered(run):
            if isinstance(pulled, ExecutorError):
                self._fail(run, pulled)
                return
            if pulled.pulled:
                run.note(f"pull: {run.spec.image} is on the host now")
            if not self._given_up(run) and self._is_created(run, may_pull=may_pull):
                self._start(run, pulled)

    def _is_created(self, run: Run, *, may_pull: bool) -> bool:
        """Create it; False where that came to nothing, or its image has to be fetched once more."""
        try:
            run.container_id = self._executor.create(run.spec)
        except ExecutorError as error:
            if isinstance(error, ImageNotFound) and may_pull:
                run.note("create: the image went away since we looked; fetching it once more")
                self._await_image(run, self._go_on_at_last)
            else:
                self._fail(run, self._borne_out(error))
            return False
        run.note(f"create: container {run.container_id[:12]} named {run.spec.name}")
        return not self._given_up(run, created=True)

    def _start(self, run: Run, image: ImageFacts) -> None:
        # What was out of sight before the program ran is nothing to it.
        run.launched, run.interrupted = True, not self._link.is_proven
        try:
            self._executor.start(run.container_id)
        except HostFault as error:
            # The start may have had its effect: only a look can tell.
            run.note(f"start: no answer: {error}")
            with run.lock:
                if run.phase is not Phase.LAUNCHING:
                    return
                run.phase, run.interrupted, run.start_failed = Phase.UNCERTAIN, True, True
            self._crew.after(LOOK_AGAIN_SECONDS, self.resolve, run)
        except JobFault as error:
            run.note(f"start: refused: {error.detail or error}")
            self._fail(run, self._borne_out(error), exit_code=self._exit_code(run))
        else:
            if self._is_running_now(run, image, self._link.engine_now()):
                self._look_after(run)

    @contextmanager
    def _answered(self, run: Run) -> Iterator[None]:
        """A bug in a driver must not leave the job "launching" for ever."""
        try:
            yield
        except HostFault as fault:
            self._fail_before_start(run, fault)
            raise
        except Exception as error:
            what = "the executor failed in a way it should not"
            self._fail_before_start(run, CreateFailed(what, detail=repr(error)))
            raise

    def _given_up(self, run: Run, *, created: bool = False) -> bool:
        if run.phase is not Phase.LAUNCHING:
            if created:  # its end was recorded meanwhile: it must not begin
                self._take_back(run)
            return True
        stops = self._crew.stopping.is_set()
        if stops or not self._fence.is_valid():
            # What we created is the next holder's to deal with.
            what = "the worker left the host" if stops else "the worker's lease on the host ran out"
            self._fail(run, NeverStarted(f"{what} before the start"))
            return True
        if run.intent is not Intent.NONE:
            if created:
                self._take_back(run)
            self._fail(run, JobFault("stopped before it was started"))
            return True
        return False

    def _take_back(self, run: Run) -> None:
        try:
            self._executor.withdraw(run.container_id)
        except HostFault as error:
            run.note(f"withdraw: {error}; it is found again as a stray")

    def _fail_before_start(self, run: Run, error: ExecutorError) -> None:
        if run.phase is Phase.LAUNCHING:  # of a program that runs only its end decides
            self._fail(run, error)

    def _fail(self, run: Run, error: ExecutorError, *, exit_code: int | None = None) -> None:
        run.note(f"launch failed: {error}" + (f" [{error.detail}]" if error.detail else ""))
        if run.become(Phase.HARVESTING):
            self._inbox.put(LaunchFailed(key=run.key, error=error, exit_code=exit_code, intent=run.intent))

    def _borne_out(self, error: ExecutorError) -> ExecutorError:
        """The error itself, unless it is that something is not there and another engine said so."""
        if isinstance(error, ABSENCES):
            try:
                self._link.ask()
            except HostFault as fault:
                return fault
        return error

    def _exit_code(self, run: Run) -> int | None:
        try:
            return self._executor.inspect(run.container_id).exit_code
        except HostFault as error:
            run.note(f"inspect: {error}")
            return None

    def _is_running_now(self, run: Run, image: ImageFacts | None, started_at: datetime) -> bool:
        """Note that the program began, and tell; False where the run is past that."""
        with run.lock:
            if run.phase in (Phase.HARVESTING, Phase.DONE):
                return False
            run.phase, run.ever_running, run.running_since = Phase.RUNNING, True, time.monotonic()
            run.started_at = run.started_at or started_at
        if not run.announced:
            run.announced = True
            run.note("start: running", started_at)
            self._inbox.put(
                Launched(key=run.key, container_id=run.container_id, started_at=started_at, image=image)
            )
        return True

    def _look_after(self, run: Run) -> None:
        """See to its time limit and its log, and to what came in while it was launched."""
        assert run.started_at is not None  # noqa: S101 - it runs
        age = (self._link.engine_now() - run.started_at).total_seconds()
        run.timers += [
            self._crew.after(run.timeout_seconds - age, self._stopper.stop, run, Intent.TIMEOUT),
            self._crew.after(FOLLOW_AFTER_SECONDS, self._harvester.follow, run),
        ]
        if run.intent is not Intent.NONE:  # asked for while the start was in flight
            self._crew.work(self._stopper.signal, run)
        if run.ended_since:  # its `die` overtook the answer to the start
            self._crew.work(self._harvester.harvest, run)
