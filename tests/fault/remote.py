"""The public fake engine in one process, workers in others: they come and die, the engine stays.

The engine's process runs an `EngineServer`; a worker's host row says `remote://<path of its socket>`. A
call whose caller died has its effect all the same, as with a daemon.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from inspect import isgeneratorfunction
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, ClassVar

from container_manager.core.errors import ExecutorError, HostUnreachable
from container_manager.core.observation import (
    STDERR,
    STDOUT,
    ContainerState,
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
from container_manager.executors.base import Capabilities, Executor, HostConfig
from container_manager.testing import FakeEngine, FakeExecutor
from tests.fault.killing import POINTS, under_fire

SCHEME = "remote://"
LOOK_SECONDS = 0.1  # how often a waiting stream looks whether it is to stop


class WritingEngine(FakeEngine):
    """Programs that write a numbered line on each stream every so often: `argv` is ("write", n, seconds)."""

    def settle(self) -> None:
        for container in list(self.containers.values()):
            if container.state is ContainerState.RUNNING and container.started_ns is not None:
                argv = container.spec.argv
                if argv[0] == "write":
                    lines, every_ns = int(argv[1]), int(float(argv[2]) * 1e9)
                    due = min(lines, 1 + (self.clock() - container.started_ns) // max(1, every_ns))
                    for number in range(len(container.frames) // 2, due):
                        at = container.started_ns + number * every_ns
                        container.frames.append(LogFrame(STDOUT, at, b"out %d\n" % number))
                        container.frames.append(LogFrame(STDERR, at, b"err %d\n" % number))
        super().settle()


# ------------------------------------------------------------------------------------- the engine's


class _Gone:
    """Looks like an event: set once the caller has closed its end, or has died."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection

    def is_set(self) -> bool:
        return self._connection.closed or self._connection.poll(0)

    def set(self) -> None:
        """A close of the executor; the connection tells more."""


class EngineServer:
    """Answers the verbs for one engine, with a thread for each connection."""

    def __init__(self, engine: FakeEngine, path: str) -> None:
        self.address = f"{SCHEME}{path}"
        self._engine = engine
        self._listener = Listener(path, family="AF_UNIX", backlog=128)
        self._closing = False
        self._thread = threading.Thread(target=self._accept, name="engine-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more callers."""
        self._closing = True
        with Client(self._listener.address, family="AF_UNIX"):
            self._thread.join(5)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing:
            connection = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection[Any, Any]) -> None:
        gone: Any = _Gone(connection)
        executor = FakeExecutor.on(self._engine)
        executor._closed = gone
        with connection:
            try:
                while True:
                    verb, args, kwargs = connection.recv()
                    if verb == "watch":
                        args = (*args, gone)
                    self._answer(connection, getattr(executor, verb), args, kwargs)
            except (EOFError, OSError):
                return  # the caller went away

    def _answer(
        self, connection: Connection[Any, Any], verb: Callable[..., Any], args: Any, kwargs: Any
    ) -> None:
        try:
            if isgeneratorfunction(verb.__func__):  # type: ignore[attr-defined]
                for item in verb(*args, **kwargs):
                    connection.send(("item", item))
                connection.send(("end", None))
            else:
                connection.send(("answer", verb(*args, **kwargs)))
        except ExecutorError as error:
            connection.send(("error", error))


# ------------------------------------------------------------------------------------- the worker's


class RemoteExecutor(Executor):
    """The verbs of a `FakeEngine` that lives in another process."""

    capabilities: ClassVar[Capabilities] = FakeExecutor.capabilities

    def __init__(self, config: HostConfig) -> None:
        super().__init__(config)
        self._path = config.connection_string.removeprefix(SCHEME)
        self._mine = threading.local()
        self._closed = threading.Event()

    def health(self) -> HostFacts:
        return self._call("health")  # type: ignore[no-any-return]

    def pull(self, image: str, *, progress: Callable[[str], None] | None = None) -> ImageFacts:
        return self._call("pull", image)  # type: ignore[no-any-return]

    def create(self, spec: ContainerSpec) -> str:
        return self._call("create", spec)  # type: ignore[no-any-return]

    def start(self, container_id: str) -> None:
        self._call("start", container_id)

    def inspect(self, container_id: str) -> Observation:
        return self._call("inspect", container_id)  # type: ignore[no-any-return]

    def list_owned(self, installation: str) -> list[OwnedContainer]:
        return self._call("list_owned", installation)  # type: ignore[no-any-return]

    def watch(self, installation: str, stop: threading.Event) -> Iterator[EngineEvent]:
        yield from self._stream(stop, "watch", installation)

    def logs(
        self, container_id: str, *, since: LogCursor | None = None, follow: bool = False
    ) -> Iterator[LogFrame]:
        yield from self._stream(self._closed, "logs", container_id, since=since, follow=follow)

    def usage(self, container_id: str) -> UsageSample | None:
        return self._call("usage", container_id)  # type: ignore[no-any-return]

    def stop(self, container_id: str, *, force: bool = False) -> None:
        self._call("stop", container_id, force=force)

    def remove(self, container_id: str) -> bool:
        return self._call("remove", container_id)  # type: ignore[no-any-return]

    def withdraw(self, container_id: str) -> bool:
        return self._call("withdraw", container_id)  # type: ignore[no-any-return]

    def close(self) -> None:
        self._closed.set()

    def _call(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        try:
            connection = getattr(self._mine, "connection", None)
            if connection is None:
                connection = self._mine.connection = Client(self._path, family="AF_UNIX")
            connection.send((verb, args, kwargs))
            POINTS.cross(f"{verb}.sent")  # from here on it has its effect, whoever lives to hear of it
            kind, answer = connection.recv()
        except (EOFError, OSError) as error:
            self._mine.connection = None
            raise HostUnreachable(f"The engine at {self._path} is gone.") from error
        if kind == "error":
            raise answer
        return answer

    def _stream(self, stop: threading.Event, verb: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            with Client(self._path, family="AF_UNIX") as connection:
                connection.send((verb, args, kwargs))
                while not stop.is_set() and not self._closed.is_set():
                    if not connection.poll(LOOK_SECONDS):
                        continue
                    kind, item = connection.recv()
                    if kind == "end":
                        return
                    if kind == "error":
                        raise item
                    yield item
        except (EOFError, OSError) as error:
            raise HostUnreachable(f"The engine at {self._path} is gone.") from error


RemoteUnderFire = under_fire(RemoteExecutor)
