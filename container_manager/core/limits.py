"""A job's numbers and ids: what is a limit at all, and what is one within bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: User and group ids up to this one belong to root and the system.
MAX_SYSTEM_ID = 1000
_MAX_ID = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A number that every job has. An engine reads "none" and 0 as unlimited, so neither may pass."""

    unit: str
    whole: bool
    floor: float  # the least that an engine accepts
    setting: str  # what raises its ceiling

    def problem(self, value: object, ceiling: float) -> str:
        """What is wrong with a value, and what to give instead; empty when it is a limit within bounds."""
        kind = "a whole number" if self.whole else "a number"
        remedy = f"give {kind} of {self.unit} from {self.floor:g} to {ceiling}"
        if value is None:
            return f"it is None, which an engine reads as unlimited; {remedy}."
        # True is an int to Python, and no amount of anything.
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return f"{shown(value)} is a {type(value).__name__}; {remedy}."
        if isinstance(value, float) and not math.isfinite(value):
            return f"{value} is no finite number; {remedy}."
        if value <= 0:
            return f"{shown(value)} is not above 0, and an engine reads 0 as unlimited; {remedy}."
        if value < self.floor:
            return f"{shown(value)} {self.unit} is less than an engine accepts; {remedy}."
        if value > ceiling:
            return (
                f"{shown(value)} {self.unit} is above the ceiling of {ceiling} {self.unit}; "
                f"ask for less, or raise {self.setting} in CONTAINER_MANAGER_SETTINGS."
            )
        return ""


MEMORY = Limit(unit="MB", whole=True, floor=6, setting="MAX_MEMORY_LIMIT")
CPUS = Limit(unit="cores", whole=False, floor=0.01, setting="MAX_CPU_LIMIT")
TIMEOUT = Limit(unit="s", whole=True, floor=1, setting="MAX_TIMEOUT_SECONDS")


def user_problem(user: object) -> str:
    """What is wrong with a uid:gid, and what to give instead; empty when both are numbers above 1000."""
    parts = user.split(":") if isinstance(user, str) else []
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        return f"{shown(user)} is not a numeric uid:gid; give one such as '10001:10001'."
    for part in parts:
        digits = part.lstrip("0") or "0"
        if len(digits) > len(str(_MAX_ID)) or int(digits) > _MAX_ID:
            return f"{shown(user)} has an id above {_MAX_ID}, which no engine takes; give a smaller one."
        if int(digits) <= MAX_SYSTEM_ID:
            return (
                f"{shown(user)} has the id {digits}, and ids up to {MAX_SYSTEM_ID} belong to root and the "
                "system; give ids above that, such as '10001:10001'."
            )
    return ""


def shown(value: object) -> str:
    """A value for a message; Python itself refuses to write out an int of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
