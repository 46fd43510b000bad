"""Why a job ended: the table of exit reasons, and the one decision that picks from it.

`decide` weighs evidence in a fixed order, because single facts lie: 137 is what an out-of-memory kill,
a `kill -9` from inside and a daemon's stop all look like. The order and the cases were measured on a
real engine; see `docs/architecture.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from container_manager.core.observation import ContainerState, Observation
from container_manager.core.states import Status


class ExitReason(StrEnum):
    """Why a job ended. Values are stored; add, never rename."""

    SUCCESS = "success"
    APPLICATION_ERROR = "application_error"
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    IMAGE_NOT_FOUND = "image_not_found"
    IMAGE_PULL_FAILED = "image_pull_failed"
    IMAGE_REFUSED = "image_refused"
    NETWORK_NOT_FOUND = "network_not_found"
    COMMAND_NOT_FOUND = "command_not_found"
    COMMAND_NOT_EXECUTABLE = "command_not_executable"
    BAD_USER = "bad_user"
    CREATE_ERROR = "create_error"
    START_ERROR = "start_error"
    NAME_TAKEN = "name_taken"
    POLICY_REFUSED = "policy_refused"
    KILLED_EXTERNALLY = "killed_externally"
    REMOVED_EXTERNALLY = "removed_externally"
    ENGINE_STOPPED = "engine_stopped"
    HOST_CRASHED = "host_crashed"
    HOST_LOST = "host_lost"


class ReasonText(NamedTuple):
    """How a reason is shown: a label for lists, and what to do about it."""

    label: str
    remedy: str


REASONS: dict[ExitReason, ReasonText] = {
    ExitReason.SUCCESS: ReasonText("Success", ""),
    ExitReason.APPLICATION_ERROR: ReasonText(
        "Application error", "Read the end of stderr: the program itself reported the failure."
    ),
    ExitReason.OUT_OF_MEMORY: ReasonText(
        "Out of memory", "Raise memory_limit, or make the job hold less at once."
    ),
    ExitReason.TIMEOUT: ReasonText("Timeout", "Raise timeout_seconds, or split the job into shorter ones."),
    ExitReason.DEADLINE_EXCEEDED: ReasonText(
        "Deadline exceeded", "Raise deadline_seconds, or see why the job waited or was tried for so long."
    ),
    ExitReason.CANCELLED: ReasonText("Cancelled", ""),
    ExitReason.IMAGE_NOT_FOUND: ReasonText(
        "Image not found", "Check the spelling of the image and its tag, and whether the host may pull."
    ),
    ExitReason.IMAGE_PULL_FAILED: ReasonText(
        "Image pull failed", "Check the registry's address and credentials from the host."
    ),
    ExitReason.IMAGE_REFUSED: ReasonText(
        "Image refused by policy", "Use an image that the host's policy allows, or change that policy."
    ),
    ExitReason.NETWORK_NOT_FOUND: ReasonText(
        "Network not found", "Create the network on the host, or correct network_configuration."
    ),
    ExitReason.COMMAND_NOT_FOUND: ReasonText(
        "Command not found", "Check the program's name and that the image contains it."
    ),
    ExitReason.COMMAND_NOT_EXECUTABLE: ReasonText(
        "Command not executable", "Set the execute bit in the image, or name the interpreter in the command."
    ),
    ExitReason.BAD_USER: ReasonText("Bad user", "Use a numeric uid:gid that the engine accepts."),
    ExitReason.CREATE_ERROR: ReasonText(
        "Create error", "The engine refused the container; its own words are in the engine log."
    ),
    ExitReason.START_ERROR: ReasonText(
        "Start error", "The engine could not start the container; its own words are in the engine log."
    ),
    ExitReason.NAME_TAKEN: ReasonText(
        "Container name taken", "Remove or rename the foreign container that holds the name."
    ),
    ExitReason.POLICY_REFUSED: ReasonText(
        "Refused by policy", "Change the job so that it meets the policy, or the policy in settings."
    ),
    ExitReason.KILLED_EXTERNALLY: ReasonText(
        "Killed from outside", "Something other than this system sent the signal; look at the host."
    ),
    ExitReason.REMOVED_EXTERNALLY: ReasonText(
        "Removed from outside", "Somebody removed the container behind the worker's back; look at the host."
    ),
    ExitReason.ENGINE_STOPPED: ReasonText(
        "Engine stopped",
        "The Docker daemon was stopped or restarted; run the job again, or use live-restore.",
    ),
    ExitReason.HOST_CRASHED: ReasonText(
        "Host crashed", "The host went down under the job; run the job again."
    ),
    ExitReason.HOST_LOST: ReasonText(
        "Host lost", "The host that ran the job is gone for good; run the job again on another one."
    ),
}


class Intent(StrEnum):
    """What we ourselves asked of the container: the first evidence."""

    NONE = ""
    CANCEL = "cancel"
    TIMEOUT = "timeout"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A final status with its reason, the exit code where there is one, and a sentence for people."""

    status: Status
    reason: ExitReason
    exit_code: int | None
    message: str


