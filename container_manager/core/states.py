"""The job's states and the only moves between them."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Status(StrEnum):
    """Where a job is. Why it ended is `ExitReason`, never another status."""

    PENDING = "pending"
    LAUNCHING = "launching"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"


ACTIVE = frozenset({Status.LAUNCHING, Status.RUNNING})
FINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.TIMEOUT, Status.CANCELLED})


class Move(NamedTuple):
    """A named transition: the states it may leave and those it may reach."""

    sources: frozenset[Status]
    targets: frozenset[Status]


class Transition(StrEnum):
    """The verbs of the state machine."""

    CLAIM = "claim"
    START = "start"
    RELEASE = "release"
    FINISH = "finish"
    REJECT = "reject"
    CANCEL = "cancel"
    EXPIRE = "expire"
    RETRY = "retry"


MOVES: dict[Transition, Move] = {
    Transition.CLAIM: Move(frozenset({Status.PENDING}), frozenset({Status.LAUNCHING})),
    Transition.START: Move(frozenset({Status.LAUNCHING}), frozenset({Status.RUNNING})),
    # A fault of the host before the container ran: somebody may take the job again.
    Transition.RELEASE: Move(frozenset({Status.LAUNCHING}), frozenset({Status.PENDING})),
    Transition.FINISH: Move(
        frozenset({Status.RUNNING}), frozenset({Status.COMPLETED, Status.FAILED, Status.TIMEOUT})
    ),
    Transition.REJECT: Move(frozenset({Status.PENDING, Status.LAUNCHING}), frozenset({Status.FAILED})),
    Transition.CANCEL: Move(
        frozenset({Status.PENDING, Status.LAUNCHING, Status.RUNNING}), frozenset({Status.CANCELLED})
    ),
    # Pending: its total deadline passed while it waited, for a slot or for its next attempt.
    Transition.EXPIRE: Move(frozenset({Status.PENDING, Status.LAUNCHING}), frozenset({Status.TIMEOUT})),
    Transition.RETRY: Move(frozenset({Status.RUNNING, Status.LAUNCHING}), frozenset({Status.PENDING})),
}


def is_legal(transition: Transition, source: Status, target: Status) -> bool:
    """Whether `transition` leads from `source` to `target`."""
    move = MOVES[transition]
    return source in move.sources and target in move.targets
