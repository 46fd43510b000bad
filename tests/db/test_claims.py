"""Claims and leases under contention: several connections at once, on every database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from container_manager import lifecycle, signals
from container_manager.core.errors import LeaseLost
from container_manager.core.states import Status
from container_manager.models import ContainerJob, EngineLease, ExecutionMetadata, ExecutorHost, JobEvent
from container_manager.models.lease import HeldLease
from tests.db.factories import FAKE_SETTINGS, hold, make_host, make_job

pytestmark = pytest.mark.django_db(transaction=True)

DEADLINE_SECONDS = 30.0
_T = TypeVar("_T")


@pytest.fixture(autouse=True)
def fake_engines(settings: Any) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = FAKE_SETTINGS


def together(*calls: Callable[[], _T]) -> list[_T]:
    """Make the calls at the same moment, each on a connection of its own; returns their answers."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], _T]) -> _T:
        connection.ensure_connection()
        barrier.wait(DEADLINE_SECONDS)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(_on_own_connection, run, call) for call in calls]
        return [future.result(DEADLINE_SECONDS) for future in futures]


def _on_own_connection(call: Callable[..., _T], *arguments: Any) -> _T:
    try:
        return call(*arguments)
    finally:
        connections.close_all()


def wait_for(future: Future[_T]) -> _T:
    return future.result(DEADLINE_SECONDS)


def hosts(count: int) -> list[tuple[ExecutorHost, HeldLease]]:
    made = [make_host(f"h{number}") for number in range(count)]
    return [(host, hold(f"fake-{host.name}")) for host in made]


def in_order(jobs: list[ContainerJob]) -> list[ContainerJob]:
    return sorted(jobs, key=lambda job: (-job.priority, job.created_at, job.pk))


def claim(host: ExecutorHost, lease: HeldLease, limit: int) -> list[ContainerJob]:
    """A claim from the pool of all hosts."""
    others = list(ExecutorHost.objects.exclude(pk=host.pk).values_list("pk", flat=True))
    pairs = lifecycle.claim(lease, host, limit=limit, worker=f"worker:{host.name}", from_hosts=others)
    return [job for job, _ in pairs]


# ---------------------------------------------------------------------------------------- claims


def test_four_hosts_claim_every_job_once_by_priority_and_age() -> None:
    seats = hosts(4)
    ContainerJob.objects.create_jobs([{"image": "demo:1", "priority": n % 3} for n in range(60)])

    def drain(host: ExecutorHost, lease: HeldLease) -> list[ContainerJob]:
        taken, deadline = [], time.monotonic() + DEADLINE_SECONDS
        while ContainerJob.objects.pending().exists():
            assert time.monotonic() < deadline, "jobs are left that nobody can claim"
            taken += claim(host, lease, 3)
        return taken

    answers = together(*(lambda seat=seat: drain(*seat) for seat in seats))
    claimed = [job.pk for taken in answers for job in taken]
    assert len(claimed) == len(set(claimed)) == 60
    for (host, lease), taken in zip(seats, answers, strict=True):
        # Nobody gives back what it has locked, so for each of them the best is taken first.
        assert taken == in_order(taken)
        mine = ContainerJob.objects.filter(pk__in=[job.pk for job in taken])
        assert set(mine.values_list("status", "attempt", "docker_host", "lease_token")) <= {
            (Status.LAUNCHING.value, 1, host.pk, lease.token)
        }
    assert ExecutionMetadata.objects.count() == JobEvent.objects.filter(transition="claim").count() == 60


@pytest.mark.server
def test_a_claim_passes_over_what_another_one_holds() -> None:
    (first, second) = hosts(2)
    jobs = in_order([make_job(priority=n % 2) for n in range(6)])
    with ThreadPoolExecutor(1) as pool, transaction.atomic():
        assert claim(*first, 2) == jobs[:2]
        # Ours is not committed, and the other one does not wait for it.
        theirs = wait_for(pool.submit(_on_own_connection, claim, *second, 3))
        assert theirs == jobs[2:5]
    assert claim(*first, 3) == jobs[5:]


