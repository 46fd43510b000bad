"""Which jobs a worker takes next: into the free slots of its hosts, by the hosts' weight."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterable, Iterator

from django.db.models import Q

from container_manager import lifecycle
from container_manager.core.states import Status
from container_manager.models import ContainerJob, ExecutionMetadata, ExecutorHost
from container_manager.worker.hands import Hands
from container_manager.worker.hosts import HostSeat
from container_manager.worker.seats import Seats

Claimed = tuple[ContainerJob, ExecutionMetadata]


class Claims:
    """Fills free slots. Works on the supervisor's own seats and hands, and in its thread."""

    def __init__(
        self,
        worker: str,
        seats: Seats,
        hands: Hands,
        *,
        concurrency: int,
        only: Collection[uuid.UUID] | None,
    ) -> None:
        self._worker = worker
        self._seats = seats
        self._hands = hands
        self._concurrency = concurrency
        self._only = only

    def are_possible(self) -> bool:
        """Whether any host could take a job now."""
        return any(self._slots(seat) > 0 for seat in self._seats)

    def take(self) -> Iterator[tuple[HostSeat, list[Claimed]]]:
        """Claim for one host after the other; what is yielded is launched before the next one's turn.

        Raises LeaseLost.
        """
        free = [seat for seat in self._seats if self._slots(seat) > 0]
        # A host on trial comes last: what need not run there is taken by the sound ones.
        for seat in sorted(free, key=lambda seat: (seat.is_sound, seat.host.weight), reverse=True):
            room = self._slots(seat)
            if room > 0:
                yield seat, self._claim(seat, room)

    def _slots(self, seat: HostSeat) -> int:
        if not seat.serving:
            return 0
        mine = self._hands.on(seat)
        room = min(seat.host.max_concurrent_jobs - len(mine), self._concurrency - len(self._hands))
        launching = sum(1 for held in mine if held.job.status == Status.LAUNCHING)
        allowance = seat.breaker.allowance(time.monotonic(), in_flight=launching)
        return room if allowance is None else min(room, allowance)

    def _claim(self, seat: HostSeat, room: int) -> list[Claimed]:
        """The host's own jobs, then those that were placed on a host which cannot take them now.

        A host of weight 0 gets none of the latter, as placement gives it none.
        """
        assert seat.tenure is not None  # noqa: S101 - only served seats have slots
        lease = seat.tenure.lease
        pairs = lifecycle.claim(lease, seat.host, limit=room, worker=self._worker, only=self._only)
        if len(pairs) < room and seat.host.weight > 0:
            helpless = self._hosts_that_cannot_take_more(seat)
            if helpless:
                pairs += lifecycle.claim(
                    lease,
                    seat.host,
                    limit=room - len(pairs),
                    worker=self._worker,
                    only=self._only,
                    from_hosts=helpless,
                )
        return pairs

    def _hosts_that_cannot_take_more(self, taker: HostSeat) -> list[int]:
        helpless: list[int] = [
            seat.host.pk
            for seat in self._seats
            if seat.agent is not None and (self._slots(seat) <= 0 or not seat.is_sound)
        ]
        down = [ExecutorHost.Health.UNREACHABLE, ExecutorHost.Health.MISMATCHED]
        # What waits at one whose weight became 0 was placed there before; it runs it where nobody else can.
        left_alone = Q(is_active=False) | Q(weight=0) | Q(health__in=down)
        helpless += ExecutorHost.objects.filter(left_alone).values_list("pk", flat=True)
        return [pk for pk in dict.fromkeys(helpless) if pk != taker.host.pk]


def unclaimable(open_jobs: Iterable[tuple[int, str]], seats: Seats) -> list[str] | None:
    """Why none of these (host id, host name) can go on; None while one of them can."""
    reasons = []
    for pk, name in open_jobs:
        seat = seats.get(pk)
        if seat is None:
            reasons.append(f"{name}: the host is not active")
        elif seat.problem and not seat.reachable:
            reasons.append(f"{name}: {seat.problem}")
        else:
            return None
    return reasons
