"""What to do with a container of ours that no worker is busy with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from container_manager.core.states import FINAL, Status


class Verdict(StrEnum):
    """What becomes of the container."""

    KEEP = "keep"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """What the database says about the job that a container's labels name."""

    status: Status
    attempt: int
    finished_seconds_ago: float | None


def judge(
    *,
    attempt: int,
    age_seconds: float | None,
    record: JobRecord | None,
    retention_seconds: float,
    grace_seconds: float,
) -> Verdict:
    """Say whether a container goes. `record` is None where the database does not know the job.

    That a job has ended is sure knowledge, and only its retention counts. Else a young container may be
    ahead of the database's answer and is left alone for `grace_seconds`; unknown age counts as young.
    """
    if record is not None and record.status in FINAL and attempt == record.attempt:
        ended = record.finished_seconds_ago
        return Verdict.REMOVE if ended is not None and ended >= retention_seconds else Verdict.KEEP
    if age_seconds is None or age_seconds < grace_seconds:
        return Verdict.KEEP
    superseded = record is not None and attempt < record.attempt
    return Verdict.REMOVE if record is None or superseded else Verdict.KEEP
