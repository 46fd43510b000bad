"""Retry policies: how they are read, and what they decide."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_manager.core.errors import InvalidJob
from container_manager.core.outcome import ExitReason, Outcome
from container_manager.core.retry import (
    NEVER_RETRIED,
    RETRIED_UNNAMED,
    Action,
    Again,
    RetryPolicy,
    Rule,
    decide_retry,
    parse_retry,
)
from container_manager.core.states import Status

THREE = RetryPolicy(attempts=3, backoff_seconds=10, jitter=0)


def ended(reason: ExitReason = ExitReason.APPLICATION_ERROR, code: int | None = 1) -> Outcome:
    status = {
        ExitReason.SUCCESS: Status.COMPLETED,
        ExitReason.CANCELLED: Status.CANCELLED,
        ExitReason.TIMEOUT: Status.TIMEOUT,
        ExitReason.DEADLINE_EXCEEDED: Status.TIMEOUT,
    }.get(reason, Status.FAILED)
    return Outcome(status=status, reason=reason, exit_code=code, message="")


def decide(policy: RetryPolicy, outcome: Outcome, **facts: Any) -> Again | None:
    known = {"failures": 0, "attempts": 1, "ceiling": 100, "luck": 0.5, **facts}
    return decide_retry(policy, outcome, **known)


def test_nothing_is_tried_again_unless_asked_for() -> None:
    assert all(decide(RetryPolicy(), ended(reason)) is None for reason in ExitReason)
    assert parse_retry({}) == parse_retry(None) == parse_retry(1) == RetryPolicy()
    assert RetryPolicy().as_json() == {}


@pytest.mark.parametrize("reason", list(ExitReason))
def test_what_never_ran_is_tried_again_only_by_name(reason: ExitReason) -> None:
    assert (decide(THREE, ended(reason)) is not None) is (reason in RETRIED_UNNAMED)
    if reason in NEVER_RETRIED:
        with pytest.raises(InvalidJob, match="never tried again"):
            parse_retry({"attempts": 3, "rules": [{"action": "retry", "reasons": [reason]}]})
        return
    named = parse_retry({"attempts": 3, "rules": [{"action": "retry", "reasons": [reason.value]}]})
    assert decide(named, ended(reason)) is not None


def test_waits_grow_to_the_ceiling() -> None:
    policy = RetryPolicy(attempts=9, backoff_seconds=10, factor=3, max_backoff_seconds=100, jitter=0)
    waits = [decide(policy, ended(), failures=n, attempts=n + 1).wait_seconds for n in range(4)]  # type: ignore[union-attr]
    assert waits == [10, 30, 90, 100]


def test_a_first_wait_beyond_the_usual_ceiling_lifts_it() -> None:
    assert parse_retry({"attempts": 2, "backoff_seconds": 3600}).max_backoff_seconds == 3600


@pytest.mark.parametrize("factor", [1, 10, 100])
def test_a_job_that_failed_very_often_waits_as_long_as_the_ceiling_says(factor: float) -> None:
    policy = RetryPolicy(attempts=1000, backoff_seconds=10, factor=factor, jitter=0, max_backoff_seconds=60)
    assert {policy.backoff(failures, luck=0.5) for failures in (310, 999)} == {10 if factor == 1 else 60}


def test_chance_spreads_jobs_at_the_ceiling_as_well() -> None:
    policy = RetryPolicy(attempts=1000, backoff_seconds=10, jitter=0.2, max_backoff_seconds=100)
    assert policy.backoff(50, luck=0) == 80


@given(
    luck=st.floats(0, 1),
    failures=st.integers(0, 2000),
    jitter=st.floats(0, 1),
    base=st.just(0.0) | st.floats(0.001, 600),
    factor=st.floats(1, 100),
)
def test_no_wait_is_negative_or_above_its_ceiling(
    luck: float, failures: int, jitter: float, base: float, factor: float
) -> None:
    policy = RetryPolicy(
        attempts=1000, backoff_seconds=base, factor=factor, jitter=jitter, max_backoff_seconds=600
    )
    wait = policy.backoff(failures, luck=luck)
    assert 0 <= wait <= 600
    try:
        grown = min(600, base * factor ** max(0, failures - 1))
    except OverflowError:
        grown = min(600, base * 1e6)
    assert wait <= min(600, grown * (1 + jitter) * 1.001)


def test_the_attempts_are_counted_the_first_one_included() -> None:
    assert decide(THREE, ended(), failures=1, attempts=2) is not None
    assert decide(THREE, ended(), failures=2, attempts=3) is None


def test_an_ignored_attempt_does_not_count_yet_there_is_an_end() -> None:
    policy = parse_retry({"rules": [{"action": "ignore", "reasons": ["host_crashed"]}]})
    again = decide(policy, ended(ExitReason.HOST_CRASHED), failures=0, attempts=50)
    assert again is not None
    assert not again.counted
    assert decide(policy, ended(ExitReason.HOST_CRASHED), attempts=100) is None
    assert decide(policy, ended(ExitReason.APPLICATION_ERROR)) is None


def test_the_first_rule_that_matches_decides() -> None:
    policy = parse_retry(
        {
            "attempts": 3,
            "rules": [
                {"action": "fail", "reasons": ["application_error"], "exit_codes": ["64-78", 3]},
                {"action": "ignore", "exit_codes": [75]},
                {"action": "retry", "reasons": ["image_pull_failed"]},
            ],
        }
    )
    assert decide(policy, ended(code=64)) is None
    assert decide(policy, ended(code=78)) is None
    assert decide(policy, ended(code=3)) is None
    assert decide(policy, ended(code=79)) is not None
    assert decide(policy, ended(ExitReason.TIMEOUT, 75)).counted is False  # type: ignore[union-attr]
    assert decide(policy, ended(ExitReason.TIMEOUT, None)).counted is True  # type: ignore[union-attr]
    assert decide(policy, ended(ExitReason.IMAGE_PULL_FAILED, None)) is not None
    assert decide(policy, ended(ExitReason.START_ERROR, None)) is None


def test_no_attempt_follows_that_would_begin_after_the_deadline() -> None:
    again = decide(THREE, ended())
    assert again is not None
    assert again.begins_before(None)
    assert again.begins_before(10.1)
    assert not again.begins_before(10.0)
    assert not again.begins_before(-1.0)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ("three", "a number of attempts or a dict"),
        (True, "a number of attempts or a dict"),
        (0, "attempts: 0 is not a whole number from 1 to 1000"),
        ({"attempts": 2.5}, "attempts: 2.5"),
        ({"attempts": True}, "attempts: True"),
        ({"tries": 3}, "'tries' is not known; there are attempts"),
        ({"backoff_seconds": -1}, "backoff_seconds: -1"),
        ({"backoff_seconds": float("nan")}, "backoff_seconds: nan"),
        ({"jitter": 1.1}, "jitter: 1.1"),
        ({"backoff_seconds": 9, "max_backoff_seconds": 8}, "max_backoff_seconds: 8 is less"),
        ({"rules": "fail"}, "rules: it is a str"),
        (
            {"rules": [{"action": "again", "reasons": ["timeout"]}]},
            "action is 'again'; use fail",
        ),
        ({"rules": [{"action": "fail"}]}, "rule 1: it matches nothing"),
        ({"rules": [{"action": "fail", "reasons": ["oom"]}]}, "'oom' is no exit reason"),
        ({"rules": [{"action": "fail", "reasons": "timeout"}]}, "reasons is a str; give a list"),
        ({"rules": [{"action": "fail", "exit_codes": [0]}]}, "0 is no exit code"),
        ({"rules": [{"action": "fail", "exit_codes": ["9-3"]}]}, "'9-3' is no exit code"),
        ({"rules": [{"action": "fail", "exit_codes": ["3-"]}]}, "'3-' is no exit code"),
        ({"rules": [{"action": "fail", "code": 1}]}, "rule 1: give a dict with action"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_with_the_remedy(given_: object, words: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        parse_retry(given_)
    assert caught.value.field == "retry"
    assert words in str(caught.value)


_RULES = st.builds(
    Rule,
    action=st.sampled_from(Action),
    reasons=st.frozensets(st.sampled_from(sorted(set(ExitReason) - NEVER_RETRIED)), min_size=1),
    exit_codes=st.lists(
        st.tuples(st.integers(1, 255), st.integers(1, 255)).map(lambda pair: (min(pair), max(pair)))
    ).map(tuple),
)


@given(
    st.builds(
        RetryPolicy,
        attempts=st.integers(1, 1000),
        backoff_seconds=st.floats(0, 600),
        factor=st.floats(1, 100),
        max_backoff_seconds=st.floats(600, 6000),
        jitter=st.floats(0, 1),
        rules=st.lists(_RULES, max_size=3).map(tuple),
    )
)
def test_what_is_stored_reads_back_as_the_same_policy(policy: RetryPolicy) -> None:
    assert parse_retry(policy.as_json()) == policy
    assert parse_retry(policy) == policy
