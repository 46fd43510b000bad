"""How a worker comes by an engine's lease: free, run out, or taken from a holder that is proven dead."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from container_manager.identity import DeathWatch, ProcessIdentity
from container_manager.models import EngineLease, RegisteredWorker
from container_manager.models.lease import HeldLease, Holding

logger = logging.getLogger("container_manager.worker")

#: Part of a lease's time after which its holder no longer trusts it: clocks and commits need a margin.
LEASE_TRUST = 0.8
#: Behind the end of somebody's lease we try again at once; this much later than the database's clock says.
BEHIND_EXPIRY_SECONDS = 0.05
#: A clock that goes on while the machine sleeps: a laptop that wakes up must not trust a lease of yesterday.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclass(slots=True)
class Tenure:
    """A lease that this worker holds, with how long it may be trusted by a clock of our own."""

    lease: HeldLease
    trusted_until: float

    def is_valid(self) -> bool:
        """False from a safe moment before the lease runs out."""
        return _now() < self.trusted_until

    def end(self) -> None:
        """Trust it no more: whoever asks from now on may not act."""
        self.trusted_until = 0.0


class LeaseKeeper:
    """Acquires, renews and gives back the leases of one worker. For the supervisor's thread alone.

    Where another worker holds a lease we stand by: `told` is called when that worker's process ends on this
    machine, and `retry_in` says when else to try. A `temporary` worker, there for one job, asks nobody
    to yield.
    """

    def __init__(
        self, worker: str, seconds: float, told: Callable[[], None], *, temporary: bool = False
    ) -> None:
        self._worker = worker
        self._seconds = seconds
        self._told = told
        self._temporary = temporary
        self._watches: dict[str, DeathWatch] = {}  # by engine id
        self._retry_at: dict[str, float] = {}

    def acquire(self, engine_id: str) -> Tenure | None:
        """A tenure on an engine, or None while a living worker holds it."""
        began = _now()
        lease = EngineLease.acquire(engine_id, self._worker, self._seconds)
        if lease is None:
            holding = EngineLease.holding(engine_id)
            identity = RegisteredWorker.identity_of(holding.worker)
            if holding.worker == self._worker:  # we took it, and the answer to that commit was lost
                lease = EngineLease.seize(engine_id, holding.token, self._worker, self._seconds)
            elif identity.is_gone():
                logger.warning(
                    "the worker %s is gone without a word; its engine %s is taken over",
                    holding.worker,
                    engine_id,
                )
                lease = EngineLease.seize(engine_id, holding.token, self._worker, self._seconds)
            else:
                self._stand_by(engine_id, holding, identity)
        if lease is None:
            return None
        self._stand_down(engine_id)
        return Tenure(lease, began + self._seconds * LEASE_TRUST)

    def renew(self, tenure: Tenure) -> None:
        """Prolong a tenure. Raises LeaseLost."""
        began = _now()
        EngineLease.renew(tenure.lease, self._seconds)
        tenure.trusted_until = began + self._seconds * LEASE_TRUST

    def may_try(self, engine_id: str) -> bool:
        """Whether an `acquire` may find something else than the last one did."""
        if _now() >= self._retry_at.get(engine_id, 0.0):
            return True
        watch = self._watches.get(engine_id)
        return watch is not None and watch.identity.is_gone()

    def retry_in(self, engine_ids: Collection[str]) -> float | None:
        """Seconds until the next `acquire` of one of these is worth while; None where we stand by nowhere."""
        moments = [self._retry_at[engine_id] for engine_id in engine_ids if engine_id in self._retry_at]
        return min((max(0.0, at - _now()) for at in moments), default=None)

    def forget(self, engine_id: str) -> None:
        """We serve that engine no more, nor stand by."""
        self._stand_down(engine_id)

    def close(self) -> None:
        """Watch nobody any more."""
        for engine_id in list(self._watches):
            self._stand_down(engine_id)

    def _stand_by(self, engine_id: str, holding: Holding, identity: ProcessIdentity) -> None:
        if not self._temporary:
            EngineLease.want(engine_id, self._worker)
        # It may be renewed until then, and given back at any time: we look before its end, too.
        wait = min(max(holding.seconds_left, 0.0) + BEHIND_EXPIRY_SECONDS, self._seconds / 4)
        self._retry_at[engine_id] = _now() + wait
        watch = self._watches.get(engine_id)
        if watch is not None and watch.identity == identity:
            return
        self._stand_down(engine_id, keep_time=True)
        if identity.is_here:
            self._watches[engine_id] = DeathWatch(identity, self._told)

    def _stand_down(self, engine_id: str, *, keep_time: bool = False) -> None:
        watch = self._watches.pop(engine_id, None)
        if watch is not None:
            watch.close()
        if not keep_time:
            self._retry_at.pop(engine_id, None)


def _now() -> float:
    return time.clock_gettime(_CLOCK)
