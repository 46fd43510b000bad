"""The way to one engine, and when what it says may be believed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from container_manager.core.errors import HostFault, HostMismatch
from container_manager.core.observation import ContainerState, HostFacts, Observation
from container_manager.executors.base import Executor

logger = logging.getLogger("container_manager.worker")


class Link:
    """An executor, and the proof that the other side is still the engine that we think of.

    The proof is an unbroken event stream to an engine whose id was asked for since the stream stands. While
    there is none, nothing that the address says of a container counts: another engine knows none of ours.

    The stream proves nothing of other connections, though: where an address moves to another machine, the old
    stream may stand for minutes. So an absence, which is what another engine would report, is believed only
    from connections made for the question, with the id asked for on them before and after (`surely`). Who
    then turns out to be another one ends the stream, and with it the proof.
    """

    def __init__(self, executor: Executor, facts: HostFacts) -> None:
        self.executor = executor
        #: The other engine that answered while the stream stood.
        self.mismatch: HostMismatch | None = None
        self._engine_id = facts.engine_id
        self._clock_offset = facts.clock_offset
        self._proven = threading.Event()
        self._stream_end = threading.Event()

    @property
    def is_proven(self) -> bool:
        """Whether the engine may be believed."""
        return self._proven.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for the proof; whether it is there."""
        return self._proven.wait(seconds)

    def begin(self) -> threading.Event:
        """For the reader of a stream that is to be opened: what is set once that stream is worth nothing."""
        self.mismatch, self._stream_end = None, threading.Event()
        return self._stream_end

    def prove(self) -> HostFacts:
        """Ask who is at the other end of the stream that stands now; for its reader. Raises HostFault."""
        facts = self.ask()
        self._proven.set()
        return facts

    def ask(self) -> HostFacts:
        """How the engine is at the address now. Raises HostMismatch where it is another one, HostFault."""
        with self.executor.anew() as executor:
            return self._recognised(executor)

    @contextmanager
    def surely(self) -> Iterator[Executor]:
        """The engine by connections made now; it was asked who it is before the block, and is behind it.

        Raises HostMismatch where it is another one, HostFault: what the block learnt does not count then.
        """
        with self.executor.anew() as executor:
            self._recognised(executor)
            yield executor
            self._recognised(executor)

    def broke(self) -> None:
        """The stream broke: from here on it may be another engine."""
        self._proven.clear()

    def close(self) -> None:
        """Let the reader of the stream come to its end."""
        self._stream_end.set()

    def look(self, name: str) -> Observation | None:
        """What the engine says of a container; None where it cannot be asked, or not be believed."""
        if not self.is_proven:
            return None
        try:
            seen = self.executor.inspect(name)
            if seen.state is ContainerState.NOT_FOUND:
                with self.surely() as executor:
                    seen = executor.inspect(name)
        except HostFault as error:
            logger.info("cannot look at %s yet: %s", name, error)
            return None
        return seen if self.is_proven else None

    def engine_now(self) -> datetime:
        """The time by the engine's clock."""
        return datetime.now(UTC) + self._clock_offset

    def _recognised(self, executor: Executor) -> HostFacts:
        facts = executor.health()
        if facts.engine_id != self._engine_id:
            mismatch = self.mismatch = HostMismatch(
                f"engine {facts.engine_id} answers at this host's address, which is bound to the engine "
                f"{self._engine_id}"
            )
            self.broke()
            self._stream_end.set()
            raise mismatch
        self._clock_offset = facts.clock_offset
        return facts
