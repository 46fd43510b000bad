"""The breaker of a host: closed, open for longer and longer, then one try at a time."""

from __future__ import annotations

from container_manager.core.breaker import MAX_PAUSE_SECONDS, Breaker


def test_a_host_that_works_takes_any_number() -> None:
    assert Breaker().allowance(0, in_flight=99) is None
    assert Breaker().failures == 0


def test_a_failure_keeps_everything_away_for_a_while_and_then_lets_one_try() -> None:
    breaker = Breaker()
    breaker.failed(100.0)
    assert breaker.allowance(100.5, in_flight=0) == 0
    assert breaker.open_until - 100.5 == 0.5
    assert breaker.allowance(101.0, in_flight=0) == 1
    assert breaker.allowance(101.0, in_flight=1) == 0
    breaker.succeeded()
    assert breaker.allowance(101.0, in_flight=0) is None


def test_what_was_in_flight_at_the_first_failure_counts_once() -> None:
    breaker = Breaker()
    for _ in range(8):
        breaker.failed(100.0)
    assert breaker.failures == 1
    assert breaker.open_until - 100.0 == 1.0


def test_pauses_double_up_to_a_ceiling() -> None:
    breaker, now, pauses = Breaker(), 0.0, []
    for _ in range(8):
        breaker.failed(now)
        pauses.append(breaker.open_until - now)
        now = breaker.open_until
    assert pauses == [1, 2, 4, 8, 16, MAX_PAUSE_SECONDS, MAX_PAUSE_SECONDS, MAX_PAUSE_SECONDS]
