"""The rows of the table of faults in which a worker dies, each at its place, on a real engine."""

from __future__ import annotations

import time

import docker
import pytest

from container_manager.executors.docker.translate import moment
from container_manager.models import ContainerJob, EngineLease, ExecutorHost
from tests.acceptance.running import stored, until, until_status
from tests.fault import checker
from tests.fault.conftest import Court
from tests.fault.programs import goes_on, sleeps, writes
from tests.fault.workers import Fleet

pytestmark = pytest.mark.engine

SHORT = writes(3)


def state(engine: docker.DockerClient, job: ContainerJob) -> str:
    """The engine's word for the container of the job's latest attempt; empty when there is none."""
    return checker.real_containers(engine).get(stored(job).container_name, "")


def settled(court: Court, workers: Fleet, *, context: str = "") -> checker.Report:
    """Let another worker do what is left, and look."""
    workers.start("--once").ends()
    return court.verdict(context)


@pytest.mark.parametrize("point", ["claim.after", "pull.after", "create.before"])
def test_row_1_dead_after_the_intent_before_create(
    workers: Fleet, court: Court, engine: docker.DockerClient, point: str
) -> None:
    job = court.job(SHORT)
    workers.start(kill_at=point).dies()
    assert stored(job).status == "launching"
    assert state(engine, job) == ""
    settled(court, workers)
    assert court.starts() == 1


def test_row_1_what_a_dead_worker_had_claimed_is_not_the_fault_of_the_host(
    workers: Fleet, court: Court, host: ExecutorHost
) -> None:
    ExecutorHost.objects.update(max_concurrent_jobs=6)
    jobs = [court.job(SHORT) for _ in range(6)]
    workers.start(kill_at="claim.after").dies()
    assert {stored(job).status for job in jobs} == {"launching"}
    successor = workers.start()
    successor.says("serving host")
    # Nothing is wrong with the engine: no rest before the next launch, only the launches themselves.
    until(
        lambda: not ContainerJob.objects.exclude(status="completed").exists(),
        f"six jobs to be done; the worker says:\n{successor.log}",
        seconds=20,
    )
    successor.stop()
    court.verdict()
    assert court.starts() == 6


@pytest.mark.parametrize("point", ["create.sent", "create.after"])
def test_row_2_dead_after_create_was_sent_before_its_answer_is_saved(
    workers: Fleet, court: Court, engine: docker.DockerClient, point: str
) -> None:
    job = court.job(SHORT)
    workers.start(kill_at=point).dies()
    assert stored(job).status == "launching"
    settled(court, workers)
    assert court.starts() == 1


def test_row_3_dead_after_create_was_saved_before_start(
    workers: Fleet, court: Court, engine: docker.DockerClient
) -> None:
    job = court.job(SHORT)
    workers.start(kill_at="start.before").dies()
    assert state(engine, job) == "created"
    settled(court, workers)
    assert court.starts() == 1


@pytest.mark.parametrize("point", ["start.sent", "start.after", "job.start.before", "job.start.after"])
def test_row_4_dead_after_start_was_sent_before_it_is_saved(
    workers: Fleet, court: Court, engine: docker.DockerClient, point: str
) -> None:
    job = court.job(sleeps(1.0))
    workers.start(kill_at=point).dies()
    until(lambda: state(engine, job) in {"running", "exited"}, "the engine to start what it was asked to")
    settled(court, workers)
    assert court.starts() == 1
    assert stored(job).attempt == 1, "what had been started was adopted, not started again"


@pytest.mark.parametrize("point", ["logs.frame:700", "store_logs.before:2", "store_logs.after:2"])
def test_row_5_dead_in_the_middle_of_the_logs(
    workers: Fleet, court: Court, engine: docker.DockerClient, point: str
) -> None:
    job = court.job(writes(5000, burst=50, pause=0.08))
    workers.start(kill_at=point).dies()
    assert state(engine, job) == "running", "the test is about a job that still writes"
    successor = workers.start()
    until(lambda: stored(job).events.filter(transition="adopt").exists(), "the job to be adopted")
    assert checker.slots_agree(court.evidence())
    assert stored(job).status == "running"
    until_status(job, "completed")
    until(lambda: not state(engine, job), "the container to be removed")
    successor.stop()
    court.verdict()
    assert court.starts() == 1


def test_row_5_a_standby_knows_the_engines_time_when_it_takes_over(
    workers: Fleet, court: Court, engine: docker.DockerClient
) -> None:
    first = workers.start()
    first.says("serving host")
    seen = ExecutorHost.objects.get().health_checked_at
    standby = workers.start()
    until(lambda: ExecutorHost.objects.get().health_checked_at != seen, "the standby to see the host")
    born = time.monotonic()
    until(lambda: time.monotonic() - born > 6, "the standby to have stood by for a while", seconds=10)
    first.kill()
    standby.says("serving host")
    job = court.job(writes(100, burst=1, pause=0.05))
    until_status(job, "running")
    told = stored(job).started_at
    began = moment(engine.api.inspect_container(stored(job).container_name)["State"]["StartedAt"])
    assert told is not None
    assert began is not None
    until_status(job, "completed")
    until(lambda: not state(engine, job), "the container to be removed")
    standby.stop()
    court.verdict()
    assert abs((told - began).total_seconds()) < 2, f"the worker says {told}, the engine {began}"


