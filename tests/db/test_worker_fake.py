"""The worker over the fake engine: how runs end, what is recorded, who may run when."""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from container_manager import signals
from container_manager.core.errors import BadUser, CommandNotExecutable, CommandNotFound
from container_manager.core.observation import STDERR, STDOUT
from container_manager.management.commands.process_container_jobs import Command
from container_manager.models import ContainerJob, EngineLease, ExecutorHost
from container_manager.testing import FakeEngine, FakeRun, fake_engine
from tests.db.factories import make_host, make_job
from tests.db.workers import QUICK, drain, most_at_once, until, until_status, working

pytestmark = pytest.mark.django_db


def ended(job: ContainerJob) -> tuple[str, str, int | None]:
    job.refresh_from_db()
    return job.status, job.exit_reason, job.exit_code


# ---------------------------------------------------------------------------------------- how runs end


def test_a_success_leaves_a_complete_record(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = FakeRun(stdout=b'hello\n{"books": 42}\n', stderr=b"careful\n")
    job = make_job(command=["import"], name="books")
    Command().handle(once=True)
    assert ended(job) == ("completed", "success", 0)
    assert job.clean_output == 'hello\n{"books": 42}\n'
    assert job.parsed_output == {"books": 42}
    assert job.stdout_log.startswith("20")  # the engine's time, line by line
    assert job.stderr_log.endswith(" careful\n")
    assert b"".join(job.iter_log("stdout")) == b'hello\n{"books": 42}\n'
    assert b"".join(job.iter_log("stderr")) == b"careful\n"
    assert job.duration is not None
    assert job.started_at is not None
    assert job.launched_at is not None
    for word in ("pull", "create", "start: running", "die: exit code 0"):
        assert word in job.docker_log
    execution = job.executions.get()
    assert (execution.attempt, execution.engine_id, execution.exit_code) == (1, "fake-one", 0)
    assert execution.container_name == job.get_execution_identifier()
    assert len(execution.container_id) == len(execution.spec_hash) == 64
    assert execution.image_id.startswith("sha256:")
    assert execution.logs_complete
    assert not execution.logs_truncated
    assert execution.worker.startswith("worker:")
    assert execution.removed_at is not None
    assert engine.containers == {}
    assert [(e.from_status, e.to_status) for e in job.events.all()] == [
        ("", "pending"),
        ("pending", "launching"),
        ("launching", "running"),
        ("running", "completed"),
    ]
    host.refresh_from_db()
    assert (host.health, host.engine_id, host.cpus) == ("healthy", "fake-one", 4)
    assert EngineLease.holder("fake-one") == ""  # given back


@pytest.mark.parametrize(
    ("run", "wanted", "words"),
    [
        (FakeRun(exit_code=3, stderr=b"no\n"), ("failed", "application_error", 3), "exit code 3"),
        (FakeRun(exit_code=137, oom_killed=True), ("failed", "out_of_memory", 137), "256 MB"),
        (FakeRun(exit_code=0, oom_killed=True), ("completed", "success", 0), "child"),
        (FakeRun(exit_code=137), ("failed", "killed_externally", 137), "SIGKILL"),
        (FakeRun(exit_code=143), ("failed", "killed_externally", 143), "SIGTERM"),
        (FakeRun(exit_code=127), ("failed", "application_error", 127), "127"),
        (FakeRun(error=CommandNotFound("x")), ("failed", "command_not_found", 127), "x"),
        (FakeRun(error=CommandNotExecutable("x")), ("failed", "command_not_executable", 126), "x"),
        (FakeRun(error=BadUser("no such user")), ("failed", "bad_user", 128), "no such user"),
    ],
    ids=["error", "oom", "oom-of-a-child", "kill", "term", "own-127", "not-found", "not-executable", "user"],
)
def test_each_end_has_its_status_and_reason(
    engine: FakeEngine, host: ExecutorHost, run: FakeRun, wanted: tuple[str, str, int], words: str
) -> None:
    engine.default = run
    job = make_job(command=["go"])
    assert drain() == []
    assert ended(job) == wanted
    assert words in job.exit_message
    assert job.completed_at is not None
    assert engine.containers == {}


def test_a_missing_image_and_a_missing_network_fail_the_job(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.missing_images = {"nowhere:1"}
    engine.networks = {"backend"}
    image = make_job(docker_image="nowhere:1")
    network = make_job(network_configuration=[{"network_name": "frontend"}])
    good = make_job(network_configuration=[{"network_name": "backend"}])
    drain()
    assert ended(image) == ("failed", "image_not_found", None)
    assert "nowhere:1" in image.exit_message
    assert ended(network) == ("failed", "network_not_found", None)
    assert "frontend" in network.exit_message
    assert ended(good)[0] == "completed"
    assert image.started_at is None
    assert image.duration is None


def test_a_timeout_sends_term_and_to_the_deaf_kill(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.runs = {
        ("polite",): FakeRun(duration=999, term_exit_code=143, stdout=b"so far\n"),
        ("deaf",): FakeRun(duration=999, term_exit_code=None, stdout=b"so far\n"),
    }
    polite = make_job(command=["polite"], timeout_seconds=1)
    deaf = make_job(command=["deaf"], timeout_seconds=1)
    drain()
    assert ended(polite) == ("timeout", "timeout", 143)
    assert ended(deaf) == ("timeout", "timeout", 137)
    assert "SIGKILL\n" not in polite.docker_log
    assert "stop: SIGKILL\n" in deaf.docker_log
    for job in (polite, deaf):
        assert "time limit of 1 s" in job.exit_message
        assert job.clean_output == "so far\n"
        assert job.duration is not None
        assert job.duration.total_seconds() >= 0.9
    assert engine.containers == {}


def test_usage_is_recorded_where_the_engine_knows_it(engine: FakeEngine, host: ExecutorHost) -> None:
    megabyte = 1024 * 1024
    engine.runs = {
        ("sampled",): FakeRun(duration=0.8, cpus_used=0.5, memory_bytes=16 * megabyte),
        ("peak",): FakeRun(duration=0.8, cpus_used=0.5, memory_bytes=1, memory_peak_bytes=99 * megabyte),
        ("unknown",): FakeRun(duration=0.8, cpus_used=None, memory_bytes=None),
    }
    sampled, peak, unknown, short = (
        make_job(command=[name]) for name in ("sampled", "peak", "unknown", "short")
    )
    drain()
    for job in (sampled, peak, unknown, short):
        assert ended(job)[0] == "completed"
    assert sampled.max_memory_usage == 16 * megabyte
    assert sampled.cpu_usage_percent == pytest.approx(50, abs=1)
    assert sampled.executions.get().memory_source == "sampled"
    assert sampled.executions.get().usage_samples >= 1
    assert peak.max_memory_usage == 99 * megabyte
    assert peak.executions.get().memory_source == "peak"
    assert (unknown.max_memory_usage, unknown.cpu_usage_percent) == (None, None)
    assert (short.max_memory_usage, short.cpu_usage_percent) == (None, None)


# ------------------------------------------------------------------------------------------------ logs


def test_streams_are_split_and_kept_byte_for_byte(engine: FakeEngine, host: ExecutorHost) -> None:
    out = [b"one\n", b"\0\xff\xfe\n", b"x" * 1_000_000 + b"\n", b"no newline"]
    err = [b"uno\n", b"dos\n", b"", b"\xe2\x82"]
    pairs = [pair for o, e in zip(out, err, strict=True) for pair in ((STDOUT, o), (STDERR, e))]
    engine.default = FakeRun(output=pairs)
    job = make_job()
    drain()
    assert ended(job)[0] == "completed"
    assert b"".join(job.iter_log("stdout")) == b"".join(out)
    assert b"".join(job.iter_log("stderr")) == b"".join(err)
    execution = job.executions.get()
    assert execution.stdout_bytes == sum(map(len, out))
    assert execution.log_chunk_count == execution.log_chunks.count() > 1
    assert "\0" not in job.stdout_log
    assert "left out" in job.stdout_log  # the column is bounded, the record is not
    assert len(job.stdout_log) < 200_000


def test_an_empty_log_is_complete(engine: FakeEngine, host: ExecutorHost) -> None:
    job = make_job()
    drain()
    assert ended(job)[0] == "completed"
    assert (job.stdout_log, job.clean_output, job.parsed_output) == ("", "", None)
    assert job.executions.get().logs_complete
    assert list(job.iter_log("stdout")) == []


def test_a_log_beyond_the_cap_says_so(engine: FakeEngine, host: ExecutorHost, settings: Any) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "LOG_MAX_BYTES": 1000, "LOG_COLUMN_BYTES": 200}
    engine.default = FakeRun(stdout=b"".join(b"line %03d\n" % n for n in range(500)))
    job = make_job()
    drain()
    assert ended(job)[0] == "completed"
    execution = job.executions.get()
    assert execution.logs_truncated
    assert not execution.logs_complete
    stored = b"".join(job.iter_log("stdout"))
    assert 990 < len(stored) <= 1000
    assert stored == b"".join(b"line %03d\n" % n for n in range(500))[: len(stored)]
    assert "left out" in job.stdout_log


# ------------------------------------------------------------------------------ who may run, and when


def test_one_at_a_time_goes_by_priority_then_age(engine: FakeEngine, host: ExecutorHost) -> None:
    jobs = {
        name: make_job(name=name, priority=priority)
        for name, priority in (("old", 0), ("low", -1), ("high", 9), ("young", 0))
    }
    drain(concurrency=1)
    names = {job.pk.hex: name for name, job in jobs.items()}
    created = [names[subject.split("-")[1]] for verb, subject in engine.calls if verb == "create"]
    assert created == ["high", "old", "young", "low"]
    assert most_at_once(engine) == 1


@pytest.mark.parametrize(("slots", "concurrency", "most"), [(2, 50, 2), (50, 3, 3)])
def test_no_more_run_at_once_than_there_are_slots(
    engine: FakeEngine, slots: int, concurrency: int, most: int
) -> None:
    make_host("one", max_concurrent_jobs=slots)
    engine.default = FakeRun(duration=0.1)
    ContainerJob.objects.create_jobs([{"image": "demo:1"}] * 8)
    drain(concurrency=concurrency)
    assert ContainerJob.objects.filter(status="completed").count() == 8
    assert most_at_once(engine) == most


def test_only_the_named_hosts_are_served(engine: FakeEngine, host: ExecutorHost) -> None:
    other = make_host("two")
    here, there = make_job(docker_host=host), make_job(docker_host=other)
    call_command("process_container_jobs", "--once", "--host", "one")
    assert ended(here)[0] == "completed"
    assert ended(there)[0] == "pending"
    assert fake_engine("two").calls == []
    with pytest.raises(CommandError, match=r"--host: there is no host named 'three'\. Known: one, two"):
        call_command("process_container_jobs", "--once", "--host", "three")


def test_bad_options_are_told(engine: FakeEngine, host: ExecutorHost) -> None:
    with pytest.raises(CommandError, match="--concurrency: 0 is not a whole number from 1 to"):
        Command().handle(once=True, concurrency=0)
    with pytest.raises(CommandError, match=r"--poll-interval: 0 is not a number from 0\.01 to 3600 seconds"):
        Command().handle(once=True, poll_interval=0)


def test_nothing_to_do_is_done_at_once(engine: FakeEngine, host: ExecutorHost) -> None:
    assert drain() == []
    assert not ContainerJob.objects.exists()


def test_jobs_of_a_host_that_does_not_answer_are_left_with_a_word(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    engine.go_down()
    job = make_job(docker_host=host)
    with pytest.raises(CommandError, match=r"some jobs could not be run: one: Nothing answers at fake://one"):
        Command().handle(once=True)
    assert ended(job) == ("pending", "", None)
    host.refresh_from_db()
    assert host.health == "unreachable"
    assert "Nothing answers" in host.health_error


def test_jobs_of_an_inactive_host_are_left_with_a_word(engine: FakeEngine, host: ExecutorHost) -> None:
    job = make_job(docker_host=host)
    ExecutorHost.objects.update(is_active=False)
    assert drain() == ["one: the host is not active"]
    assert ended(job)[0] == "pending"


def test_a_job_that_was_placed_on_a_dead_host_runs_on_another(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.go_down()
    placed = make_job()
    make_host("two")
    assert drain() == []
    assert ended(placed)[0] == "completed"
    assert placed.docker_host.name == "two"


def test_another_engine_behind_the_address_gets_nothing(engine: FakeEngine, host: ExecutorHost) -> None:
    ExecutorHost.objects.update(engine_id="the-machine-before")
    job = make_job(docker_host=host)
    (left,) = drain()
    assert "bound to the-machine-before" in left
    assert ended(job)[0] == "pending"
    host.refresh_from_db()
    assert host.health == "mismatched"
    assert not any(verb == "create" for verb, _ in engine.calls)


# ----------------------------------------------------------------------------- rules that became stricter


def test_a_job_that_the_policy_refuses_by_now_fails_and_says_why(
    engine: FakeEngine, host: ExecutorHost, settings: Any
) -> None:
    job, fine = make_job(memory_limit=1024), make_job(memory_limit=128)
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "MAX_MEMORY_LIMIT": 512}
    drain()
    assert ended(job) == ("failed", "policy_refused", None)
    assert "1024 MB" in job.exit_message
    assert "MAX_MEMORY_LIMIT" in job.exit_message
    assert ended(fine)[0] == "completed"


def test_a_row_that_a_query_has_spoilt_fails_and_says_why(engine: FakeEngine, host: ExecutorHost) -> None:
    jobs = [make_job(command="true") for _ in range(3)]
    ContainerJob.objects.filter(pk=jobs[0].pk).update(command="'open")
    ContainerJob.objects.filter(pk=jobs[1].pk).update(network_configuration={"no": "list"})
    drain()
    assert [ended(job)[:2] for job in jobs] == [
        ("failed", "policy_refused"),
        ("failed", "policy_refused"),
        ("completed", "success"),
    ]
    assert "command" in jobs[0].exit_message
    assert "network_configuration" in jobs[1].exit_message


def test_a_job_too_big_for_its_host_fails_and_says_why(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.cpus = 1
    job = make_job(docker_host=host, cpu_limit=2.0)  # the host was never asked yet
    drain()
    assert ended(job) == ("failed", "policy_refused", None)
    assert "2 cores are more than the 1" in job.exit_message


def test_a_placed_job_too_big_for_its_host_moves_to_one_that_fits(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    engine.cpus = 1
    moved = make_job(cpu_limit=2.0)
    assert moved.docker_host == host
    make_host("two")
    drain()
    assert ended(moved)[0] == "completed"
    assert moved.docker_host.name == "two"


# ----------------------------------------------------------------------------------------------- threads


@pytest.mark.django_db(transaction=True)
def test_cancel_of_a_running_job(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = FakeRun(hold=threading.Event(), stdout=b"so far\n")
    with working():
        job = until_status(make_job(), "running")
        assert job.cancel(by="user:7")
        until_status(job, "cancelled")
        assert (job.exit_reason, job.exit_code) == ("cancelled", 143)
        assert job.clean_output == "so far\n"
        assert job.cancel_requested_by == "user:7"
        until(lambda: not engine.containers, "the container to be removed")
    assert [e.transition for e in job.events.all()] == [
        "create",
        "claim",
        "start",
        "cancel_requested",
        "cancel",
    ]


@pytest.mark.django_db(transaction=True)
def test_cancel_of_a_launching_job_never_starts_it(engine: FakeEngine, host: ExecutorHost) -> None:
    entered, gate = threading.Event(), threading.Event()

    def slowly(spec: Any) -> FakeRun:
        entered.set()
        assert gate.wait(30)
        return FakeRun()

    engine.runs = slowly
    with working() as worker:
        job = make_job()
        assert entered.wait(30)
        assert job.cancel()
        assert job.status == "launching"
        until(lambda: all(held.run.intent for held in worker._hands), "the wish to be passed on")
        gate.set()
        until_status(job, "cancelled")
        until(lambda: not engine.containers, "the container to be removed")
    assert engine.starts == {}
    assert job.exit_message == "The job was cancelled before it was started."
    assert job.started_at is None


@pytest.mark.django_db(transaction=True)
def test_a_status_saved_as_cancelled_ends_the_container(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = FakeRun(hold=threading.Event(), stdout=b"so far\n")
    with working():
        job = until_status(make_job(), "running")
        job.status = "cancelled"
        job.save()
        until(lambda: not engine.containers, "the container to be ended and removed")
    job.refresh_from_db()
    assert (job.status, job.exit_code, job.clean_output) == ("cancelled", 143, "so far\n")
    assert [e.transition for e in job.events.all()] == ["create", "claim", "start", "cancel"]


@pytest.mark.django_db(transaction=True)
def test_an_idle_worker_takes_a_new_job_and_a_receiver_that_raises_does_not_stop_it(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    def broken(sender: Any, **kwargs: Any) -> None:
        raise RuntimeError("a bug of the project")

    signals.job_status_changed.connect(broken)
    signals.host_status_changed.connect(broken)
    try:
        with working():
            for _ in range(2):
                until_status(make_job(), "completed")
    finally:
        signals.job_status_changed.disconnect(broken)
        signals.host_status_changed.disconnect(broken)


@pytest.mark.django_db(transaction=True)
def test_a_live_log_can_be_read_while_the_job_runs(engine: FakeEngine, host: ExecutorHost) -> None:
    engine.default = FakeRun(hold=threading.Event(), stdout=b"first\n")
    with working():
        job = until_status(make_job(), "running")
        until(lambda: b"".join(job.iter_log("stdout")) == b"first\n", "the first line")
        engine.write(job.container_name, b"second\n")
        until(lambda: b"".join(job.iter_log("stdout")) == b"first\nsecond\n", "the second line")
        until(lambda: "second" in ContainerJob.objects.get(pk=job.pk).stdout_log, "the column")
        engine.finish(job.container_name, 5)
        until_status(job, "failed")
    assert job.exit_code == 5
    assert job.clean_output == "first\nsecond\n"


@pytest.mark.django_db(transaction=True)
def test_a_cancel_is_heard_within_a_second_on_every_database(
    engine: FakeEngine, host: ExecutorHost, settings: Any
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "POLL_INTERVAL": 60.0}  # only a wake-up can tell in time
    waits = []
    engine.default = FakeRun(hold=threading.Event())
    with working():
        for _ in range(5):
            job = until_status(make_job(), "running")
            began = time.monotonic()
            assert ContainerJob.objects.get(pk=job.pk).cancel()  # as another process would have it
            until(lambda name=job.container_name: _was_asked_to_stop(engine, name), "the program to be asked")  # type: ignore[misc]
            waits.append(time.monotonic() - began)
            until_status(job, "cancelled")
    assert statistics.median(waits) < 1.0, waits


def _was_asked_to_stop(engine: FakeEngine, name: str) -> bool:
    ids = {container.id for container in engine.containers.values() if container.spec.name == name}
    return not ids or any(verb == "stop" and subject in {name, *ids} for verb, subject in list(engine.calls))


# -------------------------------------------------------------------------------------- hosts of weight 0


@pytest.mark.django_db(transaction=True)
def test_a_host_of_weight_0_takes_no_job_that_does_not_name_it(
    engine: FakeEngine, host: ExecutorHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container_manager.worker.supervisor.HOSTS_SECONDS", 0.05)
    waiting = make_job(priority=5)
    two = make_host("two", weight=0)
    ExecutorHost.objects.filter(pk=host.pk).update(is_active=False)
    with working(hosts=["two"]):
        until_status(make_job(docker_host=two), "completed")  # by a claim that might have taken both
        waiting.refresh_from_db()
        assert (waiting.status, waiting.docker_host) == ("pending", host)
        ExecutorHost.objects.filter(pk=two.pk).update(weight=1)
        until_status(waiting, "completed")
    assert waiting.docker_host == two


@pytest.mark.django_db(transaction=True)
def test_what_waits_at_a_host_whose_weight_became_0_may_run_elsewhere(
    engine: FakeEngine, host: ExecutorHost
) -> None:
    placed, named = make_job(), make_job(docker_host=host)
    ExecutorHost.objects.filter(pk=host.pk).update(weight=0)
    two = make_host("two")
    with working(hosts=["two"]):
        until_status(placed, "completed")
    named.refresh_from_db()
    assert (placed.docker_host, named.status) == (two, "pending")
    assert drain() == []
    named.refresh_from_db()
    assert (named.docker_host, named.status) == (host, "completed")
