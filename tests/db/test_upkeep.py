"""What is deleted and removed when its time is over: rows, output, containers; by the worker and by hand."""

from __future__ import annotations

import io
import itertools
import json
import threading
from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.db.models import PROTECT, ProtectedError
from django.db.models.signals import pre_delete
from django.utils import timezone

from container_manager import lifecycle, retention
from container_manager.core.errors import EngineFault
from container_manager.models import (
    ContainerJob,
    EngineLease,
    ExecutionMetadata,
    ExecutorHost,
    Installation,
    JobEvent,
    LogChunk,
    RegisteredWorker,
)
from container_manager.models.admission import spec_of
from container_manager.retention import Rules, prune_jobs, prune_logs
from container_manager.testing import FakeEngine, FakeExecutor, FakeRun
from container_manager.worker import upkeep
from container_manager.worker.strays import NotThisDatabase, judge_strays
from tests.db.factories import finish_job, hold, make_host, make_job
from tests.db.workers import QUICK, drain, until, until_status, working

pytestmark = pytest.mark.django_db(transaction=True)


def ended(days: float, *, exit_code: int = 0, **fields: Any) -> ContainerJob:
    """A job that ended so long ago, with some output."""
    job = make_job(**fields)
    finish_job(job, exit_code=exit_code, stdout=b"said\n")
    ContainerJob.objects.filter(pk=job.pk).update(completed_at=timezone.now() - timedelta(days=days))
    return job


def names() -> set[str]:
    return set(ContainerJob.objects.values_list("name", flat=True))


def call(command: str, *arguments: str) -> str:
    out = io.StringIO()
    call_command(command, *arguments, stdout=out)
    return out.getvalue()


# -------------------------------------------------------------------------------------- rows and output


def test_by_default_nothing_is_ever_deleted(host: ExecutorHost) -> None:
    ended(9999, name="old")
    assert "kept for ever" in call("prune_container_jobs")
    assert names() == {"old"}


def test_jobs_go_with_all_their_records_by_age_and_by_how_they_ended(host: ExecutorHost) -> None:
    ended(11, name="old and good")
    ended(9, name="young and good")
    ended(11, name="old and bad", exit_code=1)
    ended(31, name="very old and bad", exit_code=1)
    make_job(name="waiting")
    options = ("--completed-days", "10", "--failed-days", "30")
    assert call("prune_container_jobs", "--dry-run", *options) == (
        "would delete 2 jobs and the output of 0 attempts\n"
    )
    assert len(names()) == 5
    assert call("prune_container_jobs", *options) == "deleted 2 jobs and the output of 0 attempts\n"
    assert names() == {"young and good", "old and bad", "waiting"}
    assert ExecutionMetadata.objects.count() == 2
    assert LogChunk.objects.count() == 2
    assert set(JobEvent.objects.values_list("job__name", flat=True)) == names()


def test_output_goes_and_the_record_stays_and_says_so(host: ExecutorHost) -> None:
    old, young = ended(3), ended(1)
    assert call("prune_container_jobs", "--log-days", "2") == "deleted 0 jobs and the output of 1 attempts\n"
    old.refresh_from_db()
    execution = old.executions.get()
    assert execution.logs_pruned
    assert (execution.stdout_bytes, b"".join(old.iter_log("stdout")), old.stdout_log) == (5, b"", "")
    assert (old.status, old.exit_code) == ("completed", 0)
    assert b"".join(young.iter_log("stdout")) == b"said\n"
    assert call("prune_container_jobs", "--log-days", "2") == "deleted 0 jobs and the output of 0 attempts\n"


def test_batches_are_small_and_come_to_an_end(host: ExecutorHost, settings: Any) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "RETENTION_BATCH": 2}
    for _ in range(5):
        ended(5)
    assert call("prune_container_jobs", "--completed-days", "1").startswith("deleted 5 jobs")
    assert not ContainerJob.objects.exists()


def test_the_worker_deletes_beside_its_jobs(host: ExecutorHost, engine: FakeEngine, settings: Any) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {
        **QUICK,
        "KEEP_COMPLETED_DAYS": 2.0,
        "KEEP_LOGS_DAYS": 1.0,
        "RETENTION_BATCH": 1,
    }
    for number in range(2):
        ended(3, name=f"gone {number}")
    kept = ended(1.5, name="kept")
    RegisteredWorker.objects.create(name="forgotten", heartbeat_at=timezone.now() - timedelta(days=8))
    with working():
        until(lambda: names() == {"kept"}, "the old jobs to be deleted")
        until(lambda: kept.executions.get().logs_pruned, "the output to be deleted")
        until(lambda: not RegisteredWorker.objects.filter(pk="forgotten").exists(), "the worker's row to go")


