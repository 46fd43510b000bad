"""The verbs over the engine in memory."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

from container_manager.core.errors import (
    ConfigurationError,
    ContainerGone,
    HostUnreachable,
    ImageNotFound,
    NameTaken,
    NetworkNotFound,
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
from container_manager.executors.docker.options import OPTION_CHECKS
from container_manager.executors.options import Check
from container_manager.testing.engine import SCHEME, FakeEngine, fake_engine
from container_manager.testing.run import FakeContainer, moment

_LOOK_SECONDS = 0.02  # how often a waiting stream looks at the clock, at `hold` and at `stop`


class FakeExecutor(Executor):
    """The verbs over a `FakeEngine`: that of its address `fake://<name>`, or the one that it is given."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        isolation=True, networks=True, images=True, cpu_limit=True
    )
    #: As Docker's: what a project stores for its hosts may be stored for their stand-ins.
    option_checks: ClassVar[Mapping[str, Check]] = OPTION_CHECKS

    def __init__(self, config: HostConfig, engine: FakeEngine | None = None) -> None:
        super().__init__(config)
        name = config.connection_string.removeprefix(SCHEME)
        if engine is None and (name == config.connection_string or not name):
            raise ConfigurationError(
                f"connection_string: {config.connection_string!r} is no address of a fake engine; "
                f"for example {SCHEME}one."
            )
        self.engine = engine or fake_engine(name)
        self._closed = threading.Event()

    @classmethod
    def on(cls, engine: FakeEngine) -> FakeExecutor:
        """An executor for an engine at hand."""
        return cls(HostConfig(name=engine.name, connection_string=f"{SCHEME}{engine.name}"), engine)

    def health(self) -> HostFacts:
        """The engine's attributes."""
        with self.engine.call("health"):
            return HostFacts(
                engine_id=self.engine.engine_id,
                engine_version="fake",
                api_version="fake-1",
                cpus=self.engine.cpus,
                memory_bytes=self.engine.memory_bytes,
                system_time=moment(self.engine.clock()),
                user_namespaces=self.engine.user_namespaces,
                response_seconds=0.0,
                details={"executor": "fake"},
            )

    def pull(self, image: str, *, progress: Callable[[str], None] | None = None) -> ImageFacts:
        """Every image exists unless it is among `engine.missing_images`."""
        with self.engine.call("pull", image):
            missing = image not in self.engine.images
            if missing and (image in self.engine.missing_images or not self.config.auto_pull_images):
                raise ImageNotFound(f"The image {image} is not there.")
            if missing:
                self.engine.images.add(image)
                self.engine.pulls[image] += 1
                if progress is not None:
                    progress(f"pulled {image}")
            digest = hashlib.sha256(image.encode()).hexdigest()
            return ImageFacts(image_id=f"sha256:{digest}", pulled=missing)

    def create(self, spec: ContainerSpec) -> str:
        """A new container, or the one that is there already."""
        with self.engine.call("create", spec.name):
            holder = self.engine.containers.get(spec.name)
            if holder is not None:
                if holder.spec.labels() != spec.labels():
                    raise NameTaken(f"A container that is not this job's holds the name {spec.name}.")
                return holder.id
            if spec.image not in self.engine.images:
                raise ImageNotFound(f"The image {spec.image} is not on the host; pull it first.")
            for network in spec.networks:
                if self.engine.networks is not None and network.network_name not in self.engine.networks:
                    raise NetworkNotFound(f"There is no network {network.network_name}.")
            return self.engine.add(spec).id

    def start(self, container_id: str) -> None:
        """Begin the run, once."""
        with self.engine.call("start", container_id):
            container = self._get(container_id)
            if container.started_ns is None:
                self.engine.begin(container)

    def inspect(self, container_id: str) -> Observation:
        """What the engine knows."""
        with self.engine.call("inspect", container_id):
            container = self.engine.find(container_id)
            if container is None:
                return Observation(state=ContainerState.NOT_FOUND)
            return Observation(
                state=container.state,
                container_id=container.id,
                name=container.spec.name,
                labels=container.spec.labels(),
                exit_code=container.exit_code,
                oom_killed=container.oom_killed,
                error=container.error,
                created_at=moment(container.created_ns),
                started_at=None if container.started_ns is None else moment(container.started_ns),
                finished_at=None if container.finished_ns is None else moment(container.finished_ns),
                image_id=f"sha256:{hashlib.sha256(container.spec.image.encode()).hexdigest()}",
            )

    def list_owned(self, installation: str) -> list[OwnedContainer]:
        """Those with the installation's label."""
        with self.engine.call("list_owned", installation):
            return [
                OwnedContainer(
                    container_id=container.id,
                    name=container.spec.name,
                    labels=container.spec.labels(),
                    state=container.state,
                    created_at=moment(container.created_ns),
                )
                for container in self.engine.containers.values()
                if container.spec.installation == installation
            ]

    def watch(self, installation: str, stop: threading.Event) -> Iterator[EngineEvent]:
        """Everything that is published from now on."""
        with self.engine.call("watch", installation):
            seen, cuts = len(self.engine.events), self.engine.cuts
        yield EngineEvent(action=EventAction.CONNECTED)
        while not stop.is_set() and not self._closed.is_set():
            with self.engine.changed:
                self._raise_if_cut(cuts)
                self.engine.settle()
                if len(self.engine.events) == seen:
                    self.engine.changed.wait(_LOOK_SECONDS)
                new = self.engine.events[seen:]
                seen += len(new)
            for event in new:
                if event.labels[LABEL_INSTALLATION] == installation and not stop.is_set():
                    yield event

    def logs(
        self, container_id: str, *, since: LogCursor | None = None, follow: bool = False
    ) -> Iterator[LogFrame]:
        """The frames from the cursor on."""
        oldest, skip = since or (0, 0)
        with self.engine.call("logs", container_id):
            container = self._get(container_id)
            cuts, read = self.engine.cuts, 0
        while not self._closed.is_set():
            with self.engine.changed:
                if follow:
                    self._raise_if_cut(cuts)
                self.engine.settle()
                new = container.frames[read:]
                over = container.over
                if not new and follow and not over:
                    self.engine.changed.wait(_LOOK_SECONDS)
            read += len(new)
            wanted = [frame for frame in new if frame.timestamp_ns >= oldest]
            yield from wanted[skip:]
            skip = max(0, skip - len(wanted))
            if over or not follow:
                return

    def usage(self, container_id: str) -> UsageSample | None:
        """What the run says, by the time that has passed."""
        with self.engine.call("usage", container_id):
            container = self.engine.find(container_id)
            if container is None or not container.alive or container.started_ns is None:
                return None
            now, run = self.engine.clock(), container.run
            elapsed_ns = now - container.started_ns
            return UsageSample(
                taken_at=moment(now),
                cpu_ns=None if run.cpus_used is None else round(elapsed_ns * run.cpus_used),
                memory_bytes=run.memory_bytes,
                memory_peak_bytes=run.memory_peak_bytes,
            )

    def stop(self, container_id: str, *, force: bool = False) -> None:
        """End the run as it answers to the signal."""
        with self.engine.call("stop", container_id):
            container = self.engine.find(container_id)
            if container is None or not container.alive:
                return
            if container.state is ContainerState.PAUSED:
                self.engine.unpause(container.spec.name)
            exit_code = 137 if force else container.run.term_exit_code
            if exit_code is not None:
                self.engine.end(container, exit_code)

    def remove(self, container_id: str) -> bool:
        """Take the container out of the engine."""
        with self.engine.call("remove", container_id):
            container = self.engine.find(container_id)
            if container is None:
                return False
            self.engine.discard(container)
            return True

    def withdraw(self, container_id: str) -> bool:
        """Take out what never ran."""
        with self.engine.call("withdraw", container_id):
            container = self.engine.find(container_id)
            if container is not None and container.started_ns is not None:
                return False
            if container is not None:
                self.engine.discard(container)
            return not self.engine.starts[container_id]

    def remembered_starts(self, container_id: str) -> int | None:
        """Every start since the engine was made."""
        with self.engine.call("remembered_starts", container_id):
            container = self.engine.find(container_id)
            return self.engine.starts[container_id if container is None else container.spec.name]

    def close(self) -> None:
        """End the streams of this executor; the engine and its containers stay."""
        self._closed.set()
        with self.engine.changed:
            self.engine.changed.notify_all()

    def _get(self, reference: str) -> FakeContainer:
        container = self.engine.find(reference)
        if container is None:
            raise ContainerGone(f"There is no container {reference[:64]} (any more).")
        return container

    def _raise_if_cut(self, cuts: int) -> None:
        if self.engine.cuts != cuts:
            raise HostUnreachable(f"The stream from {SCHEME}{self.engine.name} broke off.")
