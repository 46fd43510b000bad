"""A container that ends at the very moment at which its log is to be followed: what it said is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

from container_manager.core.observation import STDOUT, ContainerState, LogCursor, LogFrame, Observation
from container_manager.worker.crew import Crew
from container_manager.worker.harvest import Harvester
from container_manager.worker.link import Link
from container_manager.worker.logs import LogBuffer
from container_manager.worker.messages import Exited, Inbox, Key
from container_manager.worker.run import Phase, Run
from tests.unit.docker.test_translate import SPEC
from tests.unit.worker.frames import resumed

PATIENCE_SECONDS = 20.0
LINE = LogFrame(STDOUT, 1_700_000_000 * 10**9, b"the only line\n")


class Engine:
    """An ended container with one line, on an engine that takes its time: the follower begins meanwhile."""

    def __init__(self) -> None:
        self.meanwhile: Callable[[], None] = lambda: None
        self.drain_began, self.follower_began = threading.Event(), threading.Event()
        self.reported = threading.Event()
        self.executor = self

    def look(self, name: str) -> Observation:
        self.meanwhile()
        return Observation(
            state=ContainerState.EXITED, container_id="c" * 64, name=name, exit_code=0, oom_killed=False
        )

    def logs(self, name: str, *, since: LogCursor | None = None, follow: bool = False) -> Iterator[LogFrame]:
        if follow:
            self.follower_began.set()
            self.reported.wait(1.0)  # the line comes late, or at least later than a premature report
        else:
            self.drain_began.set()
            self.follower_began.wait(1.0)  # in vain where nobody may begin to follow any more
        yield from resumed([LINE], since)


class Workers:
    """The worker's threads; one that follows gets the processor when the engine says so."""

    name = "host"

    def __init__(self, engine: Engine) -> None:
        self.stopping = threading.Event()
        self._engine = engine

    def guarded(self, call: Callable[..., None]) -> Callable[..., None]:
        def late(*args: object) -> None:
            self._engine.drain_began.wait(2.0)  # in vain where the follower is waited for
            call(*args)

        return late

    def tick(self, seconds: float, call: Callable[[], None]) -> None:
        """No flush: the run is over before one is due."""


def test_a_follower_that_begins_while_the_end_is_looked_at_takes_nothing_away() -> None:
    engine, inbox = Engine(), Inbox()
    harvester = Harvester(cast("Link", engine), cast("Crew", Workers(engine)), inbox)
    logs = LogBuffer(column_bytes=1024, max_bytes=1 << 20, emit=lambda *_: True)
    run = Run(
        key=Key("job", 1), spec=SPEC, timeout_seconds=60, grace_seconds=1, logs=logs, phase=Phase.RUNNING
    )
    engine.meanwhile = lambda: harvester.follow(run)
    harvester.harvest(run)
    engine.reported.set()
    if run.follower is not None:
        run.follower.join(PATIENCE_SECONDS)
    reports: list[Any] = []
    while message := inbox.get(0):
        reports.append(message)
    assert [type(report) for report in reports] == [Exited]
    said = (reports[0].logs.stdout_text, reports[0].logs.stdout_bytes, reports[0].logs.complete)
    assert "the only line" in said[0], f"the container's line is lost: {said}"
    assert said[1:] == (len(LINE.payload), True), f"stored once, and read to the end: {said}"
