"""A host as one worker sees it: reachable or not, leased or not, served by an agent or not."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from container_manager.conf import Settings
from container_manager.core.breaker import Breaker
from container_manager.core.errors import ConfigurationError, ExecutorError, HostFault
from container_manager.core.observation import HostFacts
from container_manager.executors.base import Executor
from container_manager.executors.registry import open_executor
from container_manager.models import ExecutorHost
from container_manager.worker.agent import HostAgent
from container_manager.worker.leases import Tenure
from container_manager.worker.messages import HostDown, HostUp, Inbox

logger = logging.getLogger("container_manager.worker")

PROBE_AGAIN_SECONDS = 2.0
#: How often a host that another worker serves is asked whether it is still there.
STANDBY_PROBE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """What this worker itself has seen of a host that is away."""

    seconds: float  # since its first failure
    engine_was_met: bool  # this worker had the host's own engine at that address before


class HostSeat:
    """Where a worker sits at one host. Used by the supervisor's thread alone, but for the probe."""

    def __init__(self, host: ExecutorHost, inbox: Inbox) -> None:
        self.host = host
        self.agent: HostAgent | None = None
        self.tenure: Tenure | None = None
        self.facts: HostFacts | None = None
        self.reachable = False
        self.probe_at = 0.0
        self.breaker = Breaker()
        self.problem = ""
        self._down_since: float | None = None  # monotonic; by what this worker itself saw
        self._met = False
        self._inbox = inbox
        self._executor: Executor | None = None
        self._probe: threading.Thread | None = None

    @property
    def is_vacant(self) -> bool:
        """Whether the host answers and nobody of us serves it."""
        return self.reachable and self.agent is None

    @property
    def is_sound(self) -> bool:
        """Whether it did what it was asked last."""
        return self.breaker.failures == 0

    @property
    def serving(self) -> bool:
        """Whether jobs can be started here now."""
        return (
            self.agent is not None
            and self.reachable
            and self.host.is_active
            and self.tenure is not None
            and self.tenure.is_valid()
        )

    def probe_if_due(self) -> None:
        """Ask the host who it is, in a thread of its own: a host that hangs must not hold up the others."""
        if self.agent is not None or time.monotonic() < self.probe_at:
            return
        if self._probe is not None and self._probe.is_alive():
            return
        try:
            self._executor = self._executor or open_executor(self.host.executor_type, self.host.as_config())
        except ConfigurationError as error:
            self.probe_at = time.monotonic() + PROBE_AGAIN_SECONDS * 5
            self._inbox.put(HostDown(host_id=self.host.pk, error=HostFault(str(error))))
            return
        self.probe_at = time.monotonic() + PROBE_AGAIN_SECONDS
        self._probe = threading.Thread(
            target=self._ask, args=(self._executor,), name=f"{self.host.name}-probe", daemon=True
        )
        self._probe.start()

    @property
    def is_ready(self) -> bool:
        """Whether there is a way to the host, on which an agent could begin."""
        return self._executor is not None

    def absence(self) -> Absence | None:
        """What we saw of a host that is away; None where we have not asked it yet."""
        if self._down_since is None:
            return None
        return Absence(seconds=time.monotonic() - self._down_since, engine_was_met=self._met)

    def came_up(self, facts: HostFacts, *, record: bool = True) -> None:
        """The host answered: `record` its facts. Raises HostMismatch when it is another engine."""
        self.host.bind(facts)
        if record:
            self.host.record_up(facts)
        self._down_since, self._met = None, True
        self.facts, self.reachable, self.problem = facts, True, ""
        self.probe_at = time.monotonic() + STANDBY_PROBE_SECONDS

    def went_down(self, error: ExecutorError, *, record: bool = True) -> None:
        """The host does not answer, or as somebody else. Jobs on it are left as they are."""
        self._down_since = self._down_since or time.monotonic()
        if error.args != (self.problem,):
            logger.warning("host %s: %s", self.host.name, error, extra={"docker_host": self.host.name})
        self.reachable, self.problem = False, str(error)
        self.probe_at = time.monotonic() + PROBE_AGAIN_SECONDS
        if record:
            self.host.record_down(error)

    def serve(self, tenure: Tenure, *, installation: str, settings: Settings) -> None:
        """Begin to work on the host under a lease."""
        assert self.facts is not None  # noqa: S101 - only a host that came up is served
        assert self._executor is not None  # noqa: S101
        self.tenure = tenure
        self.agent = HostAgent(
            host_id=self.host.pk,
            name=self.host.name,
            executor=self._executor,
            installation=installation,
            facts=self.facts,
            inbox=self._inbox,
            fence=tenure,
            launch_threads=settings.LAUNCH_CONCURRENCY,
            resync_interval=settings.RESYNC_INTERVAL,
            usage_interval=settings.USAGE_INTERVAL,
        )
        self.agent.start()
        logger.info("serving host %s (engine %s)", self.host.name, self.facts.engine_id)

    def leave(self, *, patience: float) -> None:
        """Let go of the host; its containers run on."""
        if self.agent is not None:
            self.agent.close(patience=patience)
        elif self._executor is not None:
            self._executor.close()
        self.agent, self.tenure, self._executor = None, None, None
        self.reachable = False

    def _ask(self, executor: Executor) -> None:
        try:
            facts = executor.health()
        except HostFault as error:
            self._inbox.put(HostDown(host_id=self.host.pk, error=error))
        except Exception as mistake:
            # The driver's: the host stays away until it can be asked, and its row says why.
            fault = HostFault(f"the host could not be asked how it is: {mistake!r}")
            if str(fault) != self.problem:  # else it would be told with each probe
                logger.exception("host %s: the probe failed", self.host.name)
            self._inbox.put(HostDown(host_id=self.host.pk, error=fault))
        else:
            self._inbox.put(HostUp(host_id=self.host.pk, facts=facts))
