"""Images on their way to one host: one pull for each, however many runs wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from container_manager.core.errors import CreateFailed, ExecutorError
from container_manager.core.observation import ImageFacts
from container_manager.worker.crew import Crew
from container_manager.worker.messages import Key
from container_manager.worker.run import Run

#: How a pull came to its end.
End = ImageFacts | ExecutorError
GoOn = Callable[[Run, End], None]
Fetch = Callable[[str, Callable[[str], None]], ImageFacts]


class Pulls:
    """Runs that wait for their image. They hold no thread: a pull may take an hour, or hang.

    Whoever takes a run out, by the end of its pull or by `leave`, is the one that goes on with it.
    """

    def __init__(self, crew: Crew, fetch: Fetch) -> None:
        """`fetch` gets an image and who hears of its progress; raises ExecutorError."""
        self._crew = crew
        self._fetch = fetch
        self._lock = threading.Lock()
        self._waiting: dict[str, dict[Key, tuple[Run, GoOn]]] = {}  # by image, in the order of arrival

    def join(self, run: Run, then: GoOn) -> None:
        """Wait for the run's image, and have it pulled if that is not under way; `then` is a launch."""
        image = run.spec.image
        with self._lock:
            if image not in self._waiting:
                self._crew.pull(self._pull, image)
            self._waiting.setdefault(image, {})[run.key] = run, then

    def leave(self, run: Run) -> bool:
        """Wait no longer; False where it does not wait. The pull goes on, for those who come next."""
        with self._lock:
            return self._waiting.get(run.spec.image, {}).pop(run.key, None) is not None

    def runs(self) -> list[Run]:
        """All that wait."""
        with self._lock:
            return [run for waiting in self._waiting.values() for run, _ in waiting.values()]

    def _pull(self, image: str) -> None:
        end: End
        try:
            end = self._fetch(image, partial(self._tell, image))
        except ExecutorError as error:
            end = error
        except BaseException as mistake:
            # A bug in a driver must not leave jobs "launching" for ever.
            self._end(image, CreateFailed("the executor failed in a way it should not", detail=repr(mistake)))
            raise
        self._end(image, end)

    def _end(self, image: str, end: End) -> None:
        with self._lock:
            waiting = self._waiting.pop(image)
        for run, then in waiting.values():
            self._crew.launch(then, run, end)
            if isinstance(end, ImageFacts):
                end = replace(end, pulled=False)  # once, for the first of them

    def _tell(self, image: str, line: str) -> None:
        """Put what the registry says into the record of the one that waits longest."""
        with self._lock:
            first = next(iter(self._waiting[image].values()), None)
        if first is not None:
            first[0].note(f"pull: {line}")
