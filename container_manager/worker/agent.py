"""The agent of one host: launches, follows, stops and harvests containers, and reports facts.

It never touches the database. Threads: one watches the engine's events, one samples usage, one keeps
time, two small pools make the calls, and each container that outlives its first moments has a log
follower. All of them report to the supervisor's inbox.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Protocol

from container_manager.core.errors import (
    ContainerGone,
    CreateFailed,
    EngineFault,
    ExecutorError,
    HostFault,
    HostMismatch,
    HostTimeout,
    ImageNotFound,
    JobFault,
)
from container_manager.core.observation import (
    ContainerState,
    EngineEvent,
    EventAction,
    HostFacts,
    ImageFacts,
    Observation,
)
from container_manager.core.outcome import Intent
from container_manager.executors.base import Executor
from container_manager.worker.messages import (
    Exited,
    HostDown,
    HostUp,
    Inbox,
    Key,
    Launched,
    LaunchFailed,
    Removed,
    Strays,
)
from container_manager.worker.run import Phase, Run
from container_manager.worker.sampler import Sampler
from container_manager.worker.timer import Timer

logger = logging.getLogger("container_manager.worker")

#: A container that lives longer than this gets a follower; a shorter one is read once, at its end.
FOLLOW_AFTER_SECONDS = 0.3
#: After SIGKILL, how long until we look again and, if need be, kill again.
KILL_CHECK_SECONDS = 1.0
#: How long a log stream may stay open and silent after its container has ended.
FOLLOWER_PATIENCE_SECONDS = 10.0
#: How often an engine may fail to read a log (a damaged file) before the job ends without the rest of it.
READ_ATTEMPTS = 3
RECONNECT_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
#: A host that owes the answer to a comparison for this long is called unreachable, and gets no new jobs.
SLOW_SECONDS = 5.0
#: How long a launch waits for the connection to stand again, before its job is given back.
CONNECT_PATIENCE_SECONDS = 2.0
#: A container whose start lies this far behind ours was started again by somebody else.
RESTART_SECONDS = 2.0
HARVEST_THREADS = 6
_ALIVE = (ContainerState.RUNNING, ContainerState.PAUSED)


class Fence(Protocol):
    """Whether this worker may still act on the host, by its own clock."""

    def is_valid(self) -> bool:
        """False from a safe moment before the lease runs out."""


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
        self.host_id = host_id
        self.name = name
        self._executor = executor
        self._installation = installation
        self._engine_id = facts.engine_id
        self._inbox = inbox
        self._fence = fence
        self._resync_interval = resync_interval
        self._clock_offset = _clock_offset(facts)
        self._runs: dict[str, Run] = {}  # by container name
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        # An unbroken event stream, to an engine whose id was asked for since it stands, is what tells that
        # the other side is still the engine that we think of. Nothing it says counts while this is not so.
        self._verified = threading.Event()
        self._verified.set()  # its facts were asked for just now
        self._resync_since: float | None = None  # monotonic; when the comparison under way was asked for
        self._slow = False
        self._launchers = ThreadPoolExecutor(launch_threads, thread_name_prefix=f"{name}-launch")
        self._workers = ThreadPoolExecutor(HARVEST_THREADS, thread_name_prefix=f"{name}-work")
        # On a thread of its own: how long it takes is what tells a slow engine from a busy worker.
        self._comparer = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-work-compare")
        self._timer = Timer(f"{name}-timer")
        self._sampler = Sampler(f"{name}-usage", executor, usage_interval, self._running)
        self._watcher = threading.Thread(target=self._watch, name=f"{name}-watch", daemon=True)

    # -------------------------------------------------------------- what the supervisor asks for

    def start(self) -> None:
        """Begin to watch the engine."""
        self._watcher.start()
        self._sampler.start()
        self._timer.after(self._resync_interval, self._tick)

    def launch(self, run: Run) -> None:
        """Pull, create and start; reports `Launched` or `LaunchFailed`."""
        self._keep(run)
        if run.deadline_at is not None:
            self._timer.at(run.deadline_at, lambda: self._stop(run, Intent.DEADLINE))
        self._launchers.submit(self._guarded(self._launch_or_say_why), run)

    def adopt(self, run: Run) -> None:
        """Take over a run that another worker began: look what has become of it."""
        run.phase, run.interrupted = Phase.UNCERTAIN, True
        self._keep(run)
        if run.deadline_at is not None:
            self._timer.at(run.deadline_at, lambda: self._stop(run, Intent.DEADLINE))
        self._submit(self._resolve, run)

    def cancel(self, run: Run) -> None:
        """Stop a run because somebody asked for it."""
        self._stop(run, Intent.CANCEL)

    def forget(self, run: Run) -> None:
        """The run's result is stored; nothing more is to be done for it."""
        with self._lock:
            self._runs.pop(run.spec.name, None)
        run.phase = Phase.DONE

    def remove(self, run: Run) -> None:
        """Remove the container of a run whose result is stored; reports `Removed`."""
        self._submit(self._remove, run)

    def remove_stray(self, container_id: str, key: Key) -> None:
        """Remove a container that the database has no use for; reports `Removed`."""
        self._submit(self._remove_stray, container_id, key)

    def close(self, *, patience: float) -> None:
        """Let go of the host: containers run on. Waits up to `patience` seconds for calls in flight."""
        self._stopping.set()
        deadline = time.monotonic() + patience
        self._timer.close()
        self._sampler.close()
        for pool in (self._launchers, self._workers, self._comparer):
            pool.shutdown(wait=False, cancel_futures=pool is self._launchers)
        for thread in self._pool_threads():
            thread.join(max(0.0, deadline - time.monotonic()))
        self._executor.close()
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
        return datetime.now(UTC) + self._clock_offset

    # ---------------------------------------------------------------------------------- launching

    def _launch_or_say_why(self, run: Run) -> None:
        """A bug in a driver must not leave the job "launching" for ever."""
        try:
            self._launch(run)
        except Exception as error:
            self._fail(run, CreateFailed("the executor failed in a way it should not", detail=repr(error)))
            raise

    def _launch(self, run: Run) -> None:
        image: ImageFacts | None = None
        try:
            if not self._verified.wait(CONNECT_PATIENCE_SECONDS):
                raise HostFault("the connection to the engine broke and does not stand yet")
            if self._given_up(run):
                return
            image = self._executor.pull(run.spec.image, progress=lambda line: run.note(f"pull: {line}"))
            if image.pulled:
                run.note(f"pull: {run.spec.image} is on the host now")
            if self._given_up(run):
                return
            run.container_id = self._create(run)
            run.note(f"create: container {run.container_id[:12]} named {run.spec.name}")
        except ExecutorError as error:
            self._fail(run, error)
            return
        if self._given_up(run, created=True):
            return
        try:
            self._executor.start(run.container_id)
        except HostFault as error:
            # The start may have had its effect: only a look can tell.
            run.note(f"start: no answer: {error}")
            run.phase, run.interrupted = Phase.UNCERTAIN, True
            self._timer.after(RECONNECT_SECONDS[1], lambda: self._submit(self._resolve, run))
            return
        except JobFault as error:
            run.note(f"start: refused: {error.detail or error}")
            self._fail(run, error, exit_code=self._exit_code(run))
            return
        self._runs_now(run, image, self.engine_now())

    def _create(self, run: Run) -> str:
        try:
            return self._executor.create(run.spec)
        except ImageNotFound:
            run.note("create: the image went away since we looked; fetching it once more")
            self._executor.pull(run.spec.image, progress=lambda line: run.note(f"pull: {line}"))
            return self._executor.create(run.spec)

    def _given_up(self, run: Run, *, created: bool = False) -> bool:
        if not self._fence.is_valid():
            # What we created is the next holder's to deal with.
            self._fail(run, HostFault("the worker's lease on the host ran out before the start"))
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

    def _fail(self, run: Run, error: ExecutorError, *, exit_code: int | None = None) -> None:
        run.note(f"launch failed: {error}" + (f" [{error.detail}]" if error.detail else ""))
        run.phase = Phase.HARVESTING
        self._inbox.put(LaunchFailed(key=run.key, error=error, exit_code=exit_code, intent=run.intent))

    def _exit_code(self, run: Run) -> int | None:
        try:
            return self._executor.inspect(run.container_id).exit_code
        except HostFault as error:
            run.note(f"inspect: {error}")
            return None

    def _runs_now(self, run: Run, image: ImageFacts | None, started_at: datetime) -> None:
        now = time.monotonic()
        with run.lock:
            if run.phase in (Phase.HARVESTING, Phase.DONE):
                return
            run.phase, run.ever_running, run.running_since = Phase.RUNNING, True, now
            run.started_at = run.started_at or started_at
        if not run.announced:
            run.announced = True
            run.note("start: running", started_at)
            self._inbox.put(
                Launched(key=run.key, container_id=run.container_id, started_at=started_at, image=image)
            )
        left = run.timeout_seconds - (self.engine_now() - started_at).total_seconds()
        self._timer.at(now + max(0.0, left), lambda: self._stop(run, Intent.TIMEOUT))
        self._timer.at(now + FOLLOW_AFTER_SECONDS, lambda: self._follow(run))
        if run.intent is not Intent.NONE:  # asked for while the start was in flight
            self._submit(self._signal, run)
        if run.ended_since:  # its `die` overtook the answer to the start
            self._submit(self._harvest, run)

    # ------------------------------------------------------------------------------------ stopping

    def _stop(self, run: Run, intent: Intent) -> None:
        with run.lock:
            if run.intent is not Intent.NONE or run.phase in (Phase.HARVESTING, Phase.DONE):
                return
            run.intent = intent
            running = run.phase is Phase.RUNNING
        if running:
            self._submit(self._signal, run)

    def _signal(self, run: Run) -> None:
        run.note(f"stop ({run.intent}): SIGTERM, and SIGKILL in {run.grace_seconds:g} s")
        try:
            self._executor.stop(run.name)
        except HostFault as error:
            run.note(f"stop: {error}")
        self._timer.after(run.grace_seconds, lambda: self._submit(self._kill, run))

    def _kill(self, run: Run) -> None:
        if run.phase is not Phase.RUNNING:
            return
        run.note("stop: SIGKILL")
        try:
            self._executor.stop(run.name, force=True)
        except HostFault as error:
            run.note(f"stop: {error}")
        self._timer.after(KILL_CHECK_SECONDS, lambda: self._submit(self._check_killed, run))

    def _check_killed(self, run: Run) -> None:
        if run.phase is Phase.RUNNING:
            self._harvest(run)
            self._timer.after(KILL_CHECK_SECONDS * 4, lambda: self._submit(self._kill, run))

    # ------------------------------------------------------------------------------------ following

    def _follow(self, run: Run) -> None:
        if run.phase is not Phase.RUNNING or self._stopping.is_set() or run.follower_alive:
            return
        run.follower = threading.Thread(
            target=self._guarded(self._read_on), args=(run,), name=f"{self.name}-log", daemon=True
        )
        run.follower.start()

    def _read_on(self, run: Run) -> None:
        """Follow the log to its end, which is the container's, and then see how that was."""
        try:
            self._read(run, follow=True)
        except ContainerGone:
            pass  # the look that follows finds the same and says so
        except HostFault as error:
            logger.info("the log of %s broke off: %s", run.spec.name, error)
            return  # the resync after the next connect starts another follower
        self._harvest(run)

    def _read(self, run: Run, *, follow: bool) -> None:
        reader = run.logs.reader()
        for frame in self._executor.logs(run.name, since=run.logs.cursor, follow=follow):
            if not run.logs.is_reader(reader) or run.logs.truncated:
                return
            if run.logs.add(frame) and follow:
                self._flush_soon(run)

    def _flush_soon(self, run: Run) -> None:
        def flush() -> None:
            if run.phase is Phase.RUNNING and (not run.logs.flush() or run.logs.columns_due):
                self._flush_soon(run)

        self._timer.after(_flush_seconds(time.monotonic() - run.running_since), flush)

    # ----------------------------------------------------------------------------------- harvesting

    def _harvest(self, run: Run) -> None:
        """Look at a container that is said to have ended; if it has, read it to its end and report."""
        with run.lock:
            run.ended_since = run.ended_since or time.monotonic()
            if run.phase is not Phase.RUNNING:
                return  # not known to run yet: `_runs_now` comes back here; or another thread is at it
        if run.follower_alive and run.follower is not threading.current_thread():
            if time.monotonic() - max(run.ended_since, run.logs.read_at) < FOLLOWER_PATIENCE_SECONDS:
                return  # the follower reads to the end and comes here itself
            run.note("logs: the engine did not end the log stream; read again from the cursor")
        observation = self._look(run)
        if observation is None:
            return  # the comparison after the next connect comes back to it
        if observation.state in (*_ALIVE, ContainerState.UNKNOWN):
            run.ended_since = 0.0
            return
        with run.lock:
            if run.phase is not Phase.RUNNING:
                return
            run.phase = Phase.HARVESTING
        try:
            self._drain(run, observation)
        except BaseException:
            run.phase = Phase.RUNNING  # the next comparison comes back to it
            raise
        self._report_exit(run, observation)

    def _drain(self, run: Run, observation: Observation) -> None:
        if observation.state is ContainerState.NOT_FOUND or run.logs.truncated:
            return
        try:
            self._read(run, follow=False)
            run.logs.complete = True
        except ContainerGone:
            run.note("logs: the container was removed before its log was read to the end")
        except EngineFault as error:
            run.unreadable += 1
            if run.unreadable < READ_ATTEMPTS:
                raise
            run.note(f"logs: the engine cannot read them, the rest is given up: {error.explained()}")

    def _report_exit(self, run: Run, observation: Observation) -> None:
        if observation.state is ContainerState.NOT_FOUND:
            run.note("inspect: the container is gone")
        else:
            oom = ", out of memory" if observation.oom_killed else ""
            run.note(f"die: exit code {observation.exit_code}{oom}", observation.finished_at)
        chunk, logs = run.logs.rest()
        self._inbox.put(
            Exited(
                key=run.key,
                observation=observation,
                intent=run.intent,
                engine_interrupted=run.interrupted,
                restarted=run.restarted,
                usage=run.usage(observation.started_at),
                chunk=chunk,
                logs=logs,
            )
        )

    def _resolve(self, run: Run) -> None:
        """Find out what a run of unknown fate has come to, and go on from there."""
        if run.phase is not Phase.UNCERTAIN:
            return
        seen = self._look(run)
        if seen is None:
            return  # the comparison after the next connect asks again
        run.container_id = seen.container_id or run.container_id
        if seen.state is ContainerState.CREATED and not seen.ever_started and not seen.error:
            # A start of somebody else's may be on its way yet: the engine decides which of us comes first.
            if self._executor.withdraw(run.name):
                self._fail(
                    run, HostFault("the container was created and never started; the job is given back")
                )
            else:
                run.note("adopt: it was started while we looked")
                run.ever_running = True
                self._submit(self._resolve, run)
        elif seen.state is ContainerState.NOT_FOUND and not run.ever_running:
            self._fail(run, HostFault("the container was never created; the job is given back"))
        elif seen.state is ContainerState.UNKNOWN:
            return
        else:
            run.note(f"adopt: container {run.name[:12]} is {seen.state}")
            run.interrupted = seen.state not in _ALIVE
            self._runs_now(run, None, seen.started_at or self.engine_now())
            if seen.state not in _ALIVE:
                self._harvest(run)

    # ------------------------------------------------------------------------------------- watching

    def _watch(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                for event in self._executor.watch(self._installation, self._stopping):
                    if event.action is EventAction.CONNECTED:
                        self._verify()
                    failures = 0
                    self._heed(event)
                error: ExecutorError = HostFault("the engine closed the event stream")
            except HostFault as fault:
                error = fault
            self._verified.clear()
            if self._stopping.is_set():
                return
            for run in self._all():
                run.interrupted = True
            self._inbox.put(HostDown(host_id=self.host_id, error=error))
            self._stopping.wait(RECONNECT_SECONDS[min(failures, len(RECONNECT_SECONDS) - 1)])
            failures += 1

    def _verify(self) -> None:
        """See that it is our engine at the other end of the stream that stands now. Raises HostFault."""
        facts = self._executor.health()
        if facts.engine_id != self._engine_id:
            raise HostMismatch(
                f"engine {facts.engine_id} answers at this host's address, which is bound to the engine "
                f"{self._engine_id}"
            )
        self._clock_offset = _clock_offset(facts)
        self._verified.set()
        self._inbox.put(HostUp(host_id=self.host_id, facts=facts))

    def _look(self, run: Run) -> Observation | None:
        """What the engine says of a container; None where it cannot be asked, or may be another engine."""
        if not self._verified.is_set():
            return None
        try:
            seen = self._executor.inspect(run.name)
        except HostFault as error:
            logger.info("cannot look at %s yet: %s", run.spec.name, error)
            return None
        if not self._verified.is_set():
            return None
        self._mind_restart(run, seen)
        return seen

    def _mind_restart(self, run: Run, seen: Observation) -> None:
        if run.restarted or run.started_at is None or seen.started_at is None:
            return
        if (seen.started_at - run.started_at).total_seconds() > RESTART_SECONDS:
            run.restarted = True
            run.note("the container was started again from outside", seen.started_at)

    def _heed(self, event: EngineEvent) -> None:
        if event.action is EventAction.CONNECTED:
            self._submit_resync()
            return
        run = self._by_id(event.container_id)
        if run is None:
            return
        if event.action in (EventAction.DIE, EventAction.DESTROY):
            self._submit(self._harvest, run)
        elif event.action in (EventAction.OOM, EventAction.PAUSE, EventAction.UNPAUSE):
            run.note(f"event: {event.action}")

    def _tick(self) -> None:
        if self._stopping.is_set():
            return
        self._mind_slowness()
        self._submit_resync()
        self._timer.after(self._resync_interval, self._tick)

    def _mind_slowness(self) -> None:
        since = self._resync_since
        owed = 0.0 if since is None else time.monotonic() - since
        if owed > SLOW_SECONDS and not self._slow:
            self._slow = True
            error = HostTimeout(f"the engine has not answered for {owed:.0f} s")
            self._inbox.put(HostDown(host_id=self.host_id, error=error))

    def _submit_resync(self) -> None:
        if self._resync_since is None:
            self._resync_since = time.monotonic()
            try:
                self._comparer.submit(self._guarded(self._resync))
            except RuntimeError:
                if not self._stopping.is_set():
                    raise

    def _resync(self) -> None:
        """Compare what we think with what the engine lists: events get lost."""
        try:
            if not self._verified.is_set():
                return
            expected = [run for run in self._all() if run.phase is Phase.RUNNING]
            listed = {found.container_id: found for found in self._executor.list_owned(self._installation)}
            if not self._verified.is_set():
                return  # it may have been another engine's list
            if self._slow:
                self._inbox.put(HostUp(host_id=self.host_id, facts=self._executor.health()))
                self._slow = False
        finally:
            self._resync_since = None
        for run in expected:
            container = listed.get(run.container_id)
            if container is None or container.state not in _ALIVE:
                self._submit(self._harvest, run)
                continue
            run.interrupted = False  # whatever went on out of our sight, it survived
            if time.monotonic() - run.running_since > FOLLOW_AFTER_SECONDS:
                self._follow(run)
        for run in self._all():
            if run.phase is Phase.UNCERTAIN:
                self._submit(self._resolve, run)
        runs = self._all()
        names, ids = {run.spec.name for run in runs}, {run.container_id for run in runs}
        strays = tuple(
            found for found in listed.values() if found.name not in names and found.container_id not in ids
        )
        if strays:
            self._inbox.put(Strays(host_id=self.host_id, containers=strays))

    # -------------------------------------------------------------------------------------- insides

    def _remove(self, run: Run) -> None:
        gone = False
        try:
            self._executor.remove(run.name)
            gone = True
        finally:
            self._inbox.put(Removed(key=run.key, gone=gone))

    def _remove_stray(self, container_id: str, key: Key) -> None:
        if self._verified.is_set() and self._fence.is_valid():
            self._executor.remove(container_id)
            self._inbox.put(Removed(key=key, gone=True))

    def _submit(self, call: Callable[..., None], *args: object) -> None:
        try:
            self._workers.submit(self._guarded(call), *args)
        except RuntimeError:
            if not self._stopping.is_set():
                raise

    def _guarded(self, call: Callable[..., None]) -> Callable[..., None]:
        """Log what would otherwise vanish with the thread; a host's fault is its state, not a surprise."""

        def guarded(*args: object) -> None:
            try:
                call(*args)
            except ExecutorError as error:
                logger.info("%s: %s: %s", self.name, call.__name__.strip("_"), error)
            except BaseException:
                logger.exception("%s: %s failed", self.name, call.__name__.strip("_"))
                raise

        return guarded

    def _keep(self, run: Run) -> None:
        with self._lock:
            self._runs[run.spec.name] = run

    def _all(self) -> list[Run]:
        with self._lock:
            return list(self._runs.values())

    def _running(self) -> list[Run]:
        return [run for run in self._all() if run.phase is Phase.RUNNING]

    def _by_id(self, container_id: str) -> Run | None:
        return next((run for run in self._all() if run.container_id == container_id), None)

    def _pool_threads(self) -> list[threading.Thread]:
        return [
            thread
            for thread in threading.enumerate()
            if thread.name.startswith((f"{self.name}-launch", f"{self.name}-work"))
        ]


def _clock_offset(facts: HostFacts) -> timedelta:
    """How far the engine's clock is ahead of ours."""
    return timedelta() if facts.system_time is None else facts.system_time - datetime.now(UTC)


def _flush_seconds(age: float) -> float:
    """How long a batch may wait: short while the job is young and watched, longer as it goes on."""
    return min(2.0, max(0.25, age / 60))
