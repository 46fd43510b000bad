"""When to leave a host alone that fails what is asked of it, and when to try it again."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0


@dataclass(slots=True)
class Breaker:
    """Closed: everything passes. A failure opens it for a while that doubles with each further one.

    Then it lets one try through at a time, until one succeeds. Times are of one monotonic clock, handed in.
    """

    failures: int = 0
    open_until: float = 0.0

    def failed(self, now: float) -> None:
        """Something that was asked of the host failed by the host's fault.

        Failures that come while it is open are the echo of what was in flight, and count once.
        """
        if now < self.open_until:
            return
        pause = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(self.failures, 10))
        self.failures += 1
        self.open_until = now + pause

    def succeeded(self) -> None:
        """The host did what it was asked."""
        self.failures, self.open_until = 0, 0.0

    def allowance(self, now: float, *, in_flight: int) -> int | None:
        """How many more tries may begin: None for any number, 0 for none, 1 for the one that will tell."""
        if self.failures == 0:
            return None
        return 0 if now < self.open_until or in_flight else 1
