"""The way to one engine, and when what it says may be believed."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime

from container_manager.core.errors import HostFault, HostMismatch
from container_manager.core.observation import HostFacts, Observation
from container_manager.executors.base import Executor

logger = logging.getLogger("container_manager.worker")


class Link:
    """An executor, and the proof that the other side is still the engine that we think of.

    The proof is an unbroken event stream to an engine whose id was asked for since the stream stands. While
    there is none, nothing that the address says of a container counts: another engine knows none of ours.
    """

    def __init__(self, executor: Executor, facts: HostFacts) -> None:
        self.executor = executor
        self._engine_id = facts.engine_id
        self._clock_offset = facts.clock_offset
        self._proven = threading.Event()

    @property
    def is_proven(self) -> bool:
        """Whether the engine may be believed."""
        return self._proven.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for the proof; whether it is there."""
        return self._proven.wait(seconds)

    def prove(self) -> HostFacts:
        """Ask who is at the other end of the stream that stands now; for its reader. Raises HostFault."""
        facts = self.ask()
        self._proven.set()
        return facts

    def ask(self) -> HostFacts:
        """How the engine is. Raises HostMismatch where it is another one, HostFault."""
        facts = self.executor.health()
        if facts.engine_id != self._engine_id:
            raise HostMismatch(
                f"engine {facts.engine_id} answers at this host's address, which is bound to the engine "
                f"{self._engine_id}"
            )
        self._clock_offset = facts.clock_offset
        return facts

    def broke(self) -> None:
        """The stream broke: from here on it may be another engine."""
        self._proven.clear()

    def look(self, name: str) -> Observation | None:
        """What the engine says of a container; None where it cannot be asked, or not be believed."""
        if not self.is_proven:
            return None
        try:
            seen = self.executor.inspect(name)
        except HostFault as error:
            logger.info("cannot look at %s yet: %s", name, error)
            return None
        return seen if self.is_proven else None

    def engine_now(self) -> datetime:
        """The time by the engine's clock."""
        return datetime.now(UTC) + self._clock_offset