@pytest.mark.parametrize("point", ["finish.before", "inspect.after"])
def test_row_6_dead_after_exit_before_the_result_is_committed(
    workers: Fleet, court: Court, engine: docker.DockerClient, point: str
) -> None:
    job = court.job(writes(5, exit_code=7), ends="failed", exit_code=7)
    workers.start(kill_at=point).dies()
    name = stored(job).container_name
    until(lambda: state(engine, job) == "exited", "the program to end")
    seen = engine.api.inspect_container(name)["State"]
    settled(court, workers)
    job = stored(job)
    assert (job.exit_code, job.exit_reason) == (7, "application_error")
    begun, ended = moment(seen["StartedAt"]), moment(seen["FinishedAt"])
    assert begun is not None
    assert ended is not None
    # The engine may note a start after the end of a program that was quick; the end is what counts.
    assert (job.started_at, job.completed_at) == (min(begun, ended), ended)
    assert court.starts() == 1


def test_row_6_an_end_in_time_is_no_timeout_however_late_it_is_seen(
    workers: Fleet, court: Court, engine: docker.DockerClient
) -> None:
    job = court.job(sleeps(0.2), timeout=1)
    workers.start(kill_at="start.after").dies()
    until(lambda: state(engine, job) == "exited", "the program to end")
    name = stored(job).container_name
    lease = EngineLease.objects.get()
    assert lease.expires_at is not None
    state_now = engine.api.inspect_container(name)["State"]
    begun, ended = moment(state_now["StartedAt"]), moment(state_now["FinishedAt"])
    assert begun is not None
    assert ended is not None
    assert (ended - begun).total_seconds() < 1.0, "the test is about a job within its limit"
    # The next worker comes when the lease has run out: two seconds after it began, with a limit of one.
    settled(court, workers)
    assert (stored(job).status, stored(job).exit_code) == ("completed", 0)


@pytest.mark.parametrize("point", ["finish.after", "remove.before", "remove.sent", "remove.after"])
def test_row_7_dead_after_the_commit_before_the_container_is_removed(
    workers: Fleet, court: Court, engine: docker.DockerClient, point: str
) -> None:
    job = court.job(SHORT)
    workers.start(kill_at=point).dies()
    before = ContainerJob.objects.filter(pk=job.pk).values().get()
    assert before["status"] == "completed"
    successor = workers.start()
    successor.says("serving host")
    until(lambda: not state(engine, job), "the container to be removed")
    successor.stop()
    assert ContainerJob.objects.filter(pk=job.pk).values().get() == before
    court.verdict()
    assert court.starts() == 1


POINTS_OF_A_STOP = ["stop.before", "stop.sent", "stop.after", "stop.after:2", "finish.before"]


@pytest.mark.parametrize("obeys", [True, False], ids=["obeys", "ignores TERM"])
@pytest.mark.parametrize("point", POINTS_OF_A_STOP)
def test_row_8_dead_during_a_cancel(
    workers: Fleet, court: Court, engine: docker.DockerClient, point: str, obeys: bool
) -> None:
    if obeys and point == "stop.after:2":
        point = "logs.after"  # a program that obeys is not sent a second signal
    job = court.job(goes_on(obeys=obeys), ends="cancelled", exit_code=None)
    first = workers.start(kill_at=point)
    until_status(job, "running")
    until(lambda: court.starts() == 1, "the program to run")
    assert stored(job).cancel()
    first.dies()
    settled(court, workers)
    assert court.starts() == 1


@pytest.mark.parametrize("obeys", [True, False], ids=["obeys", "ignores TERM"])
@pytest.mark.parametrize("point", POINTS_OF_A_STOP)
def test_row_8_dead_during_a_timeout(
    workers: Fleet, court: Court, engine: docker.DockerClient, point: str, obeys: bool
) -> None:
    if obeys and point == "stop.after:2":
        point = "logs.after"  # a program that obeys is not sent a second signal
    job = court.job(goes_on(obeys=obeys), ends="timeout", exit_code=None, timeout=1)
    workers.start(kill_at=point).dies()
    assert stored(job).status == "running"
    settled(court, workers)
    assert court.starts() == 1


def test_row_9_stopped_past_the_lease_right_before_the_start(
    workers: Fleet, court: Court, engine: docker.DockerClient
) -> None:
    job = court.job(sleeps(0.05))
    stale = workers.start(stop_at="start.before")
    stale.stops()
    settled(court, workers)
    before = list(stored(job).events.values())
    row = ContainerJob.objects.filter(pk=job.pk).values().get()
    stale.goes_on()
    stale.says("another worker has taken over")
    stale.stop()
    assert list(stored(job).events.values()) == before, "the stale worker wrote"
    assert ContainerJob.objects.filter(pk=job.pk).values().get() == row, "the stale worker wrote"
    court.verdict()
    assert court.starts() == 1
