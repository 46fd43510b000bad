"""What callers may do to a job by saving it, and what they hear about it."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import close_old_connections, connection, connections, transaction
from django.db.models.signals import post_save
from django.utils import timezone

from container_manager import lifecycle, signals
from container_manager.core.errors import IllegalTransition, InvalidJob
from container_manager.core.outcome import ExitReason, Outcome
from container_manager.core.states import FINAL, Status
from container_manager.models import ContainerJob, ExecutionMetadata, ExecutorHost, JobEvent
from container_manager.models.lease import HeldLease
from container_manager.records import LogState, Usage
from tests.db.factories import fake_settings, hold, make_host, make_job

pytestmark = pytest.mark.django_db(transaction=True)

WORKER = "worker:test"
NO_LOGS = LogState(chunk_count=0, cursor=None, stdout_bytes=0, stderr_bytes=0, complete=True, truncated=False)
SUCCESS = Outcome(status=Status.COMPLETED, reason=ExitReason.SUCCESS, exit_code=0, message="")


@pytest.fixture
def host(settings: Any) -> ExecutorHost:
    settings.CONTAINER_MANAGER_SETTINGS = fake_settings()
    return make_host()


@pytest.fixture
def lease(host: ExecutorHost) -> HeldLease:
    return hold()


def claim(lease: HeldLease, host: ExecutorHost) -> tuple[ContainerJob, ExecutionMetadata]:
    ((job, execution),) = lifecycle.claim(lease, host, limit=1, worker=WORKER)
    return job, execution


def start(lease: HeldLease, job: ContainerJob, execution: ExecutionMetadata) -> bool:
    return lifecycle.start(
        lease, job, execution, at=timezone.now(), worker=WORKER, container_id="c" * 64, docker_log="up\n"
    )


def finish(lease: HeldLease, job: ContainerJob, execution: ExecutionMetadata) -> bool:
    return lifecycle.finish(
        lease,
        job,
        execution,
        SUCCESS,
        started_at=timezone.now(),
        finished_at=timezone.now(),
        worker=WORKER,
        usage=Usage(),
        logs=NO_LOGS,
        chunks=(),
        docker_log="over\n",
    )


def brought_to(status: Status, lease: HeldLease, host: ExecutorHost) -> ContainerJob:
    """A fresh instance of a job with that status."""
    job = make_job(docker_host=host)
    if status is Status.CANCELLED:
        job.cancel()
    elif status is not Status.PENDING:
        held = claim(lease, host)
        if status is not Status.LAUNCHING:
            assert start(lease, *held)
        if status is Status.COMPLETED:
            assert finish(lease, *held)
    found: ContainerJob = ContainerJob.objects.get(pk=job.pk)
    assert found.status == status
    return found


# ------------------------------------------------------------------------------------ saving a status


@pytest.mark.parametrize("status", [Status.PENDING, Status.LAUNCHING, Status.RUNNING])
@pytest.mark.parametrize("fields", [None, ["status"], ["status", "name"]])
def test_a_saved_cancelled_cancels(
    host: ExecutorHost, lease: HeldLease, status: Status, fields: list[str] | None
) -> None:
    job = brought_to(status, lease, host)
    job.status = "cancelled"
    job.save(update_fields=fields)
    job.refresh_from_db()
    assert (job.status, job.exit_reason) == ("cancelled", "cancelled")
    assert job.completed_at is not None
    last = job.events.last()
    assert (last.transition, last.from_status, last.to_status) == ("cancel", status, "cancelled")
    assert last.actor == "code"


@pytest.mark.parametrize("status", [Status.PENDING, Status.LAUNCHING, Status.RUNNING, Status.COMPLETED])
def test_any_other_status_raises_and_changes_nothing(
    host: ExecutorHost, lease: HeldLease, status: Status
) -> None:
    job = brought_to(status, lease, host)
    before = ContainerJob.objects.filter(pk=job.pk).values().get()
    events = JobEvent.objects.count()
    for wish in [*Status, "done"]:
        if wish == status or (wish is Status.CANCELLED and status not in FINAL):
            continue
        job = ContainerJob.objects.get(pk=job.pk)
        job.status, job.name = str(wish), "renamed"
        with pytest.raises(IllegalTransition) as caught:
            job.save()
        assert str(caught.value).startswith("status: ")
        assert f"'{status}'" in str(caught.value)
    assert ContainerJob.objects.filter(pk=job.pk).values().get() == before
    assert JobEvent.objects.count() == events


def test_a_status_set_back_after_cancel_raises(host: ExecutorHost) -> None:
    job = make_job()
    assert job.cancel()
    job.status = "pending"
    with pytest.raises(IllegalTransition, match="'cancelled' cannot become 'pending'"):
        job.save()


def test_queries_cannot_write_a_status(host: ExecutorHost) -> None:
    job = make_job()
    with pytest.raises(IllegalTransition, match=r"status: .*cancel\(\)"):
        ContainerJob.objects.update(status="completed")
    with pytest.raises(IllegalTransition, match=r"status: .*cancel\(\)"):
        ContainerJob.objects.filter(pk=job.pk).update(name="x", status="completed")
    with pytest.raises(IllegalTransition, match=r"status: .*cancel\(\)"):
        ContainerJob.objects.bulk_update([job], ["status"])
    with pytest.raises(IllegalTransition, match=r"status: .*'completed'"):
        ContainerJob.objects.update_or_create(pk=job.pk, defaults={"status": "completed"})
    job.refresh_from_db()
    assert (job.status, job.name) == ("pending", "")
    assert ContainerJob.objects.update(name="queries may do this") == 1
    ContainerJob.objects.update_or_create(pk=job.pk, defaults={"name": "and this"})
    assert ContainerJob.objects.get().name == "and this"


# ------------------------------------------------------------------------------------ stale instances


def test_a_stale_save_does_not_undo_a_result(host: ExecutorHost, lease: HeldLease) -> None:
    stale = make_job()
    job, execution = claim(lease, host)
    start(lease, job, execution)
    finish(lease, job, execution)
    stale.name = "seen late"
    stale.save()
    stored = ContainerJob.objects.get(pk=stale.pk)
    assert (stored.status, stored.exit_code, stored.exit_reason) == ("completed", 0, "success")
    assert (stored.docker_log, stored.name, stored.attempt) == ("over\n", "seen late", 1)


def test_columns_of_the_worker_are_not_a_callers_to_name(host: ExecutorHost) -> None:
    job = make_job()
    job.exit_code, job.completed_at = 7, timezone.now()
    for fields in (["exit_code"], ["name", "exit_code"], ["attempt"], ["stdout_log"], ["completed_at"]):
        with pytest.raises(IllegalTransition, match=r"written by the worker alone"):
            job.save(update_fields=fields)
    job.save()
    assert ContainerJob.objects.get(pk=job.pk).exit_code is None


@pytest.mark.parametrize("status", [Status.LAUNCHING, Status.RUNNING, Status.COMPLETED])
def test_the_container_is_fixed_once_claimed(host: ExecutorHost, lease: HeldLease, status: Status) -> None:
    job = brought_to(status, lease, host)
    job.memory_limit, job.name = 64, "renamed"
    with pytest.raises(IllegalTransition, match="memory_limit: fixed once the job was claimed"):
        job.save()
    stored = ContainerJob.objects.get(pk=job.pk)
    assert (stored.memory_limit, stored.name) == (256, "")
    job.save(update_fields=["name"])  # says itself that the limit is not meant
    assert ContainerJob.objects.get(pk=job.pk).name == "renamed"


def test_a_changed_command_gets_the_form_that_it_needs(host: ExecutorHost) -> None:
    job = make_job(docker_host=host, command="echo a")
    assert job.command_form == "exec"
    job.command = "echo a | wc -c"
    job.save()
    job.refresh_from_db()
    assert (job.command, job.command_form) == ("echo a | wc -c", "shell")


def test_a_pending_job_can_be_changed_and_is_checked_again(host: ExecutorHost) -> None:
    job = make_job(command="true")
    job.memory_limit, job.environment_vars = 64, {"A": "1"}
    job.save()
    stored = ContainerJob.objects.get(pk=job.pk)
    assert (stored.memory_limit, stored.environment) == (64, {"A": "1"})
    stored.memory_limit = 0
    with pytest.raises(InvalidJob, match="memory_limit"):
        stored.save()
    assert ContainerJob.objects.get(pk=job.pk).memory_limit == 64


def test_a_change_in_place_is_seen(host: ExecutorHost) -> None:
    job = make_job(environment_vars={"A": "1"})
    job.environment_vars["B"] = "2"
    job.save()
    assert ContainerJob.objects.get(pk=job.pk).environment == {"A": "1", "B": "2"}


def test_what_update_fields_leaves_out_is_still_to_be_saved(host: ExecutorHost) -> None:
    job = make_job()
    job.memory_limit, job.name = 64, "first"
    job.save(update_fields=["name"])
    assert ContainerJob.objects.get(pk=job.pk).memory_limit == 256
    job.save()
    assert ContainerJob.objects.get(pk=job.pk).memory_limit == 64
    job.status = "cancelled"
    job.save(update_fields=["name"])
    assert ContainerJob.objects.get(pk=job.pk).status == "pending"
    job.save()
    assert ContainerJob.objects.get(pk=job.pk).status == "cancelled"


def test_a_deferred_column_read_late_hides_no_change(host: ExecutorHost) -> None:
    pk = make_job().pk
    job = ContainerJob.objects.without_logs().get(pk=pk)
    job.memory_limit = 64
    assert job.stdout_log == ""  # read now
    job.save()
    assert ContainerJob.objects.get(pk=pk).memory_limit == 64


def test_a_row_read_without_its_status_can_be_saved(host: ExecutorHost) -> None:
    pk = make_job().pk
    job = ContainerJob.objects.only("name").get(pk=pk)
    job.name = "narrow"
    job.save()
    stored = ContainerJob.objects.get(pk=pk)
    assert (stored.name, stored.status) == ("narrow", "pending")


def test_a_host_named_later_is_kept(host: ExecutorHost) -> None:
    other = make_host("two")
    job = make_job()
    assert not job.host_pinned
    job.docker_host = other
    job.save()
    stored = ContainerJob.objects.get(pk=job.pk)
    assert (stored.docker_host, stored.host_pinned) == (other, True)


# -------------------------------------------------------------------------------------------- cancels


def test_cancel_ends_a_pending_job_and_asks_for_an_active_one(host: ExecutorHost, lease: HeldLease) -> None:
    pending = make_job()
    assert pending.cancel(by="user:7")
    assert (pending.status, pending.events.last().actor) == ("cancelled", "user:7")
    assert not pending.cancel()

    job = make_job()
    held = claim(lease, host)
    assert job.cancel(by="user:7")
    assert (job.status, job.cancel_requested_by) == ("launching", "user:7")
    assert job.cancel(by="user:8")  # asked for already
    assert job.events.filter(transition="cancel_requested").count() == 1
    assert start(lease, *held)
    assert finish(lease, *held)
    assert not ContainerJob.objects.get(pk=job.pk).cancel()


def test_a_job_given_back_after_a_wish_to_cancel_is_cancelled(host: ExecutorHost, lease: HeldLease) -> None:
    job = make_job()
    mine, execution = claim(lease, host)
    assert job.cancel(by="user:7")
    assert lifecycle.release(
        lease, mine, execution, worker=WORKER, message="the host broke down", docker_log="pull: no answer\n"
    )
    job.refresh_from_db()
    assert (job.status, job.exit_reason, job.docker_log) == ("cancelled", "cancelled", "pull: no answer\n")
    assert job.events.last().message == "the host broke down"


def test_a_container_that_ended_unseen_under_a_cancelled_job_keeps_its_record(
    host: ExecutorHost, lease: HeldLease
) -> None:
    job = make_job()
    mine, execution = claim(lease, host)
    job.status = "cancelled"
    job.save()
    assert not finish(lease, mine, execution)  # launching in our memory, and it had run
    job.refresh_from_db()
    assert (job.status, job.exit_reason, job.exit_code) == ("cancelled", "cancelled", 0)
    assert (job.docker_log, job.executions.get().exit_reason) == ("over\n", "success")
    assert [event.transition for event in job.events.all()] == ["create", "claim", "cancel"]


# ------------------------------------------------------------------------------- writes that come late


def test_an_attempt_that_was_given_back_moves_the_next_one_no_more(
    host: ExecutorHost, lease: HeldLease
) -> None:
    """The same tenure of the same worker: the lease alone would let it pass."""
    job = make_job()
    mine, execution = claim(lease, host)
    late = copy.copy(mine)
    assert lifecycle.release(lease, mine, execution, worker=WORKER, message="", docker_log="")
    second = claim(lease, host)
    assert not start(lease, late, execution)
    logs = LogState(
        chunk_count=0,
        cursor=None,
        stdout_bytes=0,
        stderr_bytes=0,
        complete=False,
        truncated=False,
        stdout_text="of the first attempt",
    )
    lifecycle.store_logs(lease, late, execution, [], logs)
    job.refresh_from_db()
    assert (job.status, job.attempt, job.stdout_log) == ("launching", 2, "")
    assert start(lease, *second)


def test_a_second_word_about_an_ended_job_changes_nothing(host: ExecutorHost, lease: HeldLease) -> None:
    job = make_job()
    mine, execution = claim(lease, host)
    late = copy.copy(mine)
    assert finish(lease, mine, execution)
    before = ContainerJob.objects.filter(pk=job.pk).values().get()
    events = JobEvent.objects.count()
    assert not finish(lease, late, execution)
    assert ContainerJob.objects.filter(pk=job.pk).values().get() == before
    assert JobEvent.objects.count() == events


def test_a_status_saved_by_a_stale_instance_is_known_from_then_on(host: ExecutorHost) -> None:
    stale = make_job()
    ContainerJob.objects.get(pk=stale.pk).cancel()
    stale.status = "cancelled"
    stale.save()  # nothing to do
    stale.status = "pending"
    with pytest.raises(IllegalTransition):
        stale.save()


# -------------------------------------------------------------------------------------------- signals


class Heard:
    """What receivers were told: the job's status, the named fields, the status in the database then."""

    def __init__(self) -> None:
        self.saved: list[tuple[str, set[str]]] = []
        self.changed: list[tuple[str, str]] = []
        self.finished: list[str] = []
        self.committed: list[bool] = []

    def save(self, sender: Any, instance: ContainerJob, update_fields: Any, **kwargs: Any) -> None:
        self.saved.append((instance.status, set(update_fields or ())))

    def change(self, sender: Any, job: ContainerJob, event: JobEvent, **kwargs: Any) -> None:
        self.changed.append((event.from_status, event.to_status))
        assert event.to_status == job.status
        self.committed.append(not connection.in_atomic_block)

    def finish(self, sender: Any, job: ContainerJob, event: JobEvent, **kwargs: Any) -> None:
        self.finished.append(job.status)


