"""The package's settings: one dict in the project's settings, typed here, read lazily.

`CONTAINER_MANAGER_SETTINGS` may hold any field of `Settings`; everything has a default. `problems` is
what the system check prints, so a misspelt key is told at start-up and never silently ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, NamedTuple

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from container_manager.core.errors import ConfigurationError, InvalidJob
from container_manager.core.images import parse_image
from container_manager.core.limits import CPUS, MEMORY, TIMEOUT, shown, user_problem
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
    KEEP_LOGS_DAYS: float = 0.0  # stored output and the engine's log; the record stays
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


_DAY = 86_400.0
_DAYS = 36_500.0  # a hundred years; far beyond it no date can be computed
_COLUMN = 2**31 - 1  # what an integer column of a job holds

#: The least and the most of each number, whether it comes from the settings or from a command's option.
BOUNDS: Mapping[str, tuple[float, float]] = {
    "DOCKER_TIMEOUT": (0.1, _DAY),
    "CONTAINER_RETENTION_SECONDS": (0, _DAYS * _DAY),
    "MAX_CONCURRENT_JOBS": (1, 10_000),
    "LAUNCH_CONCURRENCY": (1, 1000),
    "POLL_INTERVAL": (0.01, 3600),  # less would keep a processor busy with asking
    "LEASE_SECONDS": (1, 3600),  # less than a second is lost to any stall, more keeps a standby waiting
    "HOST_LOST_SECONDS": (0, _DAYS * _DAY),
    "STRAY_GRACE_SECONDS": (0, _DAYS * _DAY),
    "RECONCILE_LIMIT": (1, 100_000),
    "RESYNC_INTERVAL": (0.01, 3600),
    "USAGE_INTERVAL": (0.01, 3600),
    "STOP_GRACE_SECONDS": (0, _DAY),
    "SHUTDOWN_GRACE_SECONDS": (0, _DAY),
    "DEFAULT_MEMORY_LIMIT": (MEMORY.floor, _COLUMN),
    "MAX_MEMORY_LIMIT": (MEMORY.floor, _COLUMN),
    "DEFAULT_CPU_LIMIT": (CPUS.floor, 10_000),
    "MAX_CPU_LIMIT": (CPUS.floor, 10_000),
    "DEFAULT_TIMEOUT_SECONDS": (TIMEOUT.floor, _COLUMN),
    "MAX_TIMEOUT_SECONDS": (TIMEOUT.floor, _COLUMN),
    "PIDS_LIMIT": (1, 4_194_304),  # the kernel's own ceiling
    "TMPFS_SIZE_MB": (1, _COLUMN),
    "MAX_JOB_ATTEMPTS": (1, _COLUMN),
    "KEEP_COMPLETED_DAYS": (0, _DAYS),
    "KEEP_FAILED_DAYS": (0, _DAYS),
    "KEEP_LOGS_DAYS": (0, _DAYS),
    "RETENTION_BATCH": (1, 10_000),
    "LOG_MAX_BYTES": (1, 2**40),
    "LOG_COLUMN_BYTES": (100, 2**28),
}

#: Shown where the default says nothing about what to write.
_EXAMPLES: Mapping[str, object] = {
    "EXECUTORS": {"mine": "my_project.executors.MyExecutor"},
    "INSTALLATION_ID": "staging",
    "COMMAND_IMAGE": "my-project-jobs:latest",
}


def out_of_bounds(key: str, value: float) -> str:
    """Which numbers a setting, or the option that stands for it, can be, for one that it cannot be.

    Empty when it can be.
    """
    least, most = BOUNDS[key]
    if least <= value <= most:  # False for what is no number at all
        return ""
    kind = "a whole number" if isinstance(getattr(Settings(), key), int) else "a number"
    return f"{kind} from {least:.12g} to {most:.12g}"


def problems(raw: object) -> list[Problem]:
    """Everything that is wrong with the dict as the project wrote it."""
    if not isinstance(raw, Mapping):
        return [Problem("", f"{SETTING} is {_a(type(raw))}.", "Make it a dict.")]
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
    named = f"{SETTING}[{key!r}]"
    example = f"For example: {_EXAMPLES.get(key, default)!r}."
    wrong_type = Problem(key, f"{named} is {_a(type(value))}, not {_type_name(default)}.", example)
    if isinstance(default, bool) or isinstance(value, bool):
        return None if isinstance(default, bool) and isinstance(value, bool) else wrong_type
    if isinstance(default, int | float):
        if not isinstance(value, int if isinstance(default, int) else int | float):
            return wrong_type
        remedy = out_of_bounds(key, value)
        return (
            Problem(key, f"{named} is {shown(value)}.", f"Use {remedy}; it is {default!r} by default.")
            if remedy
            else None
        )
    if isinstance(default, tuple | Mapping):
        return _parts_problem(key, value, default) if _has_type_of(value, default) else wrong_type
    return None if isinstance(value, str) else wrong_type


def _has_type_of(value: object, default: object) -> bool:
    return isinstance(value, list | tuple) if isinstance(default, tuple) else isinstance(value, Mapping)


def _parts_problem(key: str, value: Any, default: object) -> Problem | None:
    named = f"{SETTING}[{key!r}]"
    example = f"For example: {_EXAMPLES.get(key, default)!r}."
    if not value and default:
        return Problem(key, f"{named} is empty.", example)
    parts = [part for item in value.items() for part in item] if isinstance(value, Mapping) else value
    odd = [_a(type(part)) for part in parts if not isinstance(part, str)]
    return Problem(key, f"{named} holds {odd[0]}, where only strings may be.", example) if odd else None


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
    if settings.COMMAND_IMAGE:
        try:
            parse_image(settings.COMMAND_IMAGE)
        except InvalidJob as error:
            hint = "Use the tag that `build_job_image` printed, such as 'my-project-jobs:latest'."
            found.append(Problem("COMMAND_IMAGE", f"{SETTING}['COMMAND_IMAGE']: {error.message}", hint))
    return found


def _type_name(default: object) -> str:
    if isinstance(default, tuple):
        return "a list of strings"
    if isinstance(default, Mapping):
        return "a dict of strings"
    return {"str": "a string", "int": "a whole number", "float": "a number", "bool": "True or False"}[
        type(default).__name__
    ]


def _a(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'aeiou' else 'a'} {kind.__name__}"


def _forget(*, setting: str, **kwargs: object) -> None:  # noqa: ARG001
    if setting == SETTING:
        _load.cache_clear()


setting_changed.connect(_forget, dispatch_uid="container_manager.conf")
