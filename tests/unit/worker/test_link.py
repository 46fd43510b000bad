"""What an engine says is believed while it is proven to be the one that we think of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from container_manager.core.errors import HostMismatch
from container_manager.core.observation import ContainerState
from container_manager.executors.base import HostConfig
from container_manager.executors.docker.executor import DockerExecutor
from container_manager.testing import FakeEngine, FakeExecutor, FakeRun
from container_manager.worker.link import Link
from tests.unit.docker.stub_engine import Answer, StubEngine
from tests.unit.docker.test_translate import SPEC, inspected

ID = "c" * 64


def an_engine(stack: ExitStack, engine_id: str, *, port: int = 0, knows_it: bool) -> StubEngine:
    """An engine on which our container runs, or one that knows nothing of it."""
    stub = StubEngine(port)
    stub.routes["GET /info"] = lambda answer: answer.json(200, {"ID": engine_id})

    def look(answer: Answer) -> None:
        if knows_it:
            answer.json(200, inspected(Status="running"))
        else:
            answer.json(404, {"message": "no such container"})

    stub.routes[f"GET /containers/{ID}/json"] = look
    return stack.enter_context(stub.serving())


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@contextmanager
def connected(stub: StubEngine) -> Iterator[tuple[DockerExecutor, Link]]:
    """An executor that keeps a connection to this engine, and a link to our own engine by it."""
    executor = DockerExecutor(HostConfig(name="x", connection_string=stub.address, timeout_seconds=5.0))
    try:
        facts = executor.health()
        object.__setattr__(facts, "engine_id", "ours")
        yield executor, Link(executor, facts)
    finally:
        executor.close()


def test_a_kept_connection_does_not_tell_who_is_at_the_address(stack: ExitStack) -> None:
    ours = an_engine(stack, "ours", knows_it=True)
    executor, link = stack.enter_context(connected(ours))
    link.prove()
    ours.lose_address()
    an_engine(stack, "another", port=ours.port, knows_it=False)
    assert executor.health().engine_id == "ours", "by the connection that was kept"
    with pytest.raises(HostMismatch, match="another"):
        link.ask()
    assert not link.is_proven
    assert link.mismatch is not None


def test_an_engine_that_the_address_has_left_makes_no_container_disappear(stack: ExitStack) -> None:
    another = an_engine(stack, "another", knows_it=False)
    executor, link = stack.enter_context(connected(another))
    another.lose_address()
    an_engine(stack, "ours", port=another.port, knows_it=True)
    link.prove()
    assert executor.inspect(ID).state is ContainerState.NOT_FOUND, "by the connection that was kept"
    seen = link.look(ID)
    assert seen is not None
    assert seen.state is ContainerState.RUNNING


def test_whoever_watches_anew_keeps_no_connection_from_before(stack: ExitStack) -> None:
    another = an_engine(stack, "another", knows_it=False)
    executor, link = stack.enter_context(connected(another))
    another.lose_address()
    ours = an_engine(stack, "ours", port=another.port, knows_it=True)
    ours.routes["GET /events"] = lambda answer: answer.begin()
    next(executor.watch("i", link.begin()))
    assert executor.inspect(ID).state is ContainerState.RUNNING


def test_an_absence_is_not_believed_where_another_engine_answers_behind_it() -> None:
    engine = FakeEngine()
    executor = FakeExecutor.on(engine)
    link = Link(executor, executor.health())
    end = link.begin()
    link.prove()
    engine.engine_id = "another"
    assert link.look(SPEC.name) is None
    assert end.is_set(), "the stream that stands is worth nothing"
    assert not link.is_proven
    engine.engine_id = "fake-fake"
    assert not link.begin().is_set()
    link.prove()
    seen = link.look(SPEC.name)
    assert seen is not None
    assert seen.state is ContainerState.NOT_FOUND


def test_what_is_there_costs_no_further_call() -> None:
    engine = FakeEngine()
    engine.default = FakeRun(duration=60)
    executor = FakeExecutor.on(engine)
    executor.pull(SPEC.image)
    link = Link(executor, executor.health())
    link.prove()
    container_id = executor.create(SPEC)
    engine.calls.clear()
    assert link.look(container_id) is not None
    assert engine.calls == [("inspect", container_id)]