_SIGKILL_EXIT = 137
_SIGTERM_EXIT = 143
_HOST_CRASH_EXIT = 255
_START_ERRORS = {
    125: ExitReason.START_ERROR,
    126: ExitReason.COMMAND_NOT_EXECUTABLE,
    127: ExitReason.COMMAND_NOT_FOUND,
    128: ExitReason.BAD_USER,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """All that is known when a container has ended."""

    seen: Observation
    intent: Intent
    timeout_seconds: int | None
    memory_limit_mb: int | None
    engine_interrupted: bool
    missed: Intent


def decide(
    observation: Observation,
    *,
    intent: Intent = Intent.NONE,
    timeout_seconds: int | None = None,
    memory_limit_mb: int | None = None,
    engine_interrupted: bool = False,
    missed: Intent = Intent.NONE,
) -> Outcome:
    """Say what the end of a container means for its job: the first evidence that speaks decides.

    `engine_interrupted`: the connection to the engine broke, or the worker changed, while the job ran.
    Only then can 255 mean a crashed host (unless the engine says so itself), and 137 or 143 an engine
    that was stopped. `missed`: what `missed_intent` found that ought to have been done, and may have been, by
    a worker that died before it could tell.
    """
    case = _Case(
        seen=observation,
        intent=intent,
        timeout_seconds=timeout_seconds,
        memory_limit_mb=memory_limit_mb,
        engine_interrupted=engine_interrupted,
        missed=missed,
    )
    return next(outcome for evidence in _EVIDENCE if (outcome := evidence(case)) is not None)


def missed_intent(
    observation: Observation,
    *,
    timeout_seconds: int,
    cancel_requested_at: datetime | None,
    deadline_at: datetime | None,
    engine_ahead: timedelta = timedelta(),
) -> Intent:
    """What was to be done to a container before it ended, by the times alone.

    For one that ended while nobody could see to it: the worker that asked it to stop, or should have, died.

    Three clocks meet here. An observation's times are the engine's, which may be minutes off. A wish and a
    deadline count by the database's, as everywhere (`models.clock`). The worker's own may be an hour wrong:
    it only carries from one to the other. `engine_ahead`: how far the engine's is ahead of the database's, to
    the moment that the engine took to tell its time.
    """
    started, finished = observation.started_at, observation.finished_at
    if finished is None:
        return Intent.NONE
    ended = finished - engine_ahead  # by the database's clock
    if cancel_requested_at is not None and cancel_requested_at <= ended:
        return Intent.CANCEL
    if deadline_at is not None and deadline_at <= ended:
        return Intent.DEADLINE
    if started is not None and (finished - started).total_seconds() >= timeout_seconds:
        return Intent.TIMEOUT
    return Intent.NONE


def _our_own_doing(case: _Case) -> Outcome | None:
    return _as_intended(case, case.intent)


def _asked_for(case: _Case) -> Outcome | None:
    return _as_intended(case, case.missed)


def _as_intended(case: _Case, intent: Intent) -> Outcome | None:
    if intent is Intent.TIMEOUT:
        limit = f" of {case.timeout_seconds} s" if case.timeout_seconds else ""
        message = f"The job ran over its time limit{limit}."
        return _outcome(Status.TIMEOUT, ExitReason.TIMEOUT, case.seen.exit_code, message)
    if intent is Intent.DEADLINE:
        return deadline_exceeded(case.seen.exit_code)
    if intent is Intent.CANCEL:
        return _outcome(Status.CANCELLED, ExitReason.CANCELLED, case.seen.exit_code, "The job was cancelled.")
    return None


def _gone(case: _Case) -> Outcome | None:
    if case.seen.state is not ContainerState.NOT_FOUND:
        return None
    message = (
        "The container is gone without our doing; its exit code and the rest of its output went with it."
    )
    return _failed(ExitReason.REMOVED_EXTERNALLY, None, message)


def _never_started(case: _Case) -> Outcome | None:
    seen = case.seen
    if seen.state is not ContainerState.CREATED or not seen.error:
        return None
    reason = _START_ERRORS.get(seen.exit_code or 0, ExitReason.START_ERROR)
    if reason is ExitReason.BAD_USER and "user" not in seen.error.lower():
        reason = ExitReason.START_ERROR  # 128 is the engine's code for whatever else kept it from starting
    return _failed(reason, seen.exit_code, f"The engine could not start the program: {seen.error}.")


def _no_start(case: _Case) -> Outcome | None:
    """An exit code of 0 is what a container has that never ran."""
    if case.seen.state is not ContainerState.EXITED or case.seen.ever_started:
        return None
    return _failed(ExitReason.HOST_LOST, None, "The engine calls the container ended and knows of no start.")


def _out_of_memory(case: _Case) -> Outcome | None:
    if not case.seen.oom_killed or case.seen.exit_code == 0:
        return None
    limit = f" of {case.memory_limit_mb} MB" if case.memory_limit_mb else ""
    message = f"The job reached its memory limit{limit} and the kernel killed it."
    return _failed(ExitReason.OUT_OF_MEMORY, case.seen.exit_code, message)


def _crash(case: _Case) -> Outcome | None:
    if case.seen.exit_code != _HOST_CRASH_EXIT or not (case.engine_interrupted or case.seen.error):
        return None
    message = "The host or its engine crashed while the job ran."
    return _failed(ExitReason.HOST_CRASHED, case.seen.exit_code, message)


def _a_signal(case: _Case) -> Outcome | None:
    code = case.seen.exit_code
    if code not in {_SIGKILL_EXIT, _SIGTERM_EXIT}:
        return None
    signal = "SIGKILL" if code == _SIGKILL_EXIT else "SIGTERM"
    if case.engine_interrupted:
        message = f"The engine was stopped while the job ran and sent {signal}."
        return _failed(ExitReason.ENGINE_STOPPED, code, message)
    message = f"The job ended by {signal}, which this system did not send, nor was it short of memory."
    return _failed(ExitReason.KILLED_EXTERNALLY, code, message)


def _its_own_word(case: _Case) -> Outcome:
    code = case.seen.exit_code
    if code is None:
        return _failed(ExitReason.HOST_LOST, None, "The engine does not know how the container ended.")
    if code != 0:
        return _failed(ExitReason.APPLICATION_ERROR, code, f"The program ended with exit code {code}.")
    warning = ""
    if case.seen.oom_killed:
        warning = "A child process ran out of memory and was killed, yet the job itself reported success."
    return Outcome(status=Status.COMPLETED, reason=ExitReason.SUCCESS, exit_code=0, message=warning)


#: The order matters: each may speak only because those before it did not.
_EVIDENCE: tuple[Callable[[_Case], Outcome | None], ...] = (
    _our_own_doing,
    _gone,
    _never_started,
    _no_start,
    _out_of_memory,
    _crash,
    _asked_for,
    _a_signal,
    _its_own_word,
)


def deadline_exceeded(exit_code: int | None = None) -> Outcome:
    """The outcome of a job whose total deadline passed, whether it ran just then or waited."""
    return _outcome(
        Status.TIMEOUT, ExitReason.DEADLINE_EXCEEDED, exit_code, "The job's total deadline passed."
    )


def lost(message: str) -> Outcome:
    """The outcome of a job whose host is given up; `message` is the evidence."""
    return _failed(ExitReason.HOST_LOST, None, message)


def rejected(
    reason: ExitReason, message: str, *, exit_code: int | None = None, intent: Intent = Intent.NONE
) -> Outcome:
    """The outcome of a job that never ran: for `reason`, unless it was not to run any more."""
    if intent is Intent.CANCEL:
        return cancelled_before_start()
    if intent is Intent.DEADLINE:
        return deadline_exceeded()
    return _failed(reason, exit_code, message)


def cancelled_before_start() -> Outcome:
    """The outcome of a job that its owner wanted ended while it was launched."""
    message = "The job was cancelled before it was started."
    return _outcome(Status.CANCELLED, ExitReason.CANCELLED, None, message)


def _failed(reason: ExitReason, code: int | None, message: str) -> Outcome:
    return _outcome(Status.FAILED, reason, code, message)


def _outcome(status: Status, reason: ExitReason, code: int | None, message: str) -> Outcome:
    text = " ".join(part for part in (message, REASONS[reason].remedy) if part)
    return Outcome(status=status, reason=reason, exit_code=code, message=text)
