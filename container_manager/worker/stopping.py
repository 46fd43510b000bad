"""How a program is ended: asked, given time, killed, and looked after until it is gone."""

from __future__ import annotations

from container_manager.core.errors import HostFault
from container_manager.core.observation import ALIVE
from container_manager.core.outcome import Intent
from container_manager.worker.crew import Crew
from container_manager.worker.harvest import Harvester
from container_manager.worker.link import Link
from container_manager.worker.run import Phase, Run

#: After SIGKILL, how long until we look again and, if need be, kill again.
KILL_CHECK_SECONDS = 1.0


class Stopper:
    """Posts stops; the end itself takes the same way as any other."""

    def __init__(self, link: Link, crew: Crew, harvester: Harvester) -> None:
        self._link = link
        self._crew = crew
        self._harvester = harvester

    def stop(self, run: Run, intent: Intent) -> None:
        """End a run; the first intent stands. One that does not run yet is not started."""
        with run.lock:
            if run.intent is not Intent.NONE or run.phase in (Phase.HARVESTING, Phase.DONE):
                return
            run.intent = intent
            running = run.phase is Phase.RUNNING
        if running:
            self._crew.work(self.signal, run)

    def signal(self, run: Run) -> None:
        """SIGTERM now, SIGKILL after the grace period."""
        if self._sent(run, force=False):
            run.note(f"stop ({run.intent}): SIGTERM, and SIGKILL in {run.grace_seconds:g} s")
        wait = run.grace_seconds if run.stop_sent else KILL_CHECK_SECONDS
        self._crew.after(wait, self._kill, run)

    def _kill(self, run: Run) -> None:
        if run.phase is not Phase.RUNNING:
            return
        if not run.stop_sent:
            self.signal(run)  # it could not be asked yet
            return
        if self._sent(run, force=True):
            run.note("stop: SIGKILL")
        self._crew.after(KILL_CHECK_SECONDS, self._check, run)

    def _check(self, run: Run) -> None:
        if run.phase is Phase.RUNNING:
            self._harvester.harvest(run)
            self._crew.after(KILL_CHECK_SECONDS * 4, self._kill, run)

    def _sent(self, run: Run, *, force: bool) -> bool:
        """Send the signal; whether a program that ran was there to hear it."""
        seen = self._link.look(run.name)
        if seen is None or seen.state not in ALIVE:
            # What has ended by itself was not ended by us; what cannot be reached is asked again later.
            self._harvester.harvest(run)
            return False
        try:
            self._link.executor.stop(run.name, force=force)
        except HostFault as error:
            run.note(f"stop: {error}")
            return False
        run.stop_sent = True
        return True