def test_a_dry_run_tells_what_the_real_one_does(host: ExecutorHost) -> None:
    for days in (9, 9, 3):
        ended(days)
    options = ("--completed-days", "7", "--log-days", "2")
    would = call("prune_container_jobs", "--dry-run", *options)
    assert would == "would delete 2 jobs and the output of 1 attempts\n"
    assert call("prune_container_jobs", *options) == would.replace("would delete", "deleted")


RULES = Rules(completed_days=0, failed_days=0, log_days=0)


def talked(job: ContainerJob, chunks: int) -> ContainerJob:
    """The job has so many chunks of output."""
    execution = job.executions.get()
    template = execution.log_chunks.get()
    for sequence in range(1, chunks):
        LogChunk.objects.create(
            execution=execution, sequence=sequence, data=template.data, last_timestamp_ns=sequence
        )
    job.executions.update(log_chunk_count=chunks)
    return job


def rows() -> int:
    return sum(model.objects.count() for model in (ContainerJob, ExecutionMetadata, JobEvent, LogChunk))


def test_a_transaction_deletes_no_more_rows_than_a_batch(host: ExecutorHost) -> None:
    for _ in range(3):
        ended(5)  # a job, an attempt, a chunk and four events
    long = talked(ended(9), 40)
    counts, partly = [rows()], False
    for _ in prune_jobs(replace(RULES, completed_days=1), batch=14):
        counts.append(rows())
        left = LogChunk.objects.filter(execution__job=long).count()
        partly = partly or 0 < left < 40
        assert left in {0, 40} or long.executions.get().logs_pruned  # a part of it is not called output
    assert counts[-1] == 0
    assert partly
    assert max(before - after for before, after in itertools.pairwise(counts)) <= 14


