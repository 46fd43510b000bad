"""The seam between the worker and whatever runs containers.

A driver reports facts and raises `core.errors` only. Every verb is idempotent: repeating one after a
crash, a timeout or a lost answer does no harm. No verb decides what an observation means for a job.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from container_manager.core.observation import (
    EngineEvent,
    HostFacts,
    ImageFacts,
    LogCursor,
    LogFrame,
    Observation,
    OwnedContainer,
    UsageSample,
)
from container_manager.core.spec import ContainerSpec
from container_manager.executors.options import Check


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """How to reach a host: a plain copy of an `ExecutorHost` row, without the ORM."""

    name: str
    connection_string: str
    tls_enabled: bool = False
    tls_verify: bool = True
    tls_ca_cert: str = ""  # paths of PEM files on the worker's machine
    tls_client_cert: str = ""
    tls_client_key: str = ""
    timeout_seconds: float = 60.0
    auto_pull_images: bool = True
    max_parallel_calls: int = 16  # size of the connection pool
    options: dict[str, Any] = field(default_factory=dict)  # the row's `executor_config`


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a driver can do, for checks and for honest messages."""

    isolation: bool  # the job cannot see the worker's machine
    networks: bool  # named networks and aliases mean something
    images: bool  # images are pulled and exist; else the image name is only recorded
    cpu_limit: bool  # the CPU limit is enforced


class Executor(ABC):
    """One host, reached. Safe to call from many threads at once."""

    capabilities: ClassVar[Capabilities]
    #: The keys of `HostConfig.options` that this driver reads beside the common ones; any other is refused.
    option_checks: ClassVar[Mapping[str, Check]] = {}

    def __init__(self, config: HostConfig) -> None:
        self.config = config

    @abstractmethod
    def health(self) -> HostFacts:
        """Ask the host who it is. Raises `HostFault`."""

    @abstractmethod
    def pull(self, image: str, *, progress: Callable[[str], None] | None = None) -> ImageFacts:
        """See to it that `image` is on the host; fetch it only where it is missing and pulling is allowed.

        `progress` hears what the registry says, a line at a time. Raises `ImageNotFound`,
        `ImagePullFailed`, `HostFault`.
        """

    @abstractmethod
    def create(self, spec: ContainerSpec) -> str:
        """Create the container under its deterministic name and return its id; never start it.

        A container of that name with our labels and the same spec hash is adopted: its id is returned.
        Any other holder raises `NameTaken` and is left alone. Raises `JobFault`, `HostFault`.
        """

    @abstractmethod
    def start(self, container_id: str) -> None:
        """Start a container that never ran. Running already: no effect.

        A container that has run before is not started again: the call has no effect. Raises
        `CommandNotFound`, `CommandNotExecutable`, `BadUser`, `StartFailed`, `ContainerGone`, `HostFault`.
        """

    @abstractmethod
    def inspect(self, container_id: str) -> Observation:
        """Look at one container, by id or name. Gone is state NOT_FOUND. Raises `HostFault`."""

    @abstractmethod
    def list_owned(self, installation: str) -> list[OwnedContainer]:
        """Every container that carries the installation's label, whatever its state. Raises `HostFault`."""

    @abstractmethod
    def watch(self, installation: str, stop: threading.Event) -> Iterator[EngineEvent]:
        """Follow the engine's events about our containers until `stop` is set.

        The first event is CONNECTED, once the stream stands. Ends with `HostFault` when it breaks.
        After `stop` is set the iterator ends within a second.
        """

    @abstractmethod
    def logs(
        self, container_id: str, *, since: LogCursor | None = None, follow: bool = False
    ) -> Iterator[LogFrame]:
        """The container's output after `since`, in the order of the engine; to its end when `follow`.

        `since` is read as `LogCursor` says: inclusive, the first `frames` frames skipped. Following ends
        when the container has stopped; an engine may end it before a last line without a newline, so read
        once more without `follow` for all that there is. Close the iterator to stop earlier; `close` ends
        all of them. Raises `ContainerGone`, `HostFault`.
        """

    @abstractmethod
    def usage(self, container_id: str) -> UsageSample | None:
        """One sample of a running container; None once it is stopped or gone. Raises `HostFault`."""

    @abstractmethod
    def stop(self, container_id: str, *, force: bool = False) -> None:
        """Send SIGTERM, or SIGKILL when `force`; return at once. Stopped or gone: no effect.

        A paused container is resumed first, as it would never see the signal. Raises `HostFault`.
        """

    @abstractmethod
    def remove(self, container_id: str) -> bool:
        """Kill the container if it runs, and remove it with its anonymous volumes.

        True when it was there, False when it was gone already. Raises `HostFault`.
        """

    @abstractmethod
    def withdraw(self, container_id: str) -> bool:
        """See to it that a container that was never started never can be, by taking it away.

        A start that somebody sent before and that the engine has not carried out yet either comes first or
        finds nothing. True: it is gone, or never was there, and as far as the engine remembers it never ran.
        False: it runs, or has run; it was left where it is, if it was there. Raises `HostFault`.
        """

    def remembered_starts(self, container_id: str) -> int | None:
        """How often the engine has seen a container start since it runs itself; None: it cannot tell.

        0 for one that ran says that the engine was restarted meanwhile: what the program wrote at that time
        may be lost. Raises `HostFault`.
        """
        del container_id
        return None

    @contextmanager
    def anew(self) -> Iterator[Executor]:
        """The same host by connections made from now on, to the end of the block.

        A kept one may lead to an engine that the host's address has left: whoever keeps some overrides this.
        """
        yield self

    @abstractmethod
    def close(self) -> None:
        """Free connections and end every open stream of this executor: follows and watches return."""
