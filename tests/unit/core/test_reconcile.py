"""What becomes of a container that no worker is busy with."""

from __future__ import annotations

import pytest

from container_manager.core.reconcile import JobRecord, Verdict, judge
from container_manager.core.states import FINAL, Status

GRACE, RETENTION = 60.0, 3600.0


def verdict(
    record: JobRecord | None, *, attempt: int = 1, age: float | None = 1000, retention: float = RETENTION
) -> Verdict:
    return judge(
        attempt=attempt, age_seconds=age, record=record, retention_seconds=retention, grace_seconds=GRACE
    )


def record(status: Status, *, attempt: int = 1, ago: float | None = None) -> JobRecord:
    return JobRecord(status=status, attempt=attempt, finished_seconds_ago=ago)


@pytest.mark.parametrize("age", [None, 0.0, -5.0, GRACE - 0.01])
@pytest.mark.parametrize("known", [None, record(Status.RUNNING, attempt=9)])
def test_a_young_container_and_one_of_unknown_age_stay(age: float | None, known: JobRecord | None) -> None:
    assert verdict(known, age=age) is Verdict.KEEP


def test_an_old_container_of_an_unknown_job_goes() -> None:
    assert verdict(None, age=GRACE) is Verdict.REMOVE


@pytest.mark.parametrize("status", sorted(set(Status) - FINAL))
@pytest.mark.parametrize(("attempt", "expected"), [(1, "remove"), (2, "keep"), (3, "keep")])
def test_of_an_unfinished_job_only_earlier_attempts_go(status: Status, attempt: int, expected: str) -> None:
    assert verdict(record(status, attempt=2), attempt=attempt) == expected


@pytest.mark.parametrize("status", sorted(FINAL))
@pytest.mark.parametrize(
    ("ago", "expected"), [(None, "keep"), (0.0, "keep"), (RETENTION - 1, "keep"), (RETENTION, "remove")]
)
def test_of_a_finished_job_it_goes_after_the_retention(
    status: Status, ago: float | None, expected: str
) -> None:
    assert verdict(record(status, ago=ago)) == expected


@pytest.mark.parametrize("age", [None, 0.0, 1000.0])
def test_without_retention_it_goes_at_once_however_young(age: float | None) -> None:
    assert verdict(record(Status.FAILED, ago=0.0), age=age, retention=0) is Verdict.REMOVE