@pytest.mark.server
def test_a_claim_that_is_undone_leaves_its_jobs_to_others() -> None:
    (first, second) = hosts(2)
    jobs = in_order([make_job() for _ in range(2)])
    with ThreadPoolExecutor(1) as pool, transaction.atomic():
        claim(*first, 1)
        assert wait_for(pool.submit(_on_own_connection, claim, *second, 2)) == jobs[1:]
        transaction.set_rollback(True)
    assert claim(*second, 2) == jobs[:1]


def test_a_claim_leaves_alone_what_was_placed_by_its_owner() -> None:
    (first, second) = hosts(2)
    pinned = make_job(docker_host=second[0], priority=5)
    free = make_job()
    assert claim(*first, 2) == [free]
    assert claim(*second, 2) == [pinned]


@pytest.mark.parametrize("tells_keys", [True, False])
def test_what_a_claim_stores_has_its_keys(monkeypatch: pytest.MonkeyPatch, *, tells_keys: bool) -> None:
    """Where the database tells those of a bulk insert, and where it does not."""
    if not tells_keys:
        monkeypatch.setattr(type(connection.features), "can_return_rows_from_bulk_insert", False)
    ((host, lease),) = hosts(1)
    for _ in range(3):
        make_job()
    heard: list[JobEvent] = []

    def hear(event: JobEvent, **_: Any) -> None:
        heard.append(event)

    signals.job_status_changed.connect(hear)
    try:
        pairs = lifecycle.claim(lease, host, limit=3, worker="worker:test")
        again = pairs[0]
        lifecycle.release(lease, *again, worker="worker:test", message="", docker_log="")
        pairs[:1] = lifecycle.claim(lease, host, limit=1, worker="worker:test")
    finally:
        signals.job_status_changed.disconnect(hear)
    for job, execution in pairs:
        stored = ExecutionMetadata.objects.get(job=job, attempt=job.attempt)
        assert (execution.pk, execution.container_name) == (stored.pk, stored.container_name)
        assert lifecycle.start(
            lease, job, execution, at=timezone.now(), worker="worker:test", container_id="c", docker_log=""
        )
    assert sorted(pairs[0][0].executions.values_list("attempt", "container_id")) == [(1, ""), (2, "c")]
    told = [(event.pk, event.job_id, event.attempt, event.transition) for event in heard]
    known = JobEvent.objects.exclude(transition__in=["create", "start"])
    assert sorted(told) == sorted(known.values_list("pk", "job_id", "attempt", "transition"))


def test_the_claims_index_is_there() -> None:
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, ContainerJob._meta.db_table)
    assert found["cm_job_claim"]["columns"] == [
        "status",
        "docker_host_id",
        "not_before",
        "priority",
        "created_at",
    ]


# ---------------------------------------------------------------------------------------- leases


def test_one_of_four_workers_gets_the_lease() -> None:
    names = [f"worker:{number}" for number in range(4)]
    answers = together(*(lambda name=name: EngineLease.acquire("fake-one", name, 600.0) for name in names))
    (held,) = [lease for lease in answers if lease is not None]
    assert EngineLease.holder("fake-one") == names[answers.index(held)]
    assert held.token == 1


def test_a_take_over_waits_for_the_holders_transaction() -> None:
    ((host, lease),) = hosts(1)
    job = make_job()
    EngineLease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    begun, committing = threading.Event(), threading.Event()

    def take_over() -> tuple[HeldLease | None, bool]:
        begun.set()
        taken = EngineLease.acquire(lease.engine_id, "worker:other", 600.0)
        return taken, committing.is_set()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            assert claim(host, lease, 1) == [job]
            answer = pool.submit(_on_own_connection, take_over)
            assert begun.wait(DEADLINE_SECONDS)
            committing.set()
        taken, after = wait_for(answer)
    assert taken == HeldLease(lease.engine_id, lease.token + 1)
    assert after
    with pytest.raises(LeaseLost):
        claim(host, lease, 1)
