"""Executor types by name: the built-in ones, what other packages offer by entry point, what settings add."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points

from django.utils.module_loading import import_string

from container_manager.conf import get_settings
from container_manager.core.errors import ConfigurationError
from container_manager.executors.base import Executor, HostConfig

GROUP = "container_manager.executors"
PROCESS = "process"

_BUILT_IN = {
    "docker": "container_manager.executors.docker.executor.DockerExecutor",
    PROCESS: "container_manager.executors.process.executor.ProcessExecutor",
}


def known_types() -> dict[str, str]:
    """Name to dotted path; settings win over entry points, these over the built-in ones."""
    return {**_BUILT_IN, **_entry_points(), **get_settings().EXECUTORS}


def executor_class(executor_type: str) -> type[Executor]:
    """The class behind a name. Raises ConfigurationError for an unknown or forbidden one."""
    types = known_types()
    if executor_type not in types:
        raise ConfigurationError(
            f"executor_type: {executor_type!r} is not known. Known: {', '.join(sorted(types))}. "
            "Further ones go into CONTAINER_MANAGER_SETTINGS['EXECUTORS']."
        )
    if executor_type == PROCESS and not get_settings().ALLOW_PROCESS_EXECUTOR:
        raise ConfigurationError(
            "executor_type: 'process' runs jobs on this machine without any isolation and is off. "
            "For development only, set CONTAINER_MANAGER_SETTINGS['ALLOW_PROCESS_EXECUTOR'] = True."
        )
    loaded = import_string(types[executor_type])
    if not (isinstance(loaded, type) and issubclass(loaded, Executor)):
        raise ConfigurationError(
            f"executor_type: {executor_type!r} names {types[executor_type]}, which is not an Executor class."
        )
    return loaded


def open_executor(executor_type: str, config: HostConfig) -> Executor:
    """A new executor for one host. No network call is made yet."""
    return executor_class(executor_type)(config)


@lru_cache(maxsize=1)
def _entry_points() -> dict[str, str]:
    return {point.name: point.value.replace(":", ".") for point in entry_points(group=GROUP)}
