"""What a host's `executor_config` may say, and what is wrong with it.

Each driver names the keys that it reads. Any other one is refused: a misspelt key would have no effect, and
one that promises safety would give none. No message shows a value that may be a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from container_manager.core.limits import shown

#: What is wrong with a value, with the remedy; empty where nothing is.
Check = Callable[[object], str]

MAX_SECONDS = 86_400
#: Names that users know from descriptions of what is to come. To store one would look like protection.
NOT_YET = ("allowed_registries", "require_signed_images")


def seconds(value: object) -> str:
    """A length of time."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MAX_SECONDS:
        return ""
    return f"is {shown(value)}; use a number of seconds above 0 and below {MAX_SECONDS}."


def switch(value: object) -> str:
    """On or off."""
    return "" if isinstance(value, bool) else f"is {shown(value)}; use true or false."


def directory(value: object) -> str:
    """An absolute path on the worker's machine."""
    if isinstance(value, str) and value.startswith("/") and "\0" not in value:
        return ""
    return f"is {shown(value)}; use an absolute path, such as /srv/jobs."


def credentials(*fields: str) -> Check:
    """An object of texts with these names; what they say is never shown."""

    def check(value: object) -> str:
        example = "{" + ", ".join(f'"{name}": "..."' for name in fields) + "}"
        if not isinstance(value, Mapping):
            return f"is no object; write it as {example}, without what is not needed."
        for name, text in value.items():
            if name not in fields:
                return f"has {shown(name)}, which is not known; there are {', '.join(fields)}."
            if not isinstance(text, str):
                return f"has no text for {name}; put it in quotes."
        return ""

    return check


#: What is read for every driver.
COMMON: Mapping[str, Check] = {"timeout": seconds, "auto_pull_images": switch}


def problem(config: object, further: Mapping[str, Check]) -> str:
    """What is wrong with a configuration for a driver that reads `further` keys; empty: nothing."""
    if not isinstance(config, dict):
        return 'Make it a JSON object, such as {"timeout": 60}.'
    checks = {**COMMON, **further}
    for key, value in config.items():
        if key in checks:
            wrong = checks[key](value)
            if wrong:
                return f"{key} {wrong}"
        elif key in NOT_YET:
            return f"{key} is not supported yet; nothing would enforce it. Take it out."
        else:
            return f"{shown(key)} is not known; there are {', '.join(sorted(checks))}."
    return ""
