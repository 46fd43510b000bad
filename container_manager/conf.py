"""The package's settings: one dict in the project's settings, typed here, read lazily.

`CONTAINER_MANAGER_SETTINGS` may hold any field of `Settings`; everything has a default. `problems` is
what the system check prints, so a misspelt key is told at start-up and never silently ignored.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, NamedTuple

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from container_manager.core.errors import ConfigurationError
from container_manager.core.limits import user_problem
from container_manager.core.policy import Policy

SETTING = "CONTAINER_MANAGER_SETTINGS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every key, with its default. Seconds, megabytes (2**20 bytes) and cores unless the name says else."""

    # Engine
    DOCKER_TIMEOUT: float = 60.0  # longest wait for one answer of an engine
    AUTO_PULL_IMAGES: bool = True  # fetch missing images; a host may say otherwise
    IMMEDIATE_CLEANUP: bool = True  # remove a container as soon as its result is stored
    CONTAINER_RETENTION_SECONDS: float = 3600.0  # else: how long a finished container stays
    EXECUTORS: Mapping[str, str] = field(default_factory=dict)  # further executor types: name -> dotted path
    ALLOW_PROCESS_EXECUTOR: bool = False  # the executor without isolation, for development only
    INSTALLATION_ID: str = ""  # label of our containers; empty: made once, kept in the database

    # Worker
    MAX_CONCURRENT_JOBS: int = 50  # per worker, over all its hosts
    LAUNCH_CONCURRENCY: int = 8  # starts in flight per host
    POLL_INTERVAL: float = 1.0  # how often the database is asked where nothing wakes the worker
    LEASE_SECONDS: float = 10.0  # a silent worker loses its hosts after this
    HOST_LOST_SECONDS: float = 3600.0  # a host away for this long is given up with its jobs; 0: never
    STRAY_GRACE_SECONDS: float = 60.0  # containers younger than this are never taken for strays
    RECONCILE_LIMIT: int = 50  # stray containers that one pass may remove on one host
    RECONCILE_DRY_RUN: bool = False  # only log what would be removed
    RESYNC_INTERVAL: float = 5.0  # how often the engine's listing is compared, as events get lost
    USAGE_INTERVAL: float = 1.0  # pause between two usage samples on one host
    STOP_GRACE_SECONDS: float = 10.0  # between SIGTERM and SIGKILL
    SHUTDOWN_GRACE_SECONDS: float = 10.0  # for what is in flight when the worker is told to stop

    # Jobs: defaults and ceilings
    DEFAULT_MEMORY_LIMIT: int = 256
    MAX_MEMORY_LIMIT: int = 2048
    DEFAULT_CPU_LIMIT: float = 1.0
    MAX_CPU_LIMIT: float = 2.0
    DEFAULT_TIMEOUT_SECONDS: int = 300
    MAX_TIMEOUT_SECONDS: int = 3600
    DEFAULT_USER: str = "10001:10001"  # numeric uid:gid, both above 1000
    PIDS_LIMIT: int = 256
    TMPFS_SIZE_MB: int = 64  # /tmp of each job; counts to its memory
    ALLOW_WRITABLE_ROOT: bool = False  # whether a job may ask for a writable root filesystem

    MAX_JOB_ATTEMPTS: int = 100  # attempts at one job, however its retry policy counts

    # Retention, in days from a job's end; 0: for ever
    KEEP_COMPLETED_DAYS: float = 0.0
    KEEP_FAILED_DAYS: float = 0.0  # failed, timeout and cancelled
    KEEP_LOGS_DAYS: float = 0.0  # stored output; the record stays
    RETENTION_BATCH: int = 200  # rows that one transaction deletes

    # Management commands in containers
    COMMAND_IMAGE: str = ""  # the project's own image, as build_job_image makes it
    COMMAND_PREFIX: tuple[str, ...] = ("python", "manage.py")

    # Logs
    LOG_MAX_BYTES: int = 256 * 1024 * 1024  # stored per attempt, both streams together
    LOG_COLUMN_BYTES: int = 128 * 1024  # of each stream in the job's own row

    def policy(self) -> Policy:
        """The part of the settings that decides what a job may ask for."""
        return Policy(
            max_memory_mb=self.MAX_MEMORY_LIMIT,
            max_cpus=self.MAX_CPU_LIMIT,
            max_timeout=self.MAX_TIMEOUT_SECONDS,
            default_user=self.DEFAULT_USER,
            pids_limit=self.PIDS_LIMIT,
            tmpfs_mb=self.TMPFS_SIZE_MB,
            allow_writable_root=self.ALLOW_WRITABLE_ROOT,
            log_max_bytes=self.LOG_MAX_BYTES,
        )


