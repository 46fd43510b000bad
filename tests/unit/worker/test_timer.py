"""The thread that calls things later."""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial

import pytest

from container_manager.worker.timer import SWEEP_ENTRIES, Timer


@pytest.fixture
def timer() -> Iterator[Timer]:
    one = Timer("test-timer")
    yield one
    one.close()


def test_calls_come_by_their_time_and_not_by_their_order(timer: Timer) -> None:
    called: queue.Queue[str] = queue.Queue()
    now = time.monotonic()
    for name, delay in (("c", 0.15), ("a", 0.05), ("b", 0.1)):
        timer.at(now + delay, partial(called.put, name))
    assert [called.get(timeout=10) for _ in range(3)] == ["a", "b", "c"]
    assert time.monotonic() - now >= 0.15, "never too early"


def test_of_one_moment_the_first_asked_is_the_first_called(timer: Timer) -> None:
    called: queue.Queue[int] = queue.Queue()
    when = time.monotonic() + 0.05
    for number in range(50):
        timer.at(when, partial(called.put, number))
    assert [called.get(timeout=10) for _ in range(50)] == list(range(50))


def test_a_time_that_has_passed_is_now(timer: Timer) -> None:
    called = threading.Event()
    timer.at(time.monotonic() - 5, called.set)
    assert called.wait(10)


def test_an_earlier_call_does_not_wait_for_a_later_one(timer: Timer) -> None:
    called = threading.Event()
    timer.after(3600, lambda: None)
    timer.after(0, called.set)
    assert called.wait(10)


def test_a_call_may_ask_for_another(timer: Timer) -> None:
    called = threading.Event()
    timer.after(0, lambda: timer.after(0, called.set))
    assert called.wait(10)


def test_a_call_that_fails_is_told_and_stops_nothing(timer: Timer, caplog: pytest.LogCaptureFixture) -> None:
    called = threading.Event()

    def fail() -> None:
        raise RuntimeError("a bug")

    with caplog.at_level(logging.ERROR, logger="container_manager.worker"):
        timer.after(0, fail)
        timer.after(0.01, called.set)
        assert called.wait(10)
    assert "a bug" in caplog.text


def test_closing_forgets_what_is_to_come_and_ends_the_thread(timer: Timer) -> None:
    called = threading.Event()
    timer.after(0.2, called.set)
    timer.close()
    timer._thread.join(10)
    assert not timer._thread.is_alive()
    timer.after(0, called.set)
    assert not called.is_set(), "nobody is there to call it"


def test_what_was_cancelled_is_not_called_and_holds_nothing() -> None:
    timer = Timer("test")
    called = threading.Event()
    holder = Holder()
    watched = weakref.ref(holder)
    appointment = timer.after(3600, lambda holder=holder: holder.call())  # type: ignore[misc]
    soon = timer.after(0.05, called.set)
    del holder
    appointment.cancel()
    assert appointment.is_cancelled
    assert watched() is None
    assert called.wait(10)
    soon.cancel()  # afterwards: no effect
    timer.close()


def test_a_timer_forgets_what_was_cancelled_however_far_ahead() -> None:
    timer = Timer("test")
    for _ in range(5 * SWEEP_ENTRIES):
        timer.after(3600, print).cancel()
    assert len(timer._heap) <= SWEEP_ENTRIES + 1
    timer.close()


class Holder:
    """Something that a call holds on to."""

    def call(self) -> None:
        raise AssertionError
