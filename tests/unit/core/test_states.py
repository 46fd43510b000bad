"""The state machine's moves: the whole table, and what follows from it."""

from __future__ import annotations

import itertools

import pytest

from container_manager.core.states import ACTIVE, FINAL, MOVES, Status, Transition, is_legal

LEGAL = {
    (Transition.CLAIM, "pending", "launching"),
    (Transition.START, "launching", "running"),
    (Transition.RELEASE, "launching", "pending"),
    (Transition.FINISH, "running", "completed"),
    (Transition.FINISH, "running", "failed"),
    (Transition.FINISH, "running", "timeout"),
    (Transition.REJECT, "pending", "failed"),
    (Transition.REJECT, "launching", "failed"),
    (Transition.CANCEL, "pending", "cancelled"),
    (Transition.CANCEL, "launching", "cancelled"),
    (Transition.CANCEL, "running", "cancelled"),
    (Transition.EXPIRE, "pending", "timeout"),
    (Transition.EXPIRE, "launching", "timeout"),
    (Transition.RETRY, "running", "pending"),
    (Transition.RETRY, "launching", "pending"),
}


def test_these_moves_are_legal_and_no_others() -> None:
    moves = itertools.product(Transition, Status, Status)
    assert {(verb, str(a), str(b)) for verb, a, b in moves if is_legal(verb, a, b)} == LEGAL


def test_the_statuses_are_the_seven_of_the_public_field() -> None:
    assert [str(status) for status in Status] == [
        "pending",
        "launching",
        "running",
        "completed",
        "failed",
        "timeout",
        "cancelled",
    ]
    assert not FINAL & ACTIVE
    assert set(Status) == FINAL | ACTIVE | {Status.PENDING}


@pytest.mark.parametrize("status", sorted(FINAL))
def test_nothing_leaves_a_final_state(status: Status) -> None:
    assert not any(status in move.sources for move in MOVES.values())


@pytest.mark.parametrize("status", sorted(set(Status) - FINAL))
def test_a_job_can_end_from_every_other_state_and_be_cancelled_there(status: Status) -> None:
    assert is_legal(Transition.CANCEL, status, Status.CANCELLED)
    assert any(status in move.sources and move.targets <= FINAL for move in MOVES.values())


def test_only_a_claimed_job_can_run_and_only_a_run_can_succeed() -> None:
    reaches_running = [verb for verb, move in MOVES.items() if Status.RUNNING in move.targets]
    assert reaches_running == [Transition.START]
    reaches_completed = [verb for verb, move in MOVES.items() if Status.COMPLETED in move.targets]
    assert reaches_completed == [Transition.FINISH]
    assert not is_legal(Transition.FINISH, Status.LAUNCHING, Status.COMPLETED)
