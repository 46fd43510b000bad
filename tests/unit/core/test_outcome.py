"""Why a job ended: each row that was measured on a real engine, and the order in which evidence counts."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from container_manager.core.errors import JobFault
from container_manager.core.observation import ContainerState, Observation
from container_manager.core.outcome import (
    REASONS,
    ExitReason,
    Intent,
    decide,
    missed_intent,
    rejected,
)
from container_manager.core.states import FINAL, Status

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def exited(code: int | None, *, oom: bool = False, error: str = "") -> Observation:
    return Observation(
        state=ContainerState.EXITED, exit_code=code, oom_killed=oom, error=error, started_at=MOMENT
    )


def unstarted(code: int, error: str) -> Observation:
    return Observation(state=ContainerState.CREATED, exit_code=code, error=error)


GONE = Observation(state=ContainerState.NOT_FOUND)
NO_PROGRAM = 'exec: "nope": executable file not found in $PATH'

ROWS = [
    ("success", exited(0), {}, Status.COMPLETED, ExitReason.SUCCESS, 0),
    ("out of memory", exited(137, oom=True), {}, Status.FAILED, ExitReason.OUT_OF_MEMORY, 137),
    ("a child out of memory", exited(0, oom=True), {}, Status.COMPLETED, ExitReason.SUCCESS, 0),
    ("out of memory, caught", exited(3, oom=True), {}, Status.FAILED, ExitReason.OUT_OF_MEMORY, 3),
    ("kill -9 from inside", exited(137), {}, Status.FAILED, ExitReason.KILLED_EXTERNALLY, 137),
    ("kill from outside", exited(143), {}, Status.FAILED, ExitReason.KILLED_EXTERNALLY, 143),
    ("binary missing", unstarted(127, NO_PROGRAM), {}, Status.FAILED, ExitReason.COMMAND_NOT_FOUND, 127),
    (
        "not executable",
        unstarted(126, "permission denied"),
        {},
        Status.FAILED,
        ExitReason.COMMAND_NOT_EXECUTABLE,
        126,
    ),
    ("unknown user", unstarted(128, "unable to find user x"), {}, Status.FAILED, ExitReason.BAD_USER, 128),
    (
        "128 for another cause",
        unstarted(128, "no such device"),
        {},
        Status.FAILED,
        ExitReason.START_ERROR,
        128,
    ),
    ("125 of the engine", unstarted(125, "oops"), {}, Status.FAILED, ExitReason.START_ERROR, 125),
    ("no code, but an error", unstarted(0, "oops"), {}, Status.FAILED, ExitReason.START_ERROR, 0),
    ("its own 125", exited(125), {}, Status.FAILED, ExitReason.APPLICATION_ERROR, 125),
    ("its own 126", exited(126), {}, Status.FAILED, ExitReason.APPLICATION_ERROR, 126),
    ("its own 127", exited(127), {}, Status.FAILED, ExitReason.APPLICATION_ERROR, 127),
    ("its own 128", exited(128), {}, Status.FAILED, ExitReason.APPLICATION_ERROR, 128),
    ("its own 255", exited(255), {}, Status.FAILED, ExitReason.APPLICATION_ERROR, 255),
    ("its own 1", exited(1), {}, Status.FAILED, ExitReason.APPLICATION_ERROR, 1),
    (
        "host crash",
        exited(255),
        {"engine_interrupted": True},
        Status.FAILED,
        ExitReason.HOST_CRASHED,
        255,
    ),
    (
        "host crash, noted",
        exited(255, error="x"),
        {},
        Status.FAILED,
        ExitReason.HOST_CRASHED,
        255,
    ),
    (
        "the daemon stopped it by SIGTERM",
        exited(143),
        {"engine_interrupted": True},
        Status.FAILED,
        ExitReason.ENGINE_STOPPED,
        143,
    ),
    (
        "the daemon stopped it by SIGKILL",
        exited(137),
        {"engine_interrupted": True},
        Status.FAILED,
        ExitReason.ENGINE_STOPPED,
        137,
    ),
    (
        "live-restore, ended meanwhile",
        exited(3),
        {"engine_interrupted": True},
        Status.FAILED,
        ExitReason.APPLICATION_ERROR,
        3,
    ),
    (
        "live-restore, succeeded meanwhile",
        exited(0),
        {"engine_interrupted": True},
        Status.COMPLETED,
        ExitReason.SUCCESS,
        0,
    ),
    ("removed from outside", GONE, {}, Status.FAILED, ExitReason.REMOVED_EXTERNALLY, None),
    ("nobody knows", exited(None), {}, Status.FAILED, ExitReason.HOST_LOST, None),
    ("timeout", exited(143), {"intent": Intent.TIMEOUT}, Status.TIMEOUT, ExitReason.TIMEOUT, 143),
    ("timeout by force", exited(137), {"intent": Intent.TIMEOUT}, Status.TIMEOUT, ExitReason.TIMEOUT, 137),
    ("cancel", exited(143), {"intent": Intent.CANCEL}, Status.CANCELLED, ExitReason.CANCELLED, 143),
    ("cancel, then success", exited(0), {"intent": Intent.CANCEL}, Status.CANCELLED, ExitReason.CANCELLED, 0),
    ("cancel, then gone", GONE, {"intent": Intent.CANCEL}, Status.CANCELLED, ExitReason.CANCELLED, None),
    (
        "timeout, while the memory ran out",
        exited(137, oom=True),
        {"intent": Intent.TIMEOUT},
        Status.TIMEOUT,
        ExitReason.TIMEOUT,
        137,
    ),
    (
        "out of memory, while the engine was out of sight",
        exited(137, oom=True),
        {"engine_interrupted": True},
        Status.FAILED,
        ExitReason.OUT_OF_MEMORY,
        137,
    ),
]


@pytest.mark.parametrize(
    ("seen", "known", "status", "reason", "code"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_each_end_has_its_status_and_its_reason(
    seen: Observation, known: dict[str, object], status: Status, reason: ExitReason, code: int | None
) -> None:
    outcome = decide(seen, **known)  # type: ignore[arg-type]
    assert (outcome.status, outcome.reason, outcome.exit_code) == (status, reason, code)


def test_every_end_has_one_final_outcome_and_failures_say_what_to_do() -> None:
    codes = (None, 0, 1, 125, 126, 127, 128, 137, 143, 255)
    for state, code, oom, error, intent, interrupted in itertools.product(
        ContainerState, codes, (False, True), ("", "some error"), Intent, (False, True)
    ):
        seen = Observation(state=state, exit_code=code, oom_killed=oom, error=error)
        outcome = decide(seen, intent=intent, engine_interrupted=interrupted)
        assert outcome.status in FINAL
        assert outcome == decide(replace(seen), intent=intent, engine_interrupted=interrupted)
        assert (outcome.status is Status.COMPLETED) == (outcome.reason is ExitReason.SUCCESS)
        if outcome.status is Status.FAILED:
            assert outcome.message.endswith(REASONS[outcome.reason].remedy)
            assert len(outcome.message) > len(REASONS[outcome.reason].remedy) > 0


def test_messages_name_the_limits_and_what_the_engine_said() -> None:
    assert " of 7 s" in decide(exited(143), intent=Intent.TIMEOUT, timeout_seconds=7).message
    assert " of 64 MB" in decide(exited(137, oom=True), memory_limit_mb=64).message
    assert NO_PROGRAM in decide(unstarted(127, NO_PROGRAM)).message
    assert "exit code 3" in decide(exited(3)).message
    assert "SIGTERM" in decide(exited(143)).message


def test_a_success_says_nothing_unless_a_child_ran_out_of_memory() -> None:
    assert decide(exited(0)).message == ""
    assert "child process" in decide(exited(0, oom=True)).message


def test_what_never_ran_has_no_exit_code() -> None:
    outcome = rejected(ExitReason.IMAGE_NOT_FOUND, "No image 'x'.")
    assert (outcome.status, outcome.exit_code) == (Status.FAILED, None)
    assert outcome.message == f"No image 'x'. {REASONS[ExitReason.IMAGE_NOT_FOUND].remedy}"


def test_every_reason_has_a_label_and_every_driver_fault_a_reason() -> None:
    assert set(REASONS) == set(ExitReason)
    assert len({text.label for text in REASONS.values()}) == len(REASONS)
    faults = JobFault.__subclasses__()
    assert faults
    assert all(fault.reason in REASONS for fault in faults)
    assert not any(fault.retryable for fault in faults)


def test_a_container_that_ended_without_a_start_is_no_success() -> None:
    dead = Observation(state=ContainerState.EXITED, exit_code=0)
    outcome = decide(dead)
    assert (outcome.status, outcome.reason) == (Status.FAILED, ExitReason.HOST_LOST)


@pytest.mark.parametrize(
    ("cancel", "deadline", "timeout", "intent"),
    [
        (None, None, 60, Intent.NONE),
        (None, None, 10, Intent.TIMEOUT),
        (None, None, 11, Intent.NONE),
        (9, None, 60, Intent.CANCEL),
        (10, None, 60, Intent.CANCEL),
        (11, None, 60, Intent.NONE),  # asked for when it had ended already
        (None, 10, 60, Intent.DEADLINE),
        (None, 11, 60, Intent.NONE),
        (9, 9, 9, Intent.CANCEL),
        (None, 9, 9, Intent.DEADLINE),
    ],
)
def test_what_was_to_be_done_is_told_by_the_times(
    cancel: int | None, deadline: int | None, timeout: int, intent: Intent
) -> None:
    ran_ten_seconds = replace(exited(143), finished_at=MOMENT + timedelta(seconds=10))
    moments = [None if after is None else MOMENT + timedelta(seconds=after) for after in (cancel, deadline)]
    assert intent is missed_intent(
        ran_ten_seconds, timeout_seconds=timeout, cancel_requested_at=moments[0], deadline_at=moments[1]
    )


@pytest.mark.parametrize("ahead", [-300, 0, 300])
@pytest.mark.parametrize(
    ("cancel", "deadline", "intent"),
    [
        (None, 11, Intent.NONE),
        (None, 10, Intent.DEADLINE),
        (11, None, Intent.NONE),
        (10, None, Intent.CANCEL),
    ],
)
def test_times_of_two_clocks_are_compared_by_one(
    cancel: int | None, deadline: int | None, intent: Intent, ahead: int
) -> None:
    engine_ahead = timedelta(seconds=ahead)
    by_the_engine = MOMENT + engine_ahead
    seen = replace(exited(0), started_at=by_the_engine, finished_at=by_the_engine + timedelta(seconds=10))
    moments = [None if after is None else MOMENT + timedelta(seconds=after) for after in (cancel, deadline)]
    assert intent is missed_intent(
        seen,
        timeout_seconds=60,
        cancel_requested_at=moments[0],
        deadline_at=moments[1],
        engine_ahead=engine_ahead,
    )


def test_of_what_is_gone_nothing_is_told_by_times() -> None:
    assert (
        missed_intent(GONE, timeout_seconds=1, cancel_requested_at=MOMENT, deadline_at=MOMENT) is Intent.NONE
    )


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (exited(0), ExitReason.TIMEOUT),
        (exited(143), ExitReason.TIMEOUT),
        (exited(137, oom=True), ExitReason.OUT_OF_MEMORY),
        (exited(255), ExitReason.HOST_CRASHED),  # its end is the time of the restart: the times tell nothing
    ],
)
def test_what_was_missed_counts_less_than_what_the_engine_knows(
    seen: Observation, reason: ExitReason
) -> None:
    assert decide(seen, missed=Intent.TIMEOUT, engine_interrupted=True).reason is reason


@pytest.mark.parametrize(
    ("intent", "status", "reason", "exit_code"),
    [
        (Intent.NONE, Status.FAILED, ExitReason.BAD_USER, 126),
        (Intent.TIMEOUT, Status.FAILED, ExitReason.BAD_USER, 126),  # no limit holds before the start
        (Intent.CANCEL, Status.CANCELLED, ExitReason.CANCELLED, None),
        (Intent.DEADLINE, Status.TIMEOUT, ExitReason.DEADLINE_EXCEEDED, None),
    ],
)
def test_what_never_ran_ends_by_its_fault_or_because_it_was_not_to_run(
    intent: Intent, status: Status, reason: ExitReason, exit_code: int | None
) -> None:
    outcome = rejected(ExitReason.BAD_USER, "No such user.", exit_code=126, intent=intent)
    assert (outcome.status, outcome.reason, outcome.exit_code) == (status, reason, exit_code)
