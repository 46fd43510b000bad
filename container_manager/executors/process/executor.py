"""The verbs, over directories and shims."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from container_manager.core.errors import (
    BadUser,
    CommandNotExecutable,
    CommandNotFound,
    ContainerGone,
    CreateFailed,
    EngineFault,
    HostTimeout,
    HostUnreachable,
    JobFault,
    NameTaken,
    StartFailed,
)
from container_manager.core.observation import (
    ContainerState,
    EngineEvent,
    EventAction,
    HostFacts,
    ImageFacts,
    LogCursor,
    LogFrame,
    Observation,
    OwnedContainer,
    UsageSample,
)
from container_manager.core.spec import LABEL_INSTALLATION, ContainerSpec
from container_manager.executors.base import Capabilities, Executor, HostConfig
from container_manager.executors.options import Check, directory
from container_manager.executors.process import bells, shim, statedir, streams
from container_manager.executors.process.container import Container
from container_manager.executors.process.launch import launch
from container_manager.executors.process.store import NAME, Store, state_root

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KILL_SECONDS = 10.0
_START_FAULTS: dict[int, type[JobFault]] = {126: CommandNotExecutable, 127: CommandNotFound, 128: BadUser}


class ProcessExecutor(Executor):
    """Runs jobs as plain processes of the worker's own user, on the worker's own machine.

    For development and for looking around without Docker; nothing is isolated. Of the spec, `argv`,
    `environment`, `working_directory`, `memory_bytes` (see `shim`) and the labels take effect; image,
    user, CPU and process limits, networks, root file system and security options are only recorded.
    Nothing of the worker's environment reaches the program. An empty working directory means
    `options["working_directory"]`, or else the worker's own.

    State lies in a directory: `process:///some/dir`, or `options["state_dir"]`, or one per user below
    the system's directory for temporary files. A job outlives the worker that started it, and any other
    worker on the same directory can take it over. Needs Linux with /proc.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        isolation=False, networks=False, images=False, cpu_limit=False
    )
    option_checks: ClassVar[Mapping[str, Check]] = {"state_dir": directory, "working_directory": directory}

    def __init__(self, config: HostConfig) -> None:
        super().__init__(config)
        self._store = Store(state_root(config.connection_string, str(config.options.get("state_dir", ""))))
        self._closing = streams.Closing()

    def health(self) -> HostFacts:
        """Who runs the jobs: this machine, as this user, in that directory."""
        began = time.monotonic()
        with self._faults():
            self._store.prepare()
            self._store.sweep()
            free = shutil.disk_usage(self._store.root).free
        return HostFacts(
            engine_id=self._store.engine_id(),
            engine_version=f"Python {platform.python_version()}",
            api_version="process-1",
            cpus=len(os.sched_getaffinity(0)),
            memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            system_time=datetime.now(UTC),
            user_namespaces=False,
            response_seconds=time.monotonic() - began,
            details={
                "executor": "process",
                "isolation": "none",
                "operating_system": platform.platform(),
                "state_dir": str(self._store.root),
                "free_disk_bytes": free,
            },
        )

    def pull(
        self,
        image: str,  # noqa: ARG002
        *,
        progress: Callable[[str], None] | None = None,  # noqa: ARG002
    ) -> ImageFacts:
        """There are no images here: nothing is fetched, and every name is as good as another."""
        return ImageFacts(image_id="")

    def create(self, spec: ContainerSpec) -> str:
        """Write the directory of the container."""
        if not spec.argv:
            raise CreateFailed(
                "The job has no command, and no image brings one on the process executor: give a command."
            )
        if not NAME.fullmatch(spec.name):
            raise CreateFailed(
                f"The container name {spec.name!r} cannot be a file name; use letters, digits, _ . -"
            )
        with self._faults():
            self._store.prepare()
            container = self._store.find(spec.name) or self._store.add(spec.name, self._written(spec))
        if container.labels != spec.labels():
            raise NameTaken(f"A container that is not this job's holds the name {spec.name}.")
        return container.id

    def start(self, container_id: str) -> None:
        """Launch the shim; two calls at once launch two, of which one finds the lock taken and leaves."""
        with self._faults():
            container = self._get(container_id)
            refused = container.read(statedir.REFUSED)
            if refused is None:
                if container.ever_started():
                    return
                report = launch(container.directory, timeout_seconds=self.config.timeout_seconds)
                if report in {shim.STARTED, shim.BUSY}:
                    return
                if report == shim.GONE:
                    raise _gone(container_id)
                refused = json.loads(report)
        raise _START_FAULTS.get(refused["exit_code"], StartFailed)(
            "The program could not be started.", detail=refused["error"]
        )

    def inspect(self, container_id: str) -> Observation:
        """Read the state files, and look whether the shim lives."""
        with self._faults():
            container = self._store.find(container_id)
            if container is None:
                return Observation(state=ContainerState.NOT_FOUND)
            return container.observe()

    def list_owned(self, installation: str) -> list[OwnedContainer]:
        """Every directory whose spec carries the label."""
        with self._faults():
            self._store.prepare()
            owned = [
                found for found in self._store.all() if found.labels.get(LABEL_INSTALLATION) == installation
            ]
            return [_owned(container) for container in owned]

    def watch(self, installation: str, stop: threading.Event) -> Iterator[EngineEvent]:
        """Starts as the shims announce them, ends as the kernel tells them."""
        with self._faults():
            self._store.prepare()
            with streams.Watch(self._store, installation) as watch:
                yield from watch.events(stop, self._closing)

    def logs(
        self, container_id: str, *, since: LogCursor | None = None, follow: bool = False
    ) -> Iterator[LogFrame]:
        """The log file from the cursor on."""
        with self._faults():
            container = self._get(container_id)
            try:
                yield from streams.read_log(container, since, self._closing, follow=follow)
            except FileNotFoundError as error:
                raise _gone(container_id) from error

    def usage(self, container_id: str) -> UsageSample | None:
        """All processes below the shim, read from /proc."""
        with self._faults():
            container = self._store.find(container_id)
            return None if container is None else container.usage()

    def stop(self, container_id: str, *, force: bool = False) -> None:
        """SIGTERM to the program and its process group; with `force` SIGKILL, and nothing is left."""
        with self._faults():
            container = self._store.find(container_id)
            if container is not None:
                container.signal(force=force)

    def remove(self, container_id: str) -> bool:
        """Kill, wait for the shim to end, and delete the directory."""
        with self._faults():
            container = self._store.find(container_id)
            if container is None:
                return False
            lock = None
            if not container.ever_started():
                try:
                    lock = statedir.take_lock(container.directory)  # keeps a start away
                except FileNotFoundError:
                    return False
            try:
                if not container.kill(timeout_seconds=_KILL_SECONDS):
                    raise HostTimeout(
                        f"{container.name} outlived SIGKILL by {_KILL_SECONDS:g} s; nothing is removed."
                    )
                return self._discard(container)
            finally:
                if lock is not None:
                    os.close(lock)

    def withdraw(self, container_id: str) -> bool:
        """Delete the directory under the lock that a start would need."""
        with self._faults():
            container = self._store.find(container_id)
            if container is None:
                return True
            try:
                lock = statedir.take_lock(container.directory)
            except FileNotFoundError:
                return True
            if lock is None:
                return False  # a shim has it
            try:
                if container.ever_started():
                    return False
                self._discard(container)
                return True
            finally:
                os.close(lock)

    def close(self) -> None:
        """End every stream of this object; jobs and their shims run on."""
        self._closing.close()

    def _written(self, spec: ContainerSpec) -> dict[str, object]:
        interpreter = sys.executable
        environment = {
            "PATH": f"{Path(interpreter).parent}{os.pathsep}{_DEFAULT_PATH}",
            "HOME": "/tmp",  # noqa: S108  # what a container of ours has, too
            **dict(spec.environment),
        }
        return {
            "labels": spec.labels(),
            "image": spec.image,
            "argv": spec.argv,
            "environment": environment,
            "working_directory": spec.working_directory
            or str(self.config.options.get("working_directory") or Path.cwd()),
            "memory_bytes": spec.memory_bytes,
            "interpreter": interpreter,
        }

    def _discard(self, container: Container) -> bool:
        if not self._store.discard(container):
            return False
        event = {"action": EventAction.DESTROY, "id": container.id, "name": container.name}
        message = {**event, "labels": container.labels, "at_ns": time.time_ns()}
        bells.ring(self._store.bells, json.dumps(message).encode())
        return True

    def _get(self, reference: str) -> Container:
        container = self._store.find(reference)
        if container is None:
            raise _gone(reference)
        return container

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """The only translation of errors: what the system refuses us is a fault of the host."""
        try:
            yield
        except PermissionError as error:
            raise HostUnreachable(
                f"The state directory {self._store.root} cannot be used: {error.strerror}.",
                detail=str(error),
            ) from error
        except OSError as error:
            raise EngineFault(f"The process executor is in trouble: {error}", detail=str(error)) from error


def _owned(container: Container) -> OwnedContainer:
    seen = container.observe()
    return OwnedContainer(
        container_id=container.id,
        name=container.name,
        labels=container.labels,
        state=seen.state,
        created_at=seen.created_at,
    )


def _gone(reference: str) -> ContainerGone:
    return ContainerGone(f"There is no container {reference[:64]} (any more).")