class Problem(NamedTuple):
    """A mistake in the settings: what is wrong, and what to write instead."""

    key: str
    message: str
    hint: str


_ZERO_ALLOWED = {
    "STOP_GRACE_SECONDS",
    "SHUTDOWN_GRACE_SECONDS",
    "CONTAINER_RETENTION_SECONDS",
    "HOST_LOST_SECONDS",
    "STRAY_GRACE_SECONDS",
    "KEEP_COMPLETED_DAYS",
    "KEEP_FAILED_DAYS",
    "KEEP_LOGS_DAYS",
}


def problems(raw: object) -> list[Problem]:
    """Everything that is wrong with the dict as the project wrote it."""
    if not isinstance(raw, Mapping):
        return [Problem("", f"{SETTING} is a {type(raw).__name__}.", "Make it a dict.")]
    known = {item.name: item for item in fields(Settings)}
    defaults = Settings()
    found: list[Problem] = []
    for key, value in raw.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known keys: {', '.join(sorted(known))}."
            found.append(Problem(str(key), f"{SETTING} has the unknown key {key!r}.", hint))
            continue
        problem = _value_problem(str(key), value, getattr(defaults, str(key)))
        if problem:
            found.append(problem)
    if not found:
        found.extend(_contradictions(Settings(**_converted(raw))))
    return found


def get_settings() -> Settings:
    """The settings in force. Raises ConfigurationError where the system check would complain."""
    return _load()


@lru_cache(maxsize=1)
def _load() -> Settings:
    raw = getattr(django_settings, SETTING, {})
    found = problems(raw)
    if found:
        raise ConfigurationError(" ".join(f"{item.message} {item.hint}" for item in found))
    return Settings(**_converted(raw))


def _converted(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}


def _value_problem(key: str, value: object, default: object) -> Problem | None:
    wrong_type = Problem(
        key,
        f"{SETTING}[{key!r}] is a {type(value).__name__}, not a {_type_name(default)}.",
        f"For example: {default!r}.",
    )
    if isinstance(default, bool) or isinstance(value, bool):
        return None if isinstance(default, bool) and isinstance(value, bool) else wrong_type
    if isinstance(default, int | float):
        whole = isinstance(default, int)
        if not isinstance(value, int if whole else int | float):
            return wrong_type
        number = float(value)
        least = 0.0 if key in _ZERO_ALLOWED else math.ulp(0.0)
        if not math.isfinite(number) or number < least:
            return Problem(
                key, f"{SETTING}[{key!r}] is {value!r}.", f"Use a number above 0, such as {default!r}."
            )
        return None
    if isinstance(default, tuple):
        fine = isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value)
        return None if fine else wrong_type
    if isinstance(default, Mapping):
        fine = isinstance(value, Mapping) and all(
            isinstance(part, str) for item in value.items() for part in item
        )
        return None if fine else wrong_type
    return None if isinstance(value, str) else wrong_type


def _contradictions(settings: Settings) -> list[Problem]:
    found = []
    for default, ceiling in (
        ("DEFAULT_MEMORY_LIMIT", "MAX_MEMORY_LIMIT"),
        ("DEFAULT_CPU_LIMIT", "MAX_CPU_LIMIT"),
        ("DEFAULT_TIMEOUT_SECONDS", "MAX_TIMEOUT_SECONDS"),
    ):
        if getattr(settings, default) > getattr(settings, ceiling):
            found.append(
                Problem(
                    default,
                    f"{SETTING}[{default!r}] is above {ceiling!r} ({getattr(settings, ceiling)!r}).",
                    f"Lower {default} or raise {ceiling}.",
                )
            )
    problem = user_problem(settings.DEFAULT_USER)
    if problem:
        found.append(
            Problem(
                "DEFAULT_USER",
                f"{SETTING}['DEFAULT_USER']: {problem}",
                "Use a numeric uid:gid, both above 1000, such as '10001:10001'.",
            )
        )
    return found


def _type_name(default: object) -> str:
    if isinstance(default, tuple):
        return "list of strings"
    if isinstance(default, Mapping):
        return "dict of strings"
    return {"str": "string", "int": "whole number", "float": "number", "bool": "True or False"}[
        type(default).__name__
    ]


def _forget(*, setting: str, **kwargs: object) -> None:  # noqa: ARG001
    if setting == SETTING:
        _load.cache_clear()


setting_changed.connect(_forget, dispatch_uid="container_manager.conf")