@pytest.fixture
def heard() -> Iterator[Heard]:
    ears = Heard()
    post_save.connect(ears.save, sender=ContainerJob)
    signals.job_status_changed.connect(ears.change)
    signals.job_finished.connect(ears.finish)
    yield ears
    post_save.disconnect(ears.save, sender=ContainerJob)
    signals.job_status_changed.disconnect(ears.change)
    signals.job_finished.disconnect(ears.finish)


def test_receivers_hear_of_each_status_after_the_commit(
    host: ExecutorHost, lease: HeldLease, heard: Heard
) -> None:
    make_job()
    heard.saved.clear()  # Django's own, of the INSERT
    held = claim(lease, host)
    start(lease, *held)
    finish(lease, *held)
    assert [status for status, _ in heard.saved] == ["launching", "running", "completed"]
    assert all("status" in fields for _, fields in heard.saved)
    assert {"exit_code", "completed_at", "exit_reason"} <= heard.saved[-1][1]
    assert heard.changed == [("pending", "launching"), ("launching", "running"), ("running", "completed")]
    assert heard.finished == ["completed"]
    assert all(heard.committed)


def test_two_moves_of_one_transaction_are_told_apart(
    host: ExecutorHost, lease: HeldLease, heard: Heard
) -> None:
    make_job()
    held = claim(lease, host)
    heard.saved.clear()
    assert finish(lease, *held)  # it ended before it was seen running
    assert [status for status, _ in heard.saved] == ["running", "completed"]


