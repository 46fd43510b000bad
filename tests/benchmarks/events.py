"""What the engine says happened, with its own clock: the witness that takes no side."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import NamedTuple, Self

import docker


class Event(NamedTuple):
    """One event of one container; `at` in seconds since the epoch, by the engine."""

    action: str
    container: str  # the container's name
    at: float


class Witness:
    """Collects the engine's container events while its context is open."""

    def __init__(self, url: str) -> None:
        self._client = docker.APIClient(base_url=url, version="1.41", timeout=3600)
        self._client.trust_env = False
        self._seen: list[Event] = []
        self._changed = threading.Condition()
        self._stream = self._client.events(
            decode=True, filters={"type": "container", "event": ["start", "die", "destroy"]}
        )
        self._thread = threading.Thread(target=self._listen, name="witness", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._stream.close()
        self._thread.join(5)
        self._client.close()

    def wait_for(self, action: str, containers: set[str], seconds: float) -> dict[str, float]:
        """When `action` happened to each of the named containers. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                times = {e.container: e.at for e in self._seen if e.action == action}
                if containers <= times.keys():
                    return {name: times[name] for name in containers}
                left = deadline - time.monotonic()
                if left <= 0 or not self._thread.is_alive():
                    missing = len(containers - times.keys())
                    raise TimeoutError(f"{missing} of {len(containers)} containers saw no {action!r} event")
                self._changed.wait(left)

    def _listen(self) -> None:
        for event in self._stream:
            actor = event["Actor"]["Attributes"].get("name", "")
            with self._changed:
                self._seen.append(Event(event["Action"], actor, event["timeNano"] / 1e9))
                self._changed.notify_all()
