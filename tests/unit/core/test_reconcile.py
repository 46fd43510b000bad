"""What becomes of a container that no worker is busy with."""

from __future__ import annotations

import pytest

from container_manager.core.reconcile import Found, JobRecord, Verdict, judge
from container_manager.core.states import ACTIVE, FINAL, Status

GRACE, RETENTION = 60.0, 3600.0


def verdict(
    record: JobRecord | None,
    *,
    attempt: int = 1,
    age: float | None = 1000,
    retention: float = RETENTION,
    alive: bool = False,
    ours: bool = True,
) -> Verdict:
    found = Found(is_ours=ours, attempt=attempt, is_alive=alive, age_seconds=age)
    judgement = judge(found, record, retention_seconds=retention, grace_seconds=GRACE)
    assert judgement.why
    return judgement.verdict


def record(status: Status, *, attempt: int = 1, ago: float | None = None) -> JobRecord:
    return JobRecord(status=status, attempt=attempt, finished_seconds_ago=ago)


@pytest.mark.parametrize("age", [None, 0.0, -5.0, GRACE - 0.01])
@pytest.mark.parametrize("known", [None, record(Status.RUNNING, attempt=9), record(Status.PENDING)])
def test_a_young_container_and_one_of_unknown_age_stay(age: float | None, known: JobRecord | None) -> None:
    assert verdict(known, age=age) is Verdict.KEEP


@pytest.mark.parametrize("alive", [False, True])
def test_an_old_container_of_an_unknown_job_goes(alive: bool) -> None:
    assert verdict(None, age=GRACE, alive=alive) is Verdict.REMOVE


@pytest.mark.parametrize(
    "known",
    [None, record(Status.COMPLETED, ago=9e9), record(Status.RUNNING, attempt=5), record(Status.RUNNING)],
)
@pytest.mark.parametrize("alive", [False, True])
def test_what_only_carries_our_labels_is_left_alone(known: JobRecord | None, alive: bool) -> None:
    assert verdict(known, ours=False, alive=alive) is Verdict.KEEP


@pytest.mark.parametrize("status", sorted(set(Status) - FINAL))
def test_of_an_unfinished_job_earlier_attempts_go_and_later_ones_stay(status: Status) -> None:
    assert verdict(record(status, attempt=2), attempt=1, alive=True) is Verdict.REMOVE
    assert verdict(record(status, attempt=2), attempt=3, alive=True) is Verdict.KEEP


@pytest.mark.parametrize("status", sorted(ACTIVE))
@pytest.mark.parametrize("age", [None, 0.0, 1000.0])
@pytest.mark.parametrize("alive", [False, True])
def test_the_attempt_of_an_active_job_is_adopted(status: Status, age: float | None, alive: bool) -> None:
    assert verdict(record(status), age=age, alive=alive) is Verdict.ADOPT


def test_the_ended_attempt_of_a_job_that_waits_for_the_next_one_goes() -> None:
    assert verdict(record(Status.PENDING)) is Verdict.REMOVE


@pytest.mark.parametrize("status", sorted(FINAL))
@pytest.mark.parametrize(
    ("ago", "expected"), [(None, "keep"), (0.0, "keep"), (RETENTION - 1, "keep"), (RETENTION, "remove")]
)
def test_of_a_finished_job_it_goes_after_the_retention(
    status: Status, ago: float | None, expected: str
) -> None:
    assert verdict(record(status, ago=ago)) == expected


@pytest.mark.parametrize("status", sorted(FINAL))
def test_what_runs_although_its_job_has_ended_goes_at_once(status: Status) -> None:
    assert verdict(record(status, ago=0.0), alive=True, age=0.0) is Verdict.REMOVE


@pytest.mark.parametrize("age", [None, 0.0, 1000.0])
def test_without_retention_it_goes_at_once_however_young(age: float | None) -> None:
    assert verdict(record(Status.FAILED, ago=0.0), age=age, retention=0) is Verdict.REMOVE