def test_nothing_is_heard_of_what_was_rolled_back(host: ExecutorHost, heard: Heard) -> None:
    job = make_job()
    heard.saved.clear()
    with transaction.atomic():
        job.cancel()
        transaction.set_rollback(True)
    assert (heard.saved, heard.changed, heard.finished) == ([], [], [])
    assert ContainerJob.objects.get(pk=job.pk).status == "pending"


def test_a_receiver_that_raises_is_logged_and_the_record_stands(
    host: ExecutorHost, lease: HeldLease, caplog: pytest.LogCaptureFixture, heard: Heard
) -> None:
    def broken(sender: Any, **kwargs: Any) -> None:
        raise RuntimeError("a bug of the project")

    job = make_job()
    post_save.connect(broken, sender=ContainerJob)
    signals.job_finished.connect(broken)
    try:
        with caplog.at_level(logging.ERROR, logger="container_manager.jobs"):
            held = claim(lease, host)
            start(lease, *held)
            assert finish(lease, *held)
    finally:
        post_save.disconnect(broken, sender=ContainerJob)
        signals.job_finished.disconnect(broken)
    assert ContainerJob.objects.get(pk=job.pk).status == "completed"
    assert heard.finished == ["completed"]  # the others are told all the same
    told = [record for record in caplog.records if "signal receiver failed" in record.getMessage()]
    assert len(told) == 4
    assert str(job.pk) in told[0].getMessage()


