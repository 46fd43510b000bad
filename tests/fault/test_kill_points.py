"""Thousands of workers that die at a random crossing, one after the other, on the public fake engine.

The engine lives here; workers reach it through a socket, so that a call may have its effect and its caller
not live to hear of it. Seconds are printed with the kills.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db.models import Count
from pytest_django import Settings

from container_manager.core.spec import ContainerSpec
from container_manager.core.states import FINAL, Status
from container_manager.models import ContainerJob, ExecutorHost
from container_manager.testing import FakeRun
from tests.acceptance.running import until
from tests.db.workers import most_at_once
from tests.fault import FULL, checker
from tests.fault.checker import Evidence, Expected
from tests.fault.forks import Plan
from tests.fault.killers import Killer, killing, seed
from tests.fault.remote import EngineServer, WritingEngine
from tests.fault.settings import QUICK
from tests.fault.workers import fleet

pytestmark = pytest.mark.timeout(7200 if FULL else 600)

KILLS = int(os.environ.get("CM_KILLS", "") or (10_000 if FULL else 400))
SLOTS = 6
WAITING = 12  # jobs that are kept in the queue

SETTINGS: dict[str, Any] = {
    **QUICK,
    "POLL_INTERVAL": 0.1,
    "RESYNC_INTERVAL": 0.2,
    "USAGE_INTERVAL": 0.2,
    "STOP_GRACE_SECONDS": 0.2,
    "LEASE_SECONDS": 2.0,
}


class Feeder:
    """Keeps the queue filled with jobs whose ends are known, and cancels some of them."""

    def __init__(self, seed: str, engine: WritingEngine) -> None:
        self.expected: dict[Any, Expected] = {}
        self._dice = random.Random(seed)
        self._to_cancel: set[Any] = set()
        engine.runs = self._run

    def feed(self) -> None:
        """Fill the queue up."""
        waiting = ContainerJob.objects.filter(status=Status.PENDING).count()
        for _ in range(max(0, WAITING - waiting)):
            self._create()

    def cancel(self) -> None:
        """Cancel what runs and is meant to be cancelled."""
        if self._to_cancel:
            running = ContainerJob.objects.filter(pk__in=self._to_cancel, status=Status.RUNNING)
            for job in running:
                job.cancel()
                self._to_cancel.discard(job.pk)

    def _create(self) -> None:
        dice = self._dice
        kind = dice.choices(["plain", "fails", "talks", "cancelled", "times out"], [55, 15, 20, 6, 4])[0]
        lines, every, code, timeout = 2, 0.0, 0, 60
        ends = {"completed"}
        if kind == "fails":
            code, ends = dice.randint(1, 125), {"failed"}
        elif kind == "talks":
            lines, every = dice.randint(50, 300), 0.001 * dice.randint(0, 3)
        elif kind == "cancelled":
            lines, every, ends = 10_000, 0.02, {"cancelled"}
        elif kind == "times out":
            lines, every, ends, timeout = 10_000, 0.02, {"timeout"}, 1
        term = dice.choice(["143", "143", "0", "never"])
        job = ContainerJob.objects.create_job(
            "demo:1", ["write", str(lines), str(every), str(code), term], timeout_seconds=timeout
        )
        self.expected[job.pk] = Expected(
            stdout=_Lines(b"out", lines),
            stderr=_Lines(b"err", lines),
            statuses=frozenset(ends),
            exit_code=code,
        )
        if kind == "cancelled":
            self._to_cancel.add(job.pk)

    @staticmethod
    def _run(spec: ContainerSpec) -> FakeRun:
        _, lines, every, code, term = spec.argv
        return FakeRun(
            duration=max(0.005, int(lines) * float(every)),
            exit_code=int(code),
            term_exit_code=None if term == "never" else int(term),
        )


class _Lines(list[bytes]):
    """The numbered lines of one stream."""

    def __init__(self, word: bytes, count: int) -> None:
        super().__init__(b"%s %d\n" % (word, number) for number in range(count))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[tuple[WritingEngine, EngineServer]]:
    engine = WritingEngine("far")
    server = EngineServer(engine, str(tmp_path / "engine"))
    yield engine, server
    server.close()


def test_workers_that_die_anywhere(
    engine: tuple[WritingEngine, EngineServer],
    child_environment: dict[str, str],
    settings: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = SETTINGS
    fake, server = engine
    ExecutorHost.objects.create(
        name="far", executor_type="remote", connection_string=server.address, max_concurrent_jobs=SLOTS
    )
    environment = {
        **child_environment,
        "DJANGO_SETTINGS_MODULE": "tests.fault.settings",
        "CM_FAULT_SETTINGS": json.dumps({k: v for k, v in SETTINGS.items() if k != "EXECUTORS"}),
    }
    dice = seed("points")
    feeder = Feeder(dice, fake)
    plan = Plan(
        seed=dice,
        workers=2,
        most=int(os.environ.get("CM_KILL_MOST", "60")),
        folder=str(tmp_path / "killed"),
    )
    began = time.monotonic()
    with killing(plan, environment) as killer:
        _keep_busy(killer, feeder)
    seconds = time.monotonic() - began
    told = (
        f"CM_SEED={dice}: {killer.dead} kills in {seconds:.1f} s ({killer.dead / seconds:.1f}/s), "
        f"{len(feeder.expected)} jobs; killed at {dict(killer.places.most_common())}"
    )
    with capsys.disabled():
        print(f"\n{told}", flush=True)
    _settle(environment, tmp_path, fake, feeder)
    assert not killer.odd, "\n\n".join([told, *killer.odd[:3], f"{len(killer.odd)} of them"])
    report = checker.check(
        feeder.expected,
        Evidence(
            starts=fake.starts,
            containers={name: container.state.value for name, container in fake.containers.items()},
            most_at_once=most_at_once(fake),
            slots=SLOTS,
            context=told,
        ),
    )
    with capsys.disabled():
        print(report, flush=True)
    assert report.incomplete_logs == 0, told


def _keep_busy(killer: Killer, feeder: Feeder) -> None:
    def look() -> bool:
        assert killer.process.poll() is None, "the fork server is gone"
        feeder.feed()
        feeder.cancel()
        return killer.dead >= KILLS

    until(look, f"{KILLS} workers to die", seconds=max(200, KILLS / 2))


def _settle(environment: dict[str, str], folder: Path, engine: WritingEngine, feeder: Feeder) -> None:
    """A worker without orders does what is left."""
    with fleet(environment, folder) as calm:
        last = calm.start()
        finals = [status.value for status in FINAL]

        def done() -> bool:
            assert last.process.poll() is None, last.log
            feeder.cancel()
            return not ContainerJob.objects.exclude(status__in=finals).exists()

        try:
            until(done, "the rest to be done", seconds=90)
        except AssertionError as error:
            left = ContainerJob.objects.exclude(status__in=finals)
            counts = dict(left.values_list("status").annotate(Count("pk")))
            error.add_note(f"left: {counts}")
            for job in left[:3]:
                error.add_note(
                    f"{job.pk} {job.status} {list(job.events.values_list('transition', flat=True))}"
                )
            raise
        until(lambda: not engine.containers, "the engine to be empty", seconds=30)
        last.stop()
