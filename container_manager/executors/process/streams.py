"""What is followed: one container's log, and everybody's events. Nothing here polls a file."""

from __future__ import annotations

import json
import os
import select
import threading
from collections.abc import Iterator
from typing import Any, Self

from container_manager.core.observation import ContainerState, EngineEvent, EventAction, LogCursor, LogFrame
from container_manager.core.spec import LABEL_INSTALLATION
from container_manager.executors.process import statedir
from container_manager.executors.process.bells import Bell
from container_manager.executors.process.container import Container
from container_manager.executors.process.store import Store

#: A `threading.Event` cannot be waited for together with descriptors: how often it is looked at.
_STOP_CHECK_SECONDS = 0.5


class Closing:
    """The executor's end, as something that `select` can wait for."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0)
        self._closed = False

    def __bool__(self) -> bool:
        return self._closed

    def __del__(self) -> None:
        os.close(self._descriptor)  # only now: streams may still be waiting on it after `close`

    def fileno(self) -> int:
        """Readable once closed, and for ever after."""
        return self._descriptor

    def close(self) -> None:
        """End every stream."""
        if not self._closed:
            self._closed = True
            os.eventfd_write(self._descriptor, 1)


def read_log(
    container: Container, since: LogCursor | None, closing: Closing, *, follow: bool
) -> Iterator[LogFrame]:
    """The frames from a cursor on; with `follow` until the container has ended. Raises FileNotFoundError."""
    oldest, skip = since or (0, 0)
    with (
        (container.directory / statedir.LOG).open("rb") as file,
        _Changes(container, follow=follow) as changes,
    ):
        while not closing:
            ended = not follow or changes.ended()  # asked before reading, so that nothing is missed
            for stream, timestamp_ns, payload in statedir.records(file):
                if timestamp_ns < oldest:
                    continue
                if skip:
                    skip -= 1
                    continue
                yield LogFrame(stream, timestamp_ns, payload)
                if closing:
                    return
            if ended:
                return
            changes.wait(closing)


class _Changes:
    """Waits until a container's log has grown or its shim has ended."""

    def __init__(self, container: Container, *, follow: bool) -> None:
        self._container = container
        self._bell = Bell(container.directory / statedir.BELLS) if follow else None
        self._shim: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bell is not None:
            self._bell.close()
        if self._shim is not None:
            os.close(self._shim)

    def ended(self) -> bool:
        if self._shim is None:
            self._shim = self._container.open_shim()
        return self._container.has_ended()

    def wait(self, closing: Closing) -> None:
        assert self._bell is not None  # noqa: S101  # for the type checker: only followers wait
        waited: list[Any] = [self._bell, closing, *([self._shim] if self._shim is not None else [])]
        select.select(waited, [], [])
        self._bell.take()


class Watch:
    """The events of one installation's containers.

    Shims announce starts. Their own end is what ends a container, however it came about, and the
    kernel tells it: so the end of a killed shim is an event too.
    """

    def __init__(self, store: Store, installation: str) -> None:
        self._store = store
        self._installation = installation
        self._bell = Bell(store.bells)
        self._shims: dict[int, Container] = {}
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bell.close()
        for descriptor in self._shims:
            os.close(descriptor)
        self._shims.clear()

    def events(self, stop: threading.Event, closing: Closing) -> Iterator[EngineEvent]:
        """CONNECTED first; then until `stop` is set or the executor is closed."""
        self._poll.register(closing, select.POLLIN)
        for container in self._store.all():
            if self._is_ours(container.labels):
                self._attend(container)
        yield EngineEvent(action=EventAction.CONNECTED)
        while not stop.is_set() and not closing:
            for descriptor, _ in self._poll.poll(_STOP_CHECK_SECONDS * 1000):
                if descriptor == self._bell.fileno():
                    for message in self._bell.take():
                        yield from self._heard(json.loads(message))
                elif descriptor in self._shims:
                    yield from self._died(descriptor)
                if stop.is_set() or closing:
                    return

    def _heard(self, message: dict[str, Any]) -> Iterator[EngineEvent]:
        if not self._is_ours(message["labels"]):
            return
        yield EngineEvent(
            action=EventAction(message["action"]),
            container_id=message["id"],
            labels=message["labels"],
            at_ns=message["at_ns"],
        )
        if message["action"] != EventAction.START:
            return
        container = self._store.find(message["id"])
        if container is None or container.id in {known.id for known in self._shims.values()}:
            return
        if not self._attend(container):
            yield from _end(container)

    def _attend(self, container: Container) -> bool:
        """Wait for the end of a running container; False when it does not run."""
        shim = container.open_shim()
        if shim is None:
            return False
        self._shims[shim] = container
        self._poll.register(shim, select.POLLIN)
        return True

    def _died(self, descriptor: int) -> Iterator[EngineEvent]:
        self._poll.unregister(descriptor)
        container = self._shims.pop(descriptor)
        os.close(descriptor)
        yield from _end(container)

    def _is_ours(self, labels: dict[str, str]) -> bool:
        return labels.get(LABEL_INSTALLATION) == self._installation


def _end(container: Container) -> Iterator[EngineEvent]:
    seen = container.observe()
    if seen.state is not ContainerState.EXITED:
        return  # removed meanwhile; that is another event
    at_ns = 0 if seen.finished_at is None else int(seen.finished_at.timestamp() * 1e9)
    if seen.oom_killed:
        yield EngineEvent(
            action=EventAction.OOM, container_id=container.id, labels=container.labels, at_ns=at_ns
        )
    yield EngineEvent(
        action=EventAction.DIE,
        container_id=container.id,
        labels=container.labels,
        at_ns=at_ns,
        exit_code=seen.exit_code,
    )
