"""The threads that make the calls to one host."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from container_manager.core.errors import HostFault
from container_manager.worker.crew import Crew

PATIENCE_SECONDS = 20.0


@pytest.fixture
def crew() -> Iterator[Crew]:
    one = Crew("gpu", launch_threads=2)
    yield one
    one.close(time.monotonic())


class Hanging:
    """A call that hangs until the test lets it go on."""

    def __init__(self) -> None:
        self.began, self.go_on, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None

    def __call__(self) -> None:
        self.thread = threading.current_thread()
        self.began.set()
        self.go_on.wait(PATIENCE_SECONDS)
        self.ended.set()

    __name__ = "hanging"


def hung(crew: Crew) -> Hanging:
    call = Hanging()
    crew.work(call)
    assert call.began.wait(PATIENCE_SECONDS)
    return call


def test_no_more_threads_are_made_than_there_is_room_for(crew: Crew) -> None:
    calls = [Hanging() for _ in range(4)]
    for call in calls:
        crew.launch(call)
    for call in calls[:2]:
        assert call.began.wait(PATIENCE_SECONDS)
    assert not any(call.began.is_set() for call in calls[2:])
    for call in calls:
        call.go_on.set()
    for call in calls:
        assert call.ended.wait(PATIENCE_SECONDS)
    assert len({call.thread for call in calls}) == 2


def test_a_thread_that_is_free_is_used_again(crew: Crew) -> None:
    seen: queue.Queue[threading.Thread] = queue.Queue()
    threads = set()
    for _ in range(3):
        crew.compare(lambda: seen.put(threading.current_thread()))
        threads.add(seen.get(timeout=PATIENCE_SECONDS))
    assert len(threads) == 1


def test_calls_are_made_in_the_order_in_which_they_came(crew: Crew) -> None:
    made: queue.Queue[int] = queue.Queue()
    for number in range(50):
        crew.compare(partial(_put, made, number))
    assert [made.get(timeout=PATIENCE_SECONDS) for _ in range(50)] == list(range(50))


def test_a_call_that_fails_is_told_and_does_not_end_its_thread(
    crew: Crew, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    made = threading.Event()
    with caplog.at_level(logging.ERROR, logger="container_manager.worker"):
        crew.compare(fail)
        crew.compare(made.set)
        assert made.wait(PATIENCE_SECONDS)
    assert "a bug" in caplog.text


def test_the_interpreter_waits_for_none_of_them(crew: Crew) -> None:
    call = hung(crew)
    assert call.thread is not None
    assert call.thread.daemon
    call.go_on.set()


def test_at_the_end_calls_in_flight_get_the_patience_and_queued_ends_are_taken_in(crew: Crew) -> None:
    launches, ends = [Hanging() for _ in range(3)], [Hanging() for _ in range(20)]
    for launch in launches:
        crew.launch(launch)
    for end in ends:
        crew.work(end)
    assert launches[0].began.wait(PATIENCE_SECONDS)
    assert launches[1].began.wait(PATIENCE_SECONDS)
    for call in (*launches, *ends):
        threading.Timer(0.2, call.go_on.set).start()
    crew.close(time.monotonic() + PATIENCE_SECONDS)
    assert all(call.ended.is_set() for call in (*launches[:2], *ends))
    assert not launches[2].began.is_set(), "what did not begin is the next worker's"


def test_what_did_not_begin_within_the_patience_never_does(crew: Crew) -> None:
    first, behind = Hanging(), threading.Event()
    crew.compare(first)
    assert first.began.wait(PATIENCE_SECONDS)
    crew.compare(behind.set)
    began = time.monotonic()
    crew.close(began + 0.1)
    assert time.monotonic() - began < PATIENCE_SECONDS / 2
    first.go_on.set()
    assert first.thread is not None
    first.thread.join(PATIENCE_SECONDS)
    assert not behind.is_set()


def test_a_host_does_not_wait_for_another_one_whose_name_begins_alike(crew: Crew) -> None:
    other = Crew("gpu-worker1", launch_threads=1)
    call = hung(other)
    began = time.monotonic()
    crew.close(began + PATIENCE_SECONDS)
    assert time.monotonic() - began < PATIENCE_SECONDS / 2
    call.go_on.set()
    other.close(time.monotonic() + PATIENCE_SECONDS)


def _put(made: queue.Queue[int], number: int) -> None:
    made.put(number)


def no_more_threads(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_where_the_machine_gives_no_more_threads_those_there_are_make_the_calls(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hung(crew)
    monkeypatch.setattr(threading.Thread, "start", no_more_threads)
    second = Hanging()
    crew.work(second)
    first.go_on.set()
    assert second.began.wait(PATIENCE_SECONDS)
    second.go_on.set()


def test_without_any_thread_a_call_is_refused_and_not_forgotten(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = Hanging()
    with monkeypatch.context() as without:
        without.setattr(threading.Thread, "start", no_more_threads)
        with pytest.raises(HostFault, match="cannot start a thread"):
            crew.work(refused)
    second = hung(crew)
    second.go_on.set()
    assert second.ended.wait(PATIENCE_SECONDS)
    assert not refused.began.is_set()
