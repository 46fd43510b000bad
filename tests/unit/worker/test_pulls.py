"""Runs that wait for an image."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from container_manager.core.errors import CreateFailed, ImagePullFailed
from container_manager.core.observation import ImageFacts
from container_manager.worker.crew import Crew
from container_manager.worker.pulls import End, Pulls
from container_manager.worker.run import Run
from tests.unit.worker.test_sampler import a_run

PATIENCE_SECONDS = 20.0


class Registry:
    """Gives an image when the test says so; `end` is raised where it is an error."""

    def __init__(self) -> None:
        self.end: ImageFacts | Exception = ImageFacts(image_id="sha256:1", pulled=True)
        self.asked: queue.Queue[str] = queue.Queue()
        self.go_on = threading.Event()

    def __call__(self, image: str, progress: Callable[[str], None]) -> ImageFacts:
        self.asked.put(image)
        assert self.go_on.wait(PATIENCE_SECONDS)
        progress("on its way")
        if isinstance(self.end, Exception):
            raise self.end
        return self.end


class Queue:
    """The runs whose wait is over, and how."""

    def __init__(self) -> None:
        self._ended: queue.Queue[tuple[Run, End]] = queue.Queue()

    def then(self, run: Run, end: End) -> None:
        self._ended.put((run, end))

    def next(self) -> tuple[Run, End]:
        return self._ended.get(timeout=PATIENCE_SECONDS)


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def pulls(registry: Registry) -> Iterator[Pulls]:
    crew = Crew("host", launch_threads=1)
    yield Pulls(crew, registry)
    registry.go_on.set()
    crew.close(time.monotonic())


def wait_all(pulls: Pulls, registry: Registry, *runs: Run) -> Queue:
    ended = Queue()
    for run in runs:
        pulls.join(run, ended.then)
    assert registry.asked.get(timeout=PATIENCE_SECONDS) == "image:1"
    return ended


def test_all_that_wait_share_one_pull_and_one_of_them_has_pulled(pulls: Pulls, registry: Registry) -> None:
    runs = [a_run(name) for name in "abc"]
    ended = wait_all(pulls, registry, *runs)
    registry.go_on.set()
    ends = [ended.next() for _ in runs]
    assert [run.key for run, _ in ends] == [run.key for run in runs]
    assert [isinstance(end, ImageFacts) and end.pulled for _, end in ends] == [True, False, False]
    assert registry.asked.empty()
    assert "on its way" in runs[0].engine_log_text()
    assert pulls.runs() == []


def test_who_leaves_is_not_called_and_the_others_are(pulls: Pulls, registry: Registry) -> None:
    gone, left = a_run("gone"), a_run("left")
    ended = wait_all(pulls, registry, gone, left)
    assert pulls.leave(gone)
    assert not pulls.leave(gone), "only one may answer for it"
    assert [run.key for run in pulls.runs()] == [left.key]
    registry.go_on.set()
    run, end = ended.next()
    assert run is left
    assert isinstance(end, ImageFacts)
    assert end.pulled
    assert not pulls.leave(left)


def test_a_pull_without_anybody_goes_on_for_who_comes_next(pulls: Pulls, registry: Registry) -> None:
    gone, late = a_run("gone"), a_run("late")
    ended = wait_all(pulls, registry, gone)
    assert pulls.leave(gone)
    pulls.join(late, ended.then)
    registry.go_on.set()
    assert ended.next()[0] is late
    assert registry.asked.empty()


@pytest.mark.parametrize(
    ("failure", "wanted"),
    [(ImagePullFailed("refused"), ImagePullFailed), (ValueError("a bug"), CreateFailed)],
)
def test_all_that_wait_share_a_failure(
    pulls: Pulls, registry: Registry, failure: Exception, wanted: type[Exception]
) -> None:
    registry.end = failure
    ended = wait_all(pulls, registry, a_run("a"), a_run("b"))
    registry.go_on.set()
    ends = [ended.next()[1] for _ in range(2)]
    assert all(isinstance(end, wanted) for end in ends)