def test_a_job_that_the_project_protects_keeps_its_output(
    host: ExecutorHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = talked(ended(9), 40)
    # As a foreign key of the project's would.
    monkeypatch.setattr(JobEvent._meta.get_field("job").remote_field, "on_delete", PROTECT)
    with pytest.raises(ProtectedError):
        list(prune_jobs(replace(RULES, completed_days=1), batch=14))
    assert LogChunk.objects.filter(execution__job=long).count() == 40
    assert not long.executions.get().logs_pruned


def test_what_a_job_wrote_is_not_read_to_be_deleted(
    host: ExecutorHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where receivers make Django read what it deletes: there may be hundreds of megabytes of it."""
    ended(9)
    talked(ended(9), 40)
    read: list[Collection[str]] = []
    from_db = LogChunk.from_db

    def noted(db: str | None, field_names: Collection[str], values: Collection[Any], **further: Any) -> Any:
        read.append(field_names)
        return from_db(db, field_names, values, **further)

    def listen(**_: Any) -> None:
        """Hears of each row that is deleted, of whatever model."""

    monkeypatch.setattr(LogChunk, "from_db", noted)
    pre_delete.connect(listen)
    try:
        list(prune_jobs(replace(RULES, completed_days=1), batch=14))
    finally:
        pre_delete.disconnect(listen)
    assert not rows()
    assert len(read) == 41, "each chunk is read once, as the receiver asks for it"
    assert not [names for names in read if "data" in names]


def test_a_deletion_of_output_that_was_cut_off_is_taken_up_again(host: ExecutorHost) -> None:
    job = talked(ended(5), 9)
    rules = replace(RULES, log_days=1)
    steps = prune_logs(rules, batch=4)
    assert [next(steps), next(steps)] == [0, 0]  # it is marked, and four chunks are gone
    del steps  # whoever deleted is gone
    assert LogChunk.objects.count() == 5
    assert "the output of 1 attempts" in call("prune_container_jobs", "--log-days", "1", "--dry-run")
    assert sum(prune_logs(rules, batch=4)) == 1
    assert not LogChunk.objects.exists()
    assert list(prune_logs(rules, batch=4)) == []
    assert job.executions.get().stdout_bytes == 5


@pytest.fixture
def refused() -> Any:
    """Nobody may delete a job: the project says so in a receiver of its own."""

    def refuse(**_: Any) -> None:
        raise RuntimeError("the project wants to keep this one")

    pre_delete.connect(refuse, sender=ContainerJob)
    yield lambda: pre_delete.disconnect(refuse, sender=ContainerJob)
    pre_delete.disconnect(refuse, sender=ContainerJob)


def test_a_receiver_that_refuses_a_deletion_does_not_end_the_worker(
    engine: FakeEngine,
    host: ExecutorHost,
    settings: Any,
    refused: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "KEEP_COMPLETED_DAYS": 2.0, "KEEP_LOGS_DAYS": 1.0}
    monkeypatch.setattr(upkeep, "FIRST_PAUSE_SECONDS", 0.1)
    old, silent = ended(3, name="old"), ended(1.5)
    with working():
        until(lambda: "the project wants to keep this one" in caplog.text, "the refusal")
        until_status(make_job(name="new"), "completed")
        until(lambda: silent.executions.get().logs_pruned, "the rest of the upkeep to go on")
        assert old.executions.get().log_chunks.exists()  # it is kept as a whole
        refused()
        until(lambda: "old" not in names(), "the next trial")
    (first, *_) = [record for record in caplog.records if "a step failed" in record.getMessage()]
    assert first.exc_info


def test_a_deletion_that_the_database_never_manages_holds_up_no_job(
    engine: FakeEngine, host: ExecutorHost, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "KEEP_COMPLETED_DAYS": 1.0}
    tried = threading.Event()

    def too_slow(rules: Rules, *, batch: int) -> Any:
        tried.set()
        raise OperationalError("canceling statement due to statement timeout")

    monkeypatch.setattr(retention, "prune_jobs", too_slow)
    with working():
        until(tried.is_set, "the deletion to be tried")
        until_status(make_job(), "completed")


@pytest.mark.parametrize("days", ["-1", "1e9", "nan"])
def test_days_that_make_no_sense_are_refused(host: ExecutorHost, days: str) -> None:
    with pytest.raises(CommandError, match=r"--failed-days: \S+ is not a number from 0 to 36500 days\."):
        call("prune_container_jobs", f"--failed-days={days}")


# ------------------------------------------------------------------------------------------- containers


def left_behind(engine: FakeEngine, job: ContainerJob, attempt: int = 1, **changes: Any) -> str:
    """A container of a job's attempt that nobody follows; its name."""
    copy = ContainerJob.objects.get(pk=job.pk)
    copy.attempt = attempt
    spec = replace(spec_of(copy, Installation.current()), **changes)
    executor = FakeExecutor.on(engine)
    executor.pull(spec.image)
    executor.start(executor.create(spec))
    return spec.name


def test_a_look_at_the_hosts_says_what_becomes_of_each_container_and_changes_nothing(
    engine: FakeEngine, host: ExecutorHost, settings: Any
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "STRAY_GRACE_SECONDS": 0.0}
    engine.default = FakeRun(hold=threading.Event())
    with working():
        running = until_status(make_job(), "running")
    missing = until_missing(engine, host)
    over = ended(0)
    useless = left_behind(engine, over)
    foreign = left_behind(engine, over, name="from-a-committed-image")
    found = {
        line["container"]: line
        for line in map(json.loads, call("reconcile_containers", "--json").split("\n")[:-1])
    }
    assert {name: line["verdict"] for name, line in found.items()} == {
        running.container_name: "adopt",
        useless: "remove",
        foreign: "keep",
        missing.container_name: "finish",
    }
    assert {line["removed"] for line in found.values()} == {False}
    assert set(engine.containers) == {running.container_name, useless, foreign}
    table = call("reconcile_containers")
    assert "no worker serves it" in table
    assert max(map(len, table.splitlines())) <= 100
    assert "removed 1" in call("reconcile_containers", "--apply", "--host", "one")
    assert set(engine.containers) == {running.container_name, foreign}


def looked(*arguments: str) -> list[dict[str, Any]]:
    """What `reconcile_containers --json` says."""
    return [json.loads(line) for line in call("reconcile_containers", "--json", *arguments).splitlines()]


def test_the_json_says_which_containers_were_removed(
    engine: FakeEngine, host: ExecutorHost, settings: Any
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "RECONCILE_LIMIT": 2}
    over = ended(0)
    foreign = left_behind(engine, over, name="from-a-committed-image")
    useless = {left_behind(engine, ended(0)) for _ in range(3)}
    lines = looked("--apply")
    removed = {line["container"] for line in lines if line["removed"]}
    assert {line["container"] for line in lines} == {foreign, *useless}
    assert len(removed) == 2
    assert set(engine.containers) == {foreign, *useless} - removed


def test_where_the_engine_fails_in_the_middle_the_json_does_not_say_what_is_not_known(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    left_behind(engine, ended(0))
    foreign = left_behind(engine, ended(0), name="from-a-committed-image")
    engine.fail("remove", EngineFault("the disk is full"))
    out = io.StringIO()
    with pytest.raises(CommandError, match="one: the disk is full"):
        call_command("reconcile_containers", "--json", "--apply", stdout=out)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert {line["container"] == foreign: line["removed"] for line in lines} == {True: False, False: None}


def test_a_job_that_its_worker_is_launching_is_kept(engine: FakeEngine, host: ExecutorHost) -> None:
    # A worker that holds the lease, has claimed the job, and has not created the container yet.
    job = make_job()
    lease = EngineLease.acquire("fake-one", "busy", 600)
    assert lease is not None
    lifecycle.claim(lease, host, limit=1, worker="busy")
    job.refresh_from_db()
    (line,) = looked()
    assert (line["verdict"], line["container"]) == ("keep", job.container_name)
    assert line["why"] == "its job is launching and it is not there; its worker is launching or ending it"
    EngineLease.release(lease)
    (line,) = looked()
    assert (line["verdict"], line["state"]) == ("finish", "not-found")


def until_missing(engine: FakeEngine, host: ExecutorHost) -> ContainerJob:
    with working():
        job = until_status(make_job(), "running")
    engine.remove(job.container_name)
    return job


def test_what_a_worker_does_anyway_is_left_to_it(
    engine: FakeEngine, host: ExecutorHost, settings: Any
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "RECONCILE_DRY_RUN": True, "STRAY_GRACE_SECONDS": 0.0}
    useless = left_behind(engine, ended(0))
    with working() as worker:
        until(lambda: any(seat.agent for seat in worker._seats), "the worker to serve the host")
        text = call("reconcile_containers", "--apply")
    assert f"the worker {worker.name} does it" in text
    assert list(engine.containers) == [useless]  # and this one was told only to look


def test_one_pass_removes_no_more_than_its_limit(
    engine: FakeEngine, host: ExecutorHost, settings: Any
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "RECONCILE_LIMIT": 2}
    for _ in range(3):
        left_behind(engine, ended(0))
    assert "removed 2; 1 left for the next pass (RECONCILE_LIMIT)" in call("reconcile_containers", "--apply")
    assert len(engine.containers) == 1
    for _ in range(4):
        left_behind(engine, ended(0))
    with working():
        until(lambda: not engine.containers, "the worker to remove the rest, pass by pass")


def test_a_removed_stray_is_noted_on_its_attempt(engine: FakeEngine, host: ExecutorHost) -> None:
    job = ended(0)
    left_behind(engine, job)
    with working():
        until(lambda: job.executions.get().removed_at, "the removal to be noted")


def test_a_database_of_another_installation_proves_nothing(
    engine: FakeEngine, host: ExecutorHost, caplog: pytest.LogCaptureFixture, settings: Any
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "STRAY_GRACE_SECONDS": 0.0}
    job = ended(0)
    first = Installation.current()
    with working() as worker:
        until(lambda: any(seat.agent for seat in worker._seats), "the worker to serve the host")
        Installation.objects.all().delete()  # as if another, empty database had taken the place of ours
        name = left_behind(engine, job, installation=first)
        until(lambda: "that of another installation" in caplog.text, "the worker to find out")
        assert list(engine.containers) == [name]
    with pytest.raises(NotThisDatabase):
        judge_strays([], installation=first, engine_now=timezone.now(), settings=worker._settings)


def test_labels_that_are_no_labels_of_ours_do_no_harm(engine: FakeEngine, host: ExecutorHost) -> None:
    job = ended(0)
    name = left_behind(engine, job, job_id="not-a-uuid", name="odd")
    assert '"verdict": "keep"' in call("reconcile_containers", "--json")
    assert list(engine.containers) == [name]


def test_an_engine_that_does_not_answer_is_named_after_all_others(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    make_host("two")
    engine.go_down()
    with pytest.raises(CommandError, match="one: Nothing answers"):
        call("reconcile_containers")
    assert ExecutorHost.objects.get(name="two").health == "healthy"


# ------------------------------------------------------------------------------------------------ drain


def test_a_drained_worker_ends_its_jobs_and_takes_no_more(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = FakeRun(hold=threading.Event())
    with working(drain=True) as worker:
        job = until_status(make_job(), "running")
        worker.stop()
        waiting = make_job()
        until(lambda: worker._draining, "the drain to begin")
        engine.finish(job.container_name)
        until_status(job, "completed")
        until(lambda: RegisteredWorker.objects.get().stopped_at, "the worker to leave")
    waiting.refresh_from_db()
    assert waiting.status == "pending"
    assert engine.containers == {}


def test_a_second_stop_of_a_drained_worker_leaves_its_jobs_to_the_next(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    engine.default = FakeRun(hold=threading.Event())
    with working(drain=True) as worker:
        job = until_status(make_job(), "running")
        worker.stop()
        worker.stop()
        until(lambda: RegisteredWorker.objects.get().stopped_at, "the worker to leave")
    job.refresh_from_db()
    assert job.status == "running"
    engine.finish(job.container_name)
    assert drain() == []
    hold("fake-one")
