"""Secrets inside a host's `executor_config`: hidden where it is shown, kept where it is saved unchanged."""

from __future__ import annotations

import re
from typing import Any

from container_manager.core.environment import REDACTED

_SECRET_NAME = re.compile(r"pass|secret|token|credential|auth|private|signature|(^|[_-])key($|[_-])", re.I)
_URL_WITH_USER = re.compile(r"://[^/\s@]+@")
#: What is no secret even inside a registry's credentials.
_OPEN_NAMES = frozenset({"username", "email", "registry", "serveraddress", "server"})


def mask(value: Any, *, secret: bool = False) -> Any:
    """A JSON value with every secret replaced by a sign; `secret` is what the name above it says."""
    if isinstance(value, dict):
        return {name: mask(item, secret=_is_secret(str(name), inside=secret)) for name, item in value.items()}
    if isinstance(value, list):
        return [mask(item, secret=secret) for item in value]
    if value in ("", None) or isinstance(value, bool):
        return value
    if secret or (isinstance(value, str) and _URL_WITH_USER.search(value)):
        return REDACTED
    return value


def unmask(value: Any, stored: Any, path: str = "") -> Any:
    """The value with every sign replaced by what is stored in its place.

    Raises ValueError, which names the place, where nothing is stored there.
    """
    if isinstance(value, dict):
        old = stored if isinstance(stored, dict) else {}
        return {
            name: unmask(item, old.get(name), f"{path}.{name}".lstrip(".")) for name, item in value.items()
        }
    if isinstance(value, list):
        before = stored if isinstance(stored, list) and len(stored) == len(value) else [None] * len(value)
        return [
            unmask(item, old, f"{path}[{index}]")
            for index, (item, old) in enumerate(zip(value, before, strict=True))
        ]
    if value != REDACTED:
        return value
    if stored is None or isinstance(stored, dict | list):
        raise ValueError(f"{path} has no stored value to keep; write its value.")
    return stored


def _is_secret(name: str, *, inside: bool) -> bool:
    if name.lower() in _OPEN_NAMES:
        return False
    return inside or bool(_SECRET_NAME.search(name))
