"""Whether a job is tried again after an attempt that failed, and when.

A policy is data: how many attempts, how long between them, and rules that say what to do about a reason or
an exit code. Off unless a job asks for it. What never ran (an image that is missing, a refused create or
start) is tried again only where a rule names it, and so is `host_lost`: that container may still run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeGuard

from container_manager.core.errors import InvalidJob
from container_manager.core.limits import shown
from container_manager.core.outcome import ExitReason, Outcome
from container_manager.core.states import Status

FIELD = "retry"
#: The reasons that count as a failed attempt where no rule says anything.
RETRIED_UNNAMED = frozenset(
    {
        ExitReason.APPLICATION_ERROR,
        ExitReason.OUT_OF_MEMORY,
        ExitReason.TIMEOUT,
        ExitReason.KILLED_EXTERNALLY,
        ExitReason.REMOVED_EXTERNALLY,
        ExitReason.ENGINE_STOPPED,
        ExitReason.HOST_CRASHED,
    }
)
#: No rule may name these: they are ends that somebody wanted.
NEVER_RETRIED = frozenset(
    {
        ExitReason.SUCCESS,
        ExitReason.CANCELLED,
        ExitReason.POLICY_REFUSED,
        ExitReason.IMAGE_REFUSED,
        ExitReason.DEADLINE_EXCEEDED,
    }
)
MAX_BACKOFF = 7 * 86_400.0


class Action(StrEnum):
    """What a rule does about a failed attempt."""

    FAIL = "fail"  # the job ends
    RETRY = "retry"  # tried again, and counted
    IGNORE = "ignore"  # tried again, and not counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The first rule that matches an attempt decides. It matches by reason, by exit code, or by both."""

    action: Action
    reasons: frozenset[ExitReason] = frozenset()
    exit_codes: tuple[tuple[int, int], ...] = ()  # inclusive ranges

    def as_json(self) -> dict[str, Any]:
        """Its part of a policy's stored form."""
        codes = [low if low == high else f"{low}-{high}" for low, high in self.exit_codes]
        parts = {"reasons": sorted(self.reasons), "exit_codes": codes}
        return {"action": self.action.value, **{name: part for name, part in parts.items() if part}}

    def matches(self, outcome: Outcome) -> bool:
        """Whether it speaks of this end."""
        if self.reasons and outcome.reason not in self.reasons:
            return False
        code = outcome.exit_code
        return not self.exit_codes or (
            code is not None and any(low <= code <= high for low, high in self.exit_codes)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`attempts` counts the first one. Waits grow from `backoff_seconds` by `factor` up to the ceiling.

    `jitter` is the part of a wait that chance may add or take, so that jobs that failed together do not come
    back together.
    """

    attempts: int = 1
    backoff_seconds: float = 10.0
    factor: float = 2.0
    max_backoff_seconds: float = 600.0
    jitter: float = 0.2
    rules: tuple[Rule, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The form in which a job's row keeps it; `parse_retry` reads it. Empty: never."""
        if self == RetryPolicy():
            return {}
        plain: dict[str, Any] = {name: getattr(self, name) for name in _NUMBERS}
        plain["rules"] = [rule.as_json() for rule in self.rules]
        return plain

    def backoff(self, failures: int, *, luck: float) -> float:
        """Seconds until the next attempt after so many counted failures; `luck` is from 0 to 1."""
        grown = self.backoff_seconds
        for _ in range(failures - 1):
            if grown >= self.max_backoff_seconds or self.factor == 1 or grown == 0:
                break  # it grows no more; the power of many failures would be more than a float holds
            grown *= self.factor
        swing = 1 + self.jitter * (2 * luck - 1)
        return min(min(grown, self.max_backoff_seconds) * swing, self.max_backoff_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """Another attempt follows, after a wait; `counted`: this one used up one of the policy's attempts."""

    wait_seconds: float
    counted: bool

    def begins_before(self, deadline_left: float | None) -> bool:
        """Whether it could begin before the job's total deadline, so many seconds away; None: no deadline."""
        return deadline_left is None or self.wait_seconds < deadline_left


def decide_retry(
    policy: RetryPolicy,
    outcome: Outcome,
    *,
    failures: int,
    attempts: int,
    ceiling: int,
    luck: float,
) -> Again | None:
    """Say whether the policy has another attempt follow an ended one; None: the job ends.

    `failures`: counted ones before this. `attempts`: all so far, this one included, which `ceiling` bounds
    even where a rule ignores them. `luck` is from 0 to 1.
    """
    if outcome.status not in (Status.FAILED, Status.TIMEOUT) or outcome.reason in NEVER_RETRIED:
        return None
    action = _action(policy, outcome)
    if action is Action.FAIL or attempts >= ceiling:
        return None
    counted = action is Action.RETRY
    if counted and failures + 1 >= policy.attempts:
        return None
    return Again(wait_seconds=policy.backoff(failures + counted, luck=luck), counted=counted)


def _action(policy: RetryPolicy, outcome: Outcome) -> Action:
    for rule in policy.rules:
        if rule.matches(outcome):
            return rule.action
    return Action.RETRY if outcome.reason in RETRIED_UNNAMED else Action.FAIL


# ---------------------------------------------------------------------------------------- reading a policy

#: Each number of a policy: least, most, whole.
_NUMBERS: dict[str, tuple[float, float, bool]] = {
    "attempts": (1, 1000, True),
    "backoff_seconds": (0, MAX_BACKOFF, False),
    "factor": (1, 100, False),
    "max_backoff_seconds": (0, MAX_BACKOFF, False),
    "jitter": (0, 1, False),
}


def parse_retry(value: object) -> RetryPolicy:
    """A policy from what a caller gave: a number of attempts, a mapping, or a policy. Raises InvalidJob."""
    if isinstance(value, RetryPolicy):
        value = value.as_json()  # checked like any other
    if value is None or value == {}:
        return RetryPolicy()
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"attempts": value}
    if not isinstance(value, Mapping):
        raise _invalid(f"{shown(value)} is a {type(value).__name__}; give a number of attempts or a dict.")
    known = {*_NUMBERS, "rules"}
    for key in value:
        if key not in known:
            raise _invalid(f"{shown(key)} is not known; there are {', '.join(sorted(known))}.")
    numbers: dict[str, Any] = {name: _number(name, value[name]) for name in _NUMBERS if name in value}
    usual = RetryPolicy()
    first = numbers.get("backoff_seconds", usual.backoff_seconds)
    ceiling = numbers.setdefault("max_backoff_seconds", max(first, usual.max_backoff_seconds))
    if ceiling < first:
        raise _invalid(f"max_backoff_seconds: {ceiling:g} is less than backoff_seconds, which is {first:g}.")
    rules = value.get("rules", ())
    if not isinstance(rules, Sequence) or isinstance(rules, str):
        raise _invalid(f"rules: it is a {type(rules).__name__}; give a list.")
    return RetryPolicy(
        **numbers,
        rules=tuple(_rule(number, rule) for number, rule in enumerate(rules, start=1)),
    )


def _number(name: str, value: float) -> float:
    least, most, whole = _NUMBERS[name]
    kind = "a whole number" if whole else "a number"
    is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        raise _invalid(f"{name}: {shown(value)} is not {kind} from {least:g} to {most:g}.")
    return value


def _rule(number: int, rule: object) -> Rule:
    where = f"rule {number}"
    if not isinstance(rule, Mapping) or set(rule) - {"action", "reasons", "exit_codes"}:
        raise _invalid(f"{where}: give a dict with action, and reasons or exit_codes or both.")
    try:
        action = Action(str(rule.get("action")))
    except ValueError:
        raise _invalid(f"{where}: action is {shown(rule.get('action'))}; use {', '.join(Action)}.") from None
    reasons = frozenset(_reason(where, name) for name in _listed(where, rule, "reasons"))
    codes = tuple(_codes(where, code) for code in _listed(where, rule, "exit_codes"))
    if not reasons and not codes:
        raise _invalid(f"{where}: it matches nothing; give reasons or exit_codes.")
    return Rule(action=action, reasons=reasons, exit_codes=codes)


def _listed(where: str, rule: Mapping[str, Any], name: str) -> list[Any]:
    value = rule.get(name, [])
    if not isinstance(value, list | tuple | set | frozenset):
        raise _invalid(f"{where}: {name} is a {type(value).__name__}; give a list.")
    return list(value)


def _reason(where: str, name: Any) -> ExitReason:
    try:
        reason = ExitReason(name)
    except ValueError:
        known = ", ".join(sorted(set(ExitReason) - NEVER_RETRIED))
        raise _invalid(f"{where}: {shown(name)} is no exit reason; there are {known}.") from None
    if reason in NEVER_RETRIED:
        raise _invalid(f"{where}: a job that ended as {reason.value!r} is never tried again.")
    return reason


def _codes(where: str, code: object) -> tuple[int, int]:
    low: object = code
    high: object = code
    if isinstance(code, str):
        first, dash, last = code.partition("-")
        low, high = (int(part) if part.isdigit() else None for part in (first, last if dash else first))
    if not (_is_code(low) and _is_code(high)) or low > high:
        raise _invalid(f"{where}: {shown(code)} is no exit code from 1 to 255, nor a range such as '64-78'.")
    return low, high


def _is_code(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 255


def _invalid(message: str) -> InvalidJob:
    return InvalidJob(FIELD, message)
