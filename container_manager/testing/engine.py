"""The engine in memory: its containers, and what goes wrong with them."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from container_manager.core.errors import (
    BadUser,
    CommandNotExecutable,
    CommandNotFound,
    ExecutorError,
    HostUnreachable,
    JobFault,
)
from container_manager.core.observation import (
    STDERR,
    STDOUT,
    ContainerState,
    EngineEvent,
    EventAction,
)
from container_manager.core.spec import ContainerSpec
from container_manager.executors.base import Executor
from container_manager.testing.run import LINE_NS, FakeContainer, FakeRun, cut

SCHEME = "fake://"
VERBS = frozenset(Executor.__abstractmethods__)

_START_CODES: dict[type[JobFault], int] = {CommandNotFound: 127, CommandNotExecutable: 126, BadUser: 128}

Runs = Mapping[tuple[str, ...], FakeRun] | Callable[[ContainerSpec], FakeRun]


@dataclass(slots=True, kw_only=True)
class _Failure:
    verb: str
    error: ExecutorError
    left: int | None
    after: bool


class FakeEngine:
    """A Docker daemon of the imagination. Safe to use from many threads.

    `runs` says what containers do: a mapping from argv, where a command that is not in it gets `default`,
    or a function of the spec. Change any attribute at any time; it holds from the next call on.
    """

    def __init__(
        self, name: str = "fake", *, runs: Runs | None = None, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.name = name
        self.engine_id = f"fake-{name}"
        self.clock = clock
        self.runs: Runs = {} if runs is None else runs
        self.default = FakeRun()
        self.images: set[str] = set()  # on the host
        self.missing_images: set[str] = set()  # in no registry
        self.networks: set[str] | None = None  # None: every network exists
        self.cpus = 4
        self.memory_bytes = 8 * 1024**3
        self.user_namespaces = False
        self.containers: dict[str, FakeContainer] = {}  # by name
        self.starts: Counter[str] = Counter()  # by name: how often a program really began
        self.pulls: Counter[str] = Counter()  # by image: how often it was really fetched
        self.calls: list[tuple[str, str]] = []  # verb and what it was called for, in order
        self.events: list[EngineEvent] = []
        self.changed = threading.Condition()
        self.cuts = 0  # how often open streams were broken
        self._created = 0
        self._down: ExecutorError | None = None
        self._failures: list[_Failure] = []

    # ------------------------------------------------------------------- what goes wrong, as planned

    def fail(self, verb: str, error: ExecutorError, *, times: int | None = 1, after: bool = False) -> None:
        """Let the next `times` calls of a verb fail with `error`; None: until `heal`.

        With `after` the call has its effect and only the answer is lost, as a timeout may mean.
        """
        if verb not in VERBS:
            raise ValueError(f"verb: {verb!r} is no verb of an executor; it has {', '.join(sorted(VERBS))}.")
        with self.changed:
            self._failures.append(_Failure(verb=verb, error=error, left=times, after=after))

    def heal(self, verb: str) -> None:
        """Drop what was planned for a verb."""
        with self.changed:
            self._failures = [failure for failure in self._failures if failure.verb != verb]

    def go_down(self, error: ExecutorError | None = None) -> None:
        """From now on every call fails and every stream breaks; containers live on."""
        with self.changed:
            self._down = error or HostUnreachable(f"Nothing answers at {SCHEME}{self.name}.")
        self.cut()

    def come_back(self) -> None:
        """Answer again."""
        with self.changed:
            self._down = None

    def cut(self) -> None:
        """Break every open `watch` and followed log once, with `HostUnreachable`."""
        with self.changed:
            self.cuts += 1
            self.changed.notify_all()

    # ----------------------------------------------------- what others do, behind the worker's back

    def write(self, name: str, data: bytes, *, stream: int = STDOUT) -> None:
        """Let a running container write more output."""
        with self.changed:
            container = self._running(name)
            newest = container.frames[-1].timestamp_ns if container.frames else 0
            container.frames += cut(stream, data, max(self.clock(), newest + LINE_NS))
            self.changed.notify_all()

    def finish(self, name: str, exit_code: int | None = None) -> None:
        """End a running container now, with the exit code of its run unless another one is given."""
        with self.changed:
            container = self._running(name)
            self.end(container, container.run.exit_code if exit_code is None else exit_code)

    def kill(self, name: str, *, oom: bool = False) -> None:
        """End a running container by SIGKILL, which somebody sent or, with `oom`, the kernel."""
        with self.changed:
            container = self._running(name)
            container.oom_killed = oom
            self.end(container, 137)

    def pause(self, name: str) -> None:
        """Freeze a running container; its duration does not end meanwhile."""
        with self.changed:
            container = self._running(name)
            container.state = ContainerState.PAUSED
            self.publish(EventAction.PAUSE, container)

    def unpause(self, name: str) -> None:
        """Let a paused container go on."""
        with self.changed:
            container = self._running(name)
            container.state = ContainerState.RUNNING
            self.publish(EventAction.UNPAUSE, container)

    def remove(self, name: str) -> None:
        """Remove a container, running or not."""
        with self.changed:
            self.settle()
            container = self.containers.get(name)
            if container is None:
                raise LookupError(f"The fake engine {self.name} has no container {name}.")
            self.discard(container)

    # --------------------------------------------------------------------- what the executor works on

    @contextmanager
    def call(self, verb: str, subject: str = "") -> Iterator[None]:
        """Around each call: record it, fail as planned, let the time pass that has passed."""
        with self.changed:
            self.calls.append((verb, subject))
            if self._down is not None:
                raise self._down
            self._fail_now(verb, after=False)
            self.settle()
            yield
            self._fail_now(verb, after=True)

    def find(self, reference: str) -> FakeContainer | None:
        """A container by name or id."""
        named = self.containers.get(reference)
        return named or next((found for found in self.containers.values() if found.id == reference), None)

    def add(self, spec: ContainerSpec) -> FakeContainer:
        """Create a container; its run is chosen now."""
        self._created += 1
        run = self.runs(spec) if callable(self.runs) else self.runs.get(spec.argv, self.default)
        container = FakeContainer(
            id=hashlib.sha256(f"{self.engine_id}/{self._created}".encode()).hexdigest(),
            spec=spec,
            run=run,
            created_ns=self.clock(),
        )
        self.containers[spec.name] = container
        return container

    def begin(self, container: FakeContainer) -> None:
        """Run the program, or refuse as its run says."""
        run = container.run
        if run.error is not None:
            container.error = run.error.detail or str(run.error)
            container.exit_code = _START_CODES.get(type(run.error), 125)
            raise run.error
        self.starts[container.spec.name] += 1
        container.state, container.started_ns = ContainerState.RUNNING, self.clock()
        moment = container.started_ns
        for stream, data in ((STDOUT, run.stdout), (STDERR, run.stderr), *run.output):
            frames = cut(stream, data, moment)
            container.frames += frames
            moment = frames[-1].timestamp_ns + LINE_NS if frames else moment
        self.publish(EventAction.START, container)

    def end(self, container: FakeContainer, exit_code: int, at_ns: int | None = None) -> None:
        """Let a container be over."""
        container.state, container.exit_code = ContainerState.EXITED, exit_code
        container.finished_ns = self.clock() if at_ns is None else at_ns
        if container.oom_killed:
            self.publish(EventAction.OOM, container)
        self.publish(EventAction.DIE, container)

    def discard(self, container: FakeContainer) -> None:
        """Remove a container, after it was killed if it ran."""
        if container.alive:
            self.end(container, 137)
        container.state = ContainerState.NOT_FOUND
        del self.containers[container.spec.name]
        self.publish(EventAction.DESTROY, container)

    def settle(self) -> None:
        """End what is due by the clock."""
        for container in list(self.containers.values()):
            if container.state is not ContainerState.RUNNING or container.started_ns is None:
                continue
            run = container.run
            due_ns = container.started_ns + round(run.duration * 1e9)
            if due_ns > self.clock() or (run.hold is not None and not run.hold.is_set()):
                continue
            container.oom_killed = run.oom_killed
            self.end(container, run.exit_code, due_ns if run.hold is None else self.clock())

    def publish(self, action: EventAction, container: FakeContainer) -> None:
        """Tell those who watch."""
        self.events.append(
            EngineEvent(
                action=action,
                container_id=container.id,
                labels=container.spec.labels(),
                at_ns=self.clock(),
                exit_code=container.exit_code if action is EventAction.DIE else None,
            )
        )
        self.changed.notify_all()

    def _running(self, name: str) -> FakeContainer:
        self.settle()
        container = self.containers.get(name)
        if container is None or not container.alive:
            state = "gone" if container is None else container.state.value
            raise LookupError(
                f"The container {name} of the fake engine {self.name} does not run; it is {state}."
            )
        return container

    def _fail_now(self, verb: str, *, after: bool) -> None:
        for failure in self._failures:
            if failure.verb == verb and failure.after is after and failure.left != 0:
                if failure.left is not None:
                    failure.left -= 1
                raise failure.error


_engines: dict[str, FakeEngine] = {}
_engines_lock = threading.Lock()


def fake_engine(name: str) -> FakeEngine:
    """The engine at `fake://<name>`, made at the first call."""
    with _engines_lock:
        return _engines.setdefault(name, FakeEngine(name))


def forget_fake_engines() -> None:
    """Drop every engine by name, between two tests. Executors keep the one they have."""
    with _engines_lock:
        _engines.clear()