def test_the_receivers_instance_can_be_saved(host: ExecutorHost, lease: HeldLease) -> None:
    def annotate(sender: Any, job: ContainerJob, **kwargs: Any) -> None:
        job.description = f"ended as {job.status}"
        job.save()

    job = make_job()
    signals.job_finished.connect(annotate)
    try:
        assert finish(lease, *claim(lease, host))
    finally:
        signals.job_finished.disconnect(annotate)
    job.refresh_from_db()
    assert (job.status, job.description) == ("completed", "ended as completed")


# -------------------------------------------------------------------------------------------- claims


def test_a_claim_takes_the_priority_first_then_the_oldest(host: ExecutorHost, lease: HeldLease) -> None:
    for name, priority in (("old", 0), ("low", -5), ("high", 5), ("young", 0)):
        make_job(name=name, priority=priority)
    order = [job.name for job, _ in lifecycle.claim(lease, host, limit=3, worker=WORKER)]
    assert order == ["high", "old", "young"]


def test_two_workers_never_claim_the_same_job(host: ExecutorHost) -> None:
    """Two hosts of one queue, two threads: every job is claimed once."""
    other = make_host("two")
    hosts = {"fake-one": host, "fake-two": other}
    jobs = ContainerJob.objects.create_jobs([{"image": "demo:1"}] * 30)
    leases = {engine: hold(engine) for engine in hosts}
    ready = threading.Barrier(2)
    claimed: dict[str, list[Any]] = {engine: [] for engine in hosts}
    errors: list[BaseException] = []

    def work(engine: str) -> None:
        try:
            ready.wait(10)
            while pairs := lifecycle.claim(
                leases[engine], hosts[engine], limit=4, worker=engine, from_hosts=[host.pk, other.pk]
            ):
                claimed[engine] += [job.pk for job, _ in pairs]
        except BaseException as error:
            errors.append(error)
            raise
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work, args=(engine,)) for engine in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    close_old_connections()
    assert not errors
    both = claimed["fake-one"] + claimed["fake-two"]
    assert sorted(both) == sorted(job.pk for job in jobs)
    assert JobEvent.objects.filter(transition="claim").count() == 30


def test_a_pinned_job_stays_with_its_host(host: ExecutorHost, lease: HeldLease) -> None:
    other = make_host("two")
    kept = make_job(docker_host=other)
    placed = ContainerJob.objects.create_jobs([{"image": "demo:1"}] * 2)
    pairs = lifecycle.claim(lease, host, limit=9, worker=WORKER, from_hosts=[other.pk])
    assert {job.pk for job, _ in pairs} == {job.pk for job in placed}
    assert {job.docker_host for job, _ in pairs} == {host}
    kept.refresh_from_db()
    assert (kept.status, kept.docker_host) == ("pending", other)


def test_a_user_is_named_in_the_event(host: ExecutorHost) -> None:
    user = User.objects.create(username="boss")
    job = make_job(created_by=user)
    assert job.events.get().actor == f"user:{user.pk}"
