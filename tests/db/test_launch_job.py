"""`launch_job` of the factory over the fake engine: once, whatever answer gets lost."""

from __future__ import annotations

import threading

import pytest

from container_manager.core.errors import EngineFault, HostFault, HostTimeout, LeaseLost, Undecided
from container_manager.executors.factory import ExecutorFactory, HostExecutor
from container_manager.models import EngineLease, ExecutorHost, RegisteredWorker
from container_manager.testing import FakeEngine, FakeExecutor, FakeRun
from tests.db.factories import make_job
from tests.db.workers import drain, until_status, working

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def facade(engine: FakeEngine, host: ExecutorHost) -> HostExecutor:
    return ExecutorFactory.create_executor("fake", {"docker_host": host})


def test_the_next_worker_adopts_what_was_launched_by_hand(engine: FakeEngine, facade: HostExecutor) -> None:
    engine.default = FakeRun(hold=threading.Event())
    job = make_job()
    identifier = facade.launch_job(job)
    assert (job.status, identifier) == ("running", job.container_name)
    assert EngineLease.holder("fake-one") == ""
    assert RegisteredWorker.objects.get().stopped_at is not None
    engine.finish(identifier)
    assert drain() == []
    job.refresh_from_db()
    assert (job.status, dict(engine.starts)) == ("completed", {identifier: 1})


def test_a_start_whose_answer_was_lost_is_found_running(engine: FakeEngine, facade: HostExecutor) -> None:
    engine.default = FakeRun(hold=threading.Event())
    engine.fail("start", HostTimeout("no answer"), after=True)
    job = make_job()
    identifier = facade.launch_job(job)
    assert (job.status, dict(engine.starts)) == ("running", {identifier: 1})


def test_a_start_that_had_no_effect_gives_the_job_back(engine: FakeEngine, facade: HostExecutor) -> None:
    engine.fail("start", EngineFault("in trouble"))
    job = make_job()
    with pytest.raises(HostFault):
        facade.launch_job(job)
    assert (job.status, engine.containers, dict(engine.starts)) == ("pending", {}, {})


def test_a_start_that_nobody_can_tell_of_is_left_to_the_next_worker(
    engine: FakeEngine, facade: HostExecutor
) -> None:
    engine.default = FakeRun(hold=threading.Event())
    engine.fail("start", HostTimeout("no answer"), after=True)
    engine.fail("withdraw", HostTimeout("no answer either"))
    job = make_job()
    with pytest.raises(Undecided, match="the next worker finds out"):
        facade.launch_job(job)
    assert job.status == "launching"
    with working():
        until_status(job, "running")
        engine.finish(job.container_name)
        until_status(job, "completed")
    assert (job.attempt, dict(engine.starts)) == (1, {job.container_name: 1})


def test_nothing_is_started_once_the_engine_is_anothers(
    engine: FakeEngine, facade: HostExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull = FakeExecutor.pull

    def long_pull(self: FakeExecutor, image: str, **more: object) -> object:
        held = EngineLease.objects.get()
        EngineLease.seize(held.engine_id, held.token, "worker:another", 60.0)
        return pull(self, image)

    monkeypatch.setattr(FakeExecutor, "pull", long_pull)
    with pytest.raises(LeaseLost):
        facade.launch_job(make_job())
    assert dict(engine.starts) == {}
