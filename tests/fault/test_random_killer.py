"""Workers that die at random places and moments, on a real engine, while jobs of every kind are done.

The short form is for every run; `CM_FAULTS=full` kills 300 workers over 1,000 jobs. `CM_SEED` repeats the
seeds of a run: who dies where, and what the jobs do. What the machine does in between stays its own affair.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import docker
import pytest
from django.db.models import Count

from container_manager.core.states import FINAL, Status
from container_manager.models import ContainerJob, ExecutorHost
from tests.acceptance.running import until
from tests.engines import BASE_IMAGE
from tests.fault import FULL, checker
from tests.fault.checker import Evidence, Expected
from tests.fault.forks import Plan
from tests.fault.killers import Killer, killing, seed
from tests.fault.programs import Program, goes_on, sleeps, writes
from tests.fault.workers import fleet

pytestmark = [pytest.mark.engine, pytest.mark.timeout(7200 if FULL else 600)]

KILLS, JOBS = (300, 1000) if FULL else (25, 90)
WAITING = 15
SETTINGS: dict[str, Any] = {"LEASE_SECONDS": 1.5, "STOP_GRACE_SECONDS": 0.5, "POLL_INTERVAL": 0.1}
_FINALS = [status.value for status in FINAL]


class Feeder:
    """Creates jobs whose ends are known, a few ahead of the workers, and cancels some while they run."""

    def __init__(self, seed: str) -> None:
        self.expected: dict[Any, Expected] = {}
        self._dice = random.Random(seed)
        self._to_cancel: set[Any] = set()

    def feed(self) -> None:
        """Fill the queue up."""
        waiting = ContainerJob.objects.filter(status=Status.PENDING).count()
        for _ in range(min(WAITING - waiting, JOBS - len(self.expected))):
            self._create()

    def cancel(self) -> None:
        """Cancel what runs and is meant to be cancelled."""
        if self._to_cancel:
            for job in ContainerJob.objects.filter(pk__in=self._to_cancel, status=Status.RUNNING):
                job.cancel()
                self._to_cancel.discard(job.pk)

    def _create(self) -> None:
        dice = self._dice
        kind = dice.choices(["sleeps", "fails", "talks", "cancelled", "times out"], [45, 15, 25, 10, 5])[0]
        code, timeout, ends = 0, 60, "completed"
        program: Program
        if kind == "sleeps":
            program = sleeps(dice.choice([0.05, 0.1, 0.2, 0.5]))
        elif kind == "fails":
            code, ends = dice.randint(1, 124), "failed"
            program = writes(dice.randint(1, 20), exit_code=code)
        elif kind == "talks":
            program = writes(dice.randint(100, 400), burst=25, pause=dice.choice([0.02, 0.05, 0.1]))
        elif kind == "cancelled":
            program, ends = goes_on(obeys=dice.random() < 0.7), "cancelled"
        else:
            program, ends, timeout = goes_on(obeys=dice.random() < 0.7), "timeout", 1
        job = ContainerJob.objects.create_job(
            BASE_IMAGE, program.command, timeout_seconds=timeout, memory_limit=64, cpu_limit=0.5
        )
        self.expected[job.pk] = Expected(
            stdout=program.stdout, stderr=program.stderr, statuses=frozenset({ends}), exit_code=code
        )
        if kind == "cancelled":
            self._to_cancel.add(job.pk)


def test_workers_that_die_at_random(
    host: ExecutorHost,
    engine: docker.DockerClient,
    child_environment: dict[str, str],
    markers: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    environment = {
        **child_environment,
        "DJANGO_SETTINGS_MODULE": "tests.fault.settings",
        "CM_FAULT_SETTINGS": json.dumps(SETTINGS),
        "CM_FAULT_MARKERS": str(markers),
    }
    dice = seed("random")
    feeder = Feeder(dice)
    plan = Plan(
        seed=dice, workers=2, most=300, folder=str(tmp_path / "killed"), moments=0.5, moment_seconds=5.0
    )
    began = time.monotonic()
    with killing(plan, environment) as killer:
        _until_worked_through(killer, feeder)
    seconds = time.monotonic() - began
    told = (
        f"CM_SEED={dice}: {killer.dead} kills in {seconds:.1f} s, {len(feeder.expected)} jobs; "
        f"killed at {dict(killer.places.most_common())}"
    )
    with capsys.disabled():
        print(f"\n{told}", flush=True)
    with fleet(environment, tmp_path) as calm:  # a worker without orders does what is left
        last = calm.start()
        last.says("serving host")
        until(lambda: _settled(feeder), f"the rest to be done\n{told}", seconds=120)
        until(lambda: not checker.real_containers(engine), "the engine to be empty", seconds=60)
        last.stop()
    assert not killer.odd, "\n\n".join([told, *killer.odd[:3], f"{len(killer.odd)} of them"])
    evidence = Evidence(
        starts=checker.real_starts(markers), containers=checker.real_containers(engine), context=told
    )
    report = checker.check(feeder.expected, evidence)
    with capsys.disabled():
        print(report, flush=True)
    assert report.incomplete_logs == 0, f"{told}: the engine was well all the time"


def _settled(feeder: Feeder) -> bool:
    feeder.cancel()
    return not ContainerJob.objects.exclude(status__in=_FINALS).exists()


def _until_worked_through(killer: Killer, feeder: Feeder) -> None:
    def look() -> bool:
        assert killer.process.poll() is None, "the fork server is gone"
        feeder.feed()
        feeder.cancel()
        if killer.dead < KILLS or len(feeder.expected) < JOBS:
            return False
        done: int = ContainerJob.objects.filter(status__in=_FINALS).count()
        return done >= JOBS - WAITING

    try:
        until(look, f"{KILLS} workers to die and {JOBS} jobs to be done", seconds=3 * JOBS)
    except AssertionError as error:
        counts = dict(ContainerJob.objects.values_list("status").annotate(Count("pk")))
        error.add_note(f"CM_SEED={killer.plan.seed}: {killer.dead} dead; jobs: {counts}; {killer.odd[:2]}")
        raise
