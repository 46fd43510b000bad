"""What to do with a container of ours that no worker is busy with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from container_manager.core.states import ACTIVE, FINAL, Status


class Verdict(StrEnum):
    """What becomes of the container."""

    KEEP = "keep"
    ADOPT = "adopt"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A container with our installation's label, as its engine lists it."""

    is_ours: bool  # by its deterministic name or its recorded id: labels alone can be inherited from an image
    attempt: int
    is_alive: bool
    age_seconds: float | None  # by the engine's clock


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """What the database says about the job that a container's labels name."""

    status: Status
    attempt: int
    finished_seconds_ago: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict, and the reason in words."""

    verdict: Verdict
    why: str


def judge(
    found: Found, record: JobRecord | None, *, retention_seconds: float, grace_seconds: float
) -> Judgement:
    """Say what becomes of a container. `record` is None where the database does not know the job.

    That a job has ended is sure knowledge, and only its retention counts; a container that runs all the same
    goes at once. Else a young container may be ahead of the database's answer and is left alone for
    `grace_seconds`; unknown age counts as young.
    """
    if not found.is_ours:
        return _keep("it carries our labels and is none of ours, as if made from an image of one of ours")
    if record is not None and found.attempt == record.attempt:
        if record.status in FINAL:
            return _of_an_ended_job(found, record, retention_seconds)
        if record.status in ACTIVE:
            return Judgement(verdict=Verdict.ADOPT, why="its job is active and in no worker's hands")
    if record is not None and found.attempt > record.attempt:
        return _keep("its attempt is ahead of the database: was an older backup restored?")
    if found.age_seconds is None or found.age_seconds < grace_seconds:
        return _keep("it is young, and the database may know it a moment later")
    if record is None:
        return _remove("the database does not know its job")
    if found.attempt < record.attempt:
        return _remove(f"it belongs to attempt {found.attempt}; the job is at attempt {record.attempt}")
    return _remove("its attempt is over and the job waits for the next one")


def _of_an_ended_job(found: Found, record: JobRecord, retention_seconds: float) -> Judgement:
    if found.is_alive:
        return _remove(f"it runs although its job is {record.status}")
    ended = record.finished_seconds_ago
    if ended is not None and ended >= retention_seconds:
        return _remove(f"its job is {record.status} and its time is over")
    return _keep(f"its job is {record.status}; it stays for its retention time")


def _keep(why: str) -> Judgement:
    return Judgement(verdict=Verdict.KEEP, why=why)


def _remove(why: str) -> Judgement:
    return Judgement(verdict=Verdict.REMOVE, why=why)
