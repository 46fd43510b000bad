"""A host's agent as its supervisor sees it: whatever it was asked for has an answer."""

from __future__ import annotations

import threading
import time

import pytest

from container_manager.executors.base import HostConfig
from container_manager.testing import FakeEngine, FakeExecutor
from container_manager.worker.agent import HostAgent
from container_manager.worker.crew import HARVEST_THREADS
from container_manager.worker.messages import Inbox, Key, Removed
from container_manager.worker.run import Run
from tests.unit.worker.test_sampler import a_run

PATIENCE_SECONDS = 20.0


class Fence:
    def is_valid(self) -> bool:
        return True


def agent_of(executor: FakeExecutor, inbox: Inbox) -> HostAgent:
    return HostAgent(
        host_id=1,
        name="one",
        executor=executor,
        installation="test",
        facts=executor.health(),
        inbox=inbox,
        fence=Fence(),
        launch_threads=1,
        resync_interval=60.0,
        usage_interval=60.0,
    )


def test_an_agent_that_is_left_answers_for_each_removal_that_did_not_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The engine hangs: nobody may wait for ever for the containers whose turn never comes."""
    hanging = threading.Semaphore(0)
    may_end = threading.Event()

    def remove(self: FakeExecutor, container_id: str) -> None:
        hanging.release()
        may_end.wait(PATIENCE_SECONDS)

    monkeypatch.setattr(FakeExecutor, "remove", remove)
    inbox = Inbox()
    agent = agent_of(
        FakeExecutor(HostConfig(name="one", connection_string="fake://one"), FakeEngine()), inbox
    )
    runs: list[Run] = [a_run(f"job-{number}") for number in range(HARVEST_THREADS + 3)]
    for run in runs:
        agent.remove(run)
    for _ in range(HARVEST_THREADS):
        assert hanging.acquire(timeout=PATIENCE_SECONDS)
    agent.close(patience=0.0)
    told: set[Key] = set()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(told) < len(runs) and time.monotonic() < deadline:
        message = inbox.get(0.1)
        if isinstance(message, Removed) and not message.gone:
            told.add(message.key)
    may_end.set()
    assert told == {run.key for run in runs}
