"""The agent of one host: keeps its runs, watches the engine, and has everything else done by its crew.

It never touches the database; all it learns goes into the supervisor's inbox. Threads: one watches the
engine's events, one samples usage, one keeps time, one compares listings, small pools make the calls, and
each container that outlives its first moments has a log follower.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime

from container_manager.core.errors import ExecutorError, HostFault, HostTimeout
from container_manager.core.observation import ALIVE, EngineEvent, EventAction, HostFacts, OwnedContainer
from container_manager.core.outcome import Intent
from container_manager.core.spec import attempt_of
from container_manager.executors.base import Executor
from container_manager.worker.crew import Crew
from container_manager.worker.harvest import FOLLOW_AFTER_SECONDS, Harvester
from container_manager.worker.launch import Fence, Launcher
from container_manager.worker.link import Link
from container_manager.worker.messages import HostDown, HostUp, Inbox, Key, Removed, Started, Strays
from container_manager.worker.run import RESTART_SECONDS, Phase, Run
from container_manager.worker.sampler import Sampler
from container_manager.worker.stopping import Stopper

logger = logging.getLogger("container_manager.worker")

RECONNECT_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
#: How often the record of a host that is fine is made anew.
HEALTH_SECONDS = 30.0
#: A host that owes the answer to a comparison for this long is called unreachable, and gets no new jobs.
SLOW_SECONDS = 5.0


class HostAgent:
    """Everything that happens on one host, for the tenure of one lease."""

    def __init__(
        self,
        *,
        host_id: int,
        name: str,
        executor: Executor,
        installation: str,
        facts: HostFacts,
        inbox: Inbox,
        fence: Fence,
        launch_threads: int,
        resync_interval: float,
        usage_interval: float,
    ) -> None:
        self._host_id = host_id
        self._executor = executor
        self._installation = installation
        self._inbox = inbox
        self._fence = fence
        self._resync_interval = resync_interval
        self._runs: dict[str, Run] = {}  # by container name
        self._leaving: dict[str, Run] = {}  # their ends are recorded, their containers are to go
        self._lock = threading.Lock()
        self._resync_since: float | None = None  # monotonic; when the comparison under way was asked for
        self._slow = False
        self._told_at = 0.0  # monotonic; when we last told how the host is
        self._link = Link(executor, facts)
        self._crew = Crew(name, launch_threads=launch_threads)
        self._harvester = Harvester(self._link, self._crew, inbox)
        self._stopper = Stopper(self._link, self._crew, self._harvester)
        self._launcher = Launcher(self._link, self._crew, inbox, fence, self._harvester, self._stopper)
        self._sampler = Sampler(f"{name}-usage", executor, usage_interval, self._running)
        self._watcher = threading.Thread(target=self._watch, name=f"{name}-watch", daemon=True)

    # -------------------------------------------------------------- what the supervisor asks for

    def start(self) -> None:
        """Begin to watch the engine."""
        self._watcher.start()
        self._sampler.start()
        self._crew.tick(self._resync_interval, self._tick)

    def launch(self, run: Run) -> None:
        """Pull, create and start; reports `Launched` or `LaunchFailed`."""
        self._keep(run)
        self._crew.launch(self._launcher.launch, run)

    def adopt(self, run: Run) -> None:
        """Take over a run that another worker began: look what has become of it."""
        run.interrupted = True
        run.become(Phase.UNCERTAIN)
        self._keep(run)
        self._crew.work(self._launcher.resolve, run)

    def cancel(self, run: Run) -> None:
        """Stop a run because somebody asked for it."""
        self._end(run, Intent.CANCEL)

    def forget(self, run: Run) -> None:
        """The run's result is stored; nothing more is to be done for it."""
        with self._lock:
            self._runs.pop(run.spec.name, None)
        run.become(Phase.DONE)
        for appointment in run.timers:
            appointment.cancel()

    def remove(self, run: Run) -> None:
        """Remove the container of a run whose result is stored; reports `Removed`."""
        with self._lock:
            self._leaving[run.spec.name] = run
        self._crew.work(self._remove, run)

    def remove_stray(self, container_id: str, key: Key) -> None:
        """Remove a container that the database has no use for; reports `Removed`."""
        self._crew.work(self._remove_stray, container_id, key)

    def close(self, *, patience: float) -> None:
        """Let go of the host: containers run on. Waits up to `patience` seconds for calls in flight."""
        deadline = time.monotonic() + patience
        self._sampler.close()
        self._crew.stopping.set()
        self._launcher.close()
        self._crew.close(deadline)
        self._link.close()
        self._executor.close()
        with self._lock:
            left, self._leaving = list(self._leaving.values()), {}
        for run in left:  # what the crew has forgotten is nobody's to wait for
            self._inbox.put(Removed(key=run.key, gone=False))
        followers = [run.follower for run in self._all() if run.follower is not None]
        for thread in [*followers, self._watcher]:
            if thread.ident is not None:
                thread.join(max(0.1, deadline - time.monotonic()))

    def flush_logs(self) -> None:
        """Send what followers hold, so that the next worker finds it stored."""
        for run in self._all():
            run.logs.flush()

    def engine_now(self) -> datetime:
        """The time by the engine's clock."""
        return self._link.engine_now()

    # ------------------------------------------------------------------------------------- watching

    def _watch(self) -> None:
        failures = 0
        stopping = self._crew.stopping
        while not stopping.is_set():
            try:
                for event in self._executor.watch(self._installation, self._link.begin()):
                    self._heed(event)
                    failures = 0
                error: ExecutorError = HostFault("the engine closed the event stream")
            except HostFault as fault:
                error = fault
            except Exception as mistake:
                # Ours: it must not end the watch, and nothing counts until the stream stands again.
                logger.exception("%s: the watch failed", self._crew.name)
                error = HostFault(f"the event stream could not be read: {mistake!r}")
            self._link.broke()
            if stopping.is_set():
                return
            for run in self._known():
                run.interrupted = True
            self._inbox.put(HostDown(host_id=self._host_id, error=self._link.mismatch or error))
            stopping.wait(RECONNECT_SECONDS[min(failures, len(RECONNECT_SECONDS) - 1)])
            failures += 1

    def _heed(self, event: EngineEvent) -> None:
        if event.action is EventAction.CONNECTED:
            self._tell_health(self._link.prove())
            self._submit_resync()
            return
        run = self._by_id(event.container_id)
        if event.action is EventAction.START:
            self._heed_start(event, run)
        elif run is None:
            return
        elif event.action in (EventAction.DIE, EventAction.DESTROY):
            self._crew.work(self._harvester.harvest, run)
        elif event.action in (EventAction.OOM, EventAction.PAUSE, EventAction.UNPAUSE):
            run.note(f"event: {event.action}")

    def _heed_start(self, event: EngineEvent, run: Run | None) -> None:
        """The first start is ours. Of another one, behind the end that we know, the record has to tell."""
        at = datetime.fromtimestamp(event.at_ns / 1e9, UTC)
        if run is not None:
            with run.lock:
                run.starts_told += 1
                if _is_first_start(run, at):
                    return
                if not run.reported:
                    run.again_at = at  # who reports its end may have looked just before, and passes it on
                    return
        self._inbox.put(Started(key=Key(*attempt_of(event.labels)), at=at))

    # ------------------------------------------------------------------------------------ comparing

    def _tick(self) -> None:
        if not self._crew.stopping.is_set():
            self._mind_slowness()
            self._submit_resync()
            self._crew.tick(self._resync_interval, self._tick)

    def _mind_slowness(self) -> None:
        since = self._resync_since
        owed = 0.0 if since is None else time.monotonic() - since
        if owed > SLOW_SECONDS and not self._slow:
            self._slow = True
            error = HostTimeout(f"the engine has not answered for {owed:.0f} s")
            self._inbox.put(HostDown(host_id=self._host_id, error=error))

    def _submit_resync(self) -> None:
        if self._resync_since is None:
            self._resync_since = time.monotonic()
            self._crew.compare(self._resync)

    def _resync(self) -> None:
        """Compare what we think with what the engine lists: events get lost."""
        expected = self._running()
        try:
            listed = self._listed()
        finally:
            self._resync_since = None
        if listed is None:
            return
        for run in expected:
            container = listed.get(run.container_id)
            if container is None or container.state not in ALIVE:
                self._crew.work(self._harvester.harvest, run)
                continue
            run.interrupted = False  # whatever went on out of our sight, it survived
            if time.monotonic() - run.running_since > FOLLOW_AFTER_SECONDS:
                self._harvester.follow(run)
        runs = self._all()
        for run in runs:
            if run.phase is Phase.UNCERTAIN:
                self._crew.work(self._launcher.resolve, run)
        names, ids = {run.spec.name for run in runs}, {run.container_id for run in runs}
        strays = tuple(
            found for found in listed.values() if found.name not in names and found.container_id not in ids
        )
        if strays:
            self._inbox.put(Strays(host_id=self._host_id, containers=strays))

    def _listed(self) -> dict[str, OwnedContainer] | None:
        """The engine's listing by id; None where it cannot be believed."""
        if not self._link.is_proven:
            return None
        listed = {found.container_id: found for found in self._executor.list_owned(self._installation)}
        if self._slow or time.monotonic() - self._told_at > HEALTH_SECONDS:
            self._tell_health(self._link.ask())
        return listed if self._link.is_proven else None

    def _tell_health(self, facts: HostFacts) -> None:
        self._inbox.put(HostUp(host_id=self._host_id, facts=facts))
        self._slow, self._told_at = False, time.monotonic()

    # -------------------------------------------------------------------------------------- insides

    def _remove(self, run: Run) -> None:
        gone = False
        try:
            self._executor.remove(run.name)
            gone = True
        finally:
            with self._lock:
                self._leaving.pop(run.spec.name, None)
            self._inbox.put(Removed(key=run.key, gone=gone))

    def _remove_stray(self, container_id: str, key: Key) -> None:
        if self._link.is_proven and self._fence.is_valid():
            self._executor.remove(container_id)
            self._inbox.put(Removed(key=key, gone=True))

    def _keep(self, run: Run) -> None:
        with self._lock:
            self._runs[run.spec.name] = run
        if run.deadline_at is not None:
            run.timers.append(self._crew.at(run.deadline_at, self._end, run, Intent.DEADLINE))

    def _end(self, run: Run, intent: Intent) -> None:
        self._stopper.stop(run, intent)
        self._launcher.heed(run)

    def _all(self) -> list[Run]:
        with self._lock:
            return list(self._runs.values())

    def _running(self) -> list[Run]:
        return [run for run in self._all() if run.phase is Phase.RUNNING]

    def _by_id(self, container_id: str) -> Run | None:
        return next((run for run in self._known() if run.container_id == container_id), None)

    def _known(self) -> list[Run]:
        with self._lock:
            return [*self._runs.values(), *self._leaving.values()]


def _is_first_start(run: Run, at: datetime) -> bool:
    """Whether it is the start that we know of. News of it may be younger than the end of a quick program."""
    if run.launched and not run.interrupted:
        return run.starts_told == 1
    return run.started_at is None or (at - run.started_at).total_seconds() <= RESTART_SECONDS
