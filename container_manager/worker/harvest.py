"""What a container wrote and how it ended: followed while it runs, read to its end, reported."""

from __future__ import annotations

import logging
import threading
import time

from container_manager.core.errors import ContainerGone, HostFault
from container_manager.core.observation import ALIVE, ContainerState, Observation
from container_manager.core.outcome import Intent
from container_manager.worker.crew import Crew
from container_manager.worker.link import Link
from container_manager.worker.messages import Exited, Inbox, Started
from container_manager.worker.run import RESTART_SECONDS, Phase, Run

logger = logging.getLogger("container_manager.worker")

#: A container that lives longer than this gets a follower; a shorter one is read once, at its end.
FOLLOW_AFTER_SECONDS = 0.3
#: How long a log stream may stay open and silent after its container has ended.
FOLLOWER_PATIENCE_SECONDS = 10.0
#: How often an engine may fail to read a log (a damaged file) before the job ends without the rest of it.
READ_ATTEMPTS = 3
#: A container whose start lies this far behind ours may have been started again: the engine is asked.
LATE_START_SECONDS = 0.3
#: How long after an end by SIGKILL we look again, and the exit code that it leaves.
OOM_NEWS_SECONDS, KILLED = 0.5, 137


class Harvester:
    """Reads logs and takes in ended containers, for all runs of one host; reports `Exited`."""

    def __init__(self, link: Link, crew: Crew, inbox: Inbox) -> None:
        self._link = link
        self._crew = crew
        self._inbox = inbox

    def follow(self, run: Run) -> None:
        """Read the log of a running container as it grows, if nobody does yet."""
        with run.lock:  # else one could begin beside the last reading, and take its place
            if run.phase is not Phase.RUNNING or self._crew.stopping.is_set() or run.follower_alive:
                return
            name = f"{self._crew.name}-log"
            run.follower = threading.Thread(
                target=self._crew.guarded(self._read_on), args=(run,), name=name, daemon=True
            )
            run.follower.start()

    def harvest(self, run: Run) -> None:
        """Look at a container that is said to have ended; if it has, read it to its end and report."""
        with run.lock:
            run.ended_since = run.ended_since or time.monotonic()
            if run.phase is not Phase.RUNNING:
                return  # not known to run yet, and looked at again once it is; or another thread is at it
        if _is_followed(run):
            return  # the follower reads to the end and comes here itself
        seen = self._link.look(run.name)
        if seen is None:
            return  # the comparison after the next connect comes back to it
        self._mind_restart(run, seen)
        if seen.state in (*ALIVE, ContainerState.UNKNOWN):
            run.ended_since = 0.0
            return
        if seen.exit_code == KILLED and not (seen.oom_killed or run.stop_sent or run.looked_twice):
            # The news that it was for lack of memory may come to the engine behind the end itself.
            run.looked_twice = True
            self._crew.after(OOM_NEWS_SECONDS, self.harvest, run)
            return
        with run.lock:
            if run.phase is not Phase.RUNNING or _is_followed(run):
                return  # one began while we looked
            if run.follower_alive and run.follower is not threading.current_thread():
                run.note("logs: the engine did not end the log stream; read again from the cursor")
            run.phase = Phase.HARVESTING
        try:
            self._drain(run, seen)
        except BaseException:
            run.become(Phase.RUNNING)  # the next comparison comes back to it
            raise
        self._report(run, seen)

    def _read_on(self, run: Run) -> None:
        """Follow the log to its end, which is the container's, and then see how that was."""
        try:
            self._read(run, follow=True)
        except ContainerGone:
            pass  # the look that follows finds the same and says so
        except HostFault as error:
            logger.info("the log of %s broke off: %s", run.spec.name, error)
            return  # the comparison after the next connect starts another follower
        self.harvest(run)

    def _read(self, run: Run, *, follow: bool) -> bool:
        """Take in what the log has; whether that was all of it, and nobody else began to read."""
        reader = run.logs.reader()
        for frame in self._link.executor.logs(run.name, since=run.logs.cursor, follow=follow):
            if run.logs.truncated or run.phase is Phase.DONE or not run.logs.is_reader(reader):
                return False
            if run.logs.add(frame, reader=reader) and follow:
                self._flush_soon(run)
        return run.logs.is_reader(reader)

    def _flush_soon(self, run: Run) -> None:
        def flush() -> None:
            if run.phase is Phase.RUNNING and (not run.logs.flush() or run.logs.columns_due):
                self._flush_soon(run)

        self._crew.tick(_flush_seconds(time.monotonic() - run.running_since), flush)

    def _drain(self, run: Run, seen: Observation) -> None:
        if seen.state is ContainerState.NOT_FOUND or run.logs.truncated:
            return
        try:
            run.logs.complete = self._read(run, follow=False) and self._is_whole(run)
        except ContainerGone:
            self._link.ask()  # raises where it is another engine that knows nothing of it
            run.note("logs: the container was removed before its log was read to the end")
        except HostFault as error:
            # It answered the look just before: what fails again and again is this log, not the host.
            run.unreadable += self._link.is_proven
            if run.unreadable < READ_ATTEMPTS:
                raise
            run.note(f"logs: the engine cannot read them, the rest is given up: {error.explained()}")

    def _is_whole(self, run: Run) -> bool:
        """What a program wrote while its engine was down, and then ended, may be lost: the engine's way."""
        if not run.interrupted or self._link.executor.remembered_starts(run.name) != 0:
            return True
        run.note("logs: the engine was restarted while the program ran; lines may be missing")
        return False

    def _mind_restart(self, run: Run, seen: Observation) -> None:
        """Tell that a container was started again from outside: by its times, and the engine's memory."""
        if run.restarted or run.started_at is None or seen.started_at is None:
            return
        late = (seen.started_at - run.started_at).total_seconds()
        if late <= LATE_START_SECONDS:
            return
        starts = self._link.executor.remembered_starts(run.name)
        if late > RESTART_SECONDS if starts is None else starts > 1:
            run.restarted = True
            run.note("the container was started again from outside", seen.started_at)

    def _report(self, run: Run, seen: Observation) -> None:
        if seen.state is ContainerState.NOT_FOUND:
            run.note("inspect: the container is gone")
        else:
            oom = ", out of memory" if seen.oom_killed else ""
            run.note(f"die: exit code {seen.exit_code}{oom}", seen.finished_at)
        chunk, logs = run.logs.rest()
        self._inbox.put(
            Exited(
                key=run.key,
                observation=seen,
                intent=run.intent if run.stop_sent else Intent.NONE,
                engine_interrupted=run.interrupted,
                restarted=run.restarted,
                usage=run.usage(seen.started_at),
                chunk=chunk,
                logs=logs,
            )
        )
        with run.lock:
            run.reported, again_at = True, run.again_at
        if again_at is not None and seen.finished_at is not None and again_at > seen.finished_at:
            self._inbox.put(Started(key=run.key, at=again_at))


def _is_followed(run: Run) -> bool:
    """Whether another thread reads the log and will come to its end; one that hangs does not count."""
    if not run.follower_alive or run.follower is threading.current_thread():
        return False
    return time.monotonic() - max(run.ended_since, run.logs.read_at) < FOLLOWER_PATIENCE_SECONDS


def _flush_seconds(age: float) -> float:
    """How long a batch may wait: short while the job is young and watched, longer as it goes on."""
    return min(2.0, max(0.25, age / 60))
