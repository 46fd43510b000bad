"""The rows by themselves: leases, hosts, what a job tells about itself, and the migrations."""

from __future__ import annotations

import io
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.db.models import Avg, Count, F, Max, ProtectedError, QuerySet
from django.utils import timezone

from container_manager import lifecycle, signals
from container_manager.core.errors import HostMismatch, HostUnreachable, LeaseLost
from container_manager.core.logframes import encode
from container_manager.core.observation import STDERR, STDOUT, HostFacts, LogCursor, LogFrame
from container_manager.models import (
    ContainerJob,
    EngineLease,
    EnvironmentVariableTemplate,
    ExecutionMetadata,
    ExecutorHost,
    Installation,
    JobEvent,
    LogChunk,
)
from container_manager.models.admission import with_load
from tests.db.factories import fake_settings, finish_job, hold, make_host, make_job, start_job

pytestmark = pytest.mark.django_db

FACTS = HostFacts(
    engine_id="e1",
    engine_version="20.10",
    api_version="1.41",
    cpus=2,
    memory_bytes=10**10,
    system_time=None,
    user_namespaces=False,
    response_seconds=0.01,
    details={"cgroup": "1"},
)


@pytest.fixture(autouse=True)
def _fake(settings: Any) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = fake_settings()


def test_the_migrations_are_what_the_models_say() -> None:
    out = io.StringIO()
    call_command("makemigrations", "container_manager", "--check", "--dry-run", stdout=out)
    assert "No changes" in out.getvalue()


# ---------------------------------------------------------------------------------------------- leases


def test_one_holder_at_a_time_and_a_token_that_grows() -> None:
    first = hold("e")
    assert EngineLease.acquire("e", "worker:other", 10) is None
    assert EngineLease.holder("e") == "worker:test"
    EngineLease.release(first)
    assert EngineLease.holder("e") == ""
    second = EngineLease.acquire("e", "worker:other", 10)
    assert second is not None
    assert second.token > first.token
    for stale in (
        lambda: EngineLease.fence(first),
        lambda: EngineLease.renew(first, 10),
    ):
        with pytest.raises(LeaseLost, match="another worker has taken over the engine e"):
            stale()
    EngineLease.release(first)  # takes nothing from the other
    assert EngineLease.holder("e") == "worker:other"
    EngineLease.fence(second)
    assert str(EngineLease.objects.get()) == "e held by worker:other"


def test_a_lease_that_ran_out_is_free_but_its_holder_may_write_until_it_is_taken() -> None:
    lease = hold("e")
    EngineLease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert EngineLease.holder("e") == ""
    EngineLease.fence(lease)
    EngineLease.renew(lease, 10)
    assert EngineLease.holder("e") == "worker:test"
    EngineLease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert EngineLease.acquire("e", "worker:other", 10) is not None
    with pytest.raises(LeaseLost):
        EngineLease.fence(lease)


def test_a_lease_lasts_as_long_as_it_was_asked_for() -> None:
    hold("e")
    EngineLease.acquire("f", "w", 10)
    left = {lease.engine_id: lease.expires_at - timezone.now() for lease in EngineLease.objects.all()}
    assert timedelta(seconds=590) < left["e"] <= timedelta(seconds=601)
    assert timedelta(seconds=5) < left["f"] <= timedelta(seconds=11)


# ----------------------------------------------------------------------------------------------- hosts


def test_a_host_is_bound_to_the_engine_of_its_first_contact() -> None:
    heard: list[tuple[str, str]] = []

    def hear(sender: Any, host: ExecutorHost, previous: str, **kwargs: Any) -> None:
        heard.append((previous, host.health))

    host = make_host()
    assert host.health == "unknown"
    signals.host_status_changed.connect(hear)
    try:
        host.record_up(FACTS)
        host.record_up(FACTS)
        host.record_down(HostUnreachable("nothing answers"))
        host.refresh_from_db()
        assert (host.health, host.health_error, host.cpus) == ("unreachable", "nothing answers", 2)
        host.record_up(FACTS)
        assert host.facts["cgroup"] == "1"
        other = HostFacts(**{**_as_dict(FACTS), "engine_id": "e2"})
        with pytest.raises(HostMismatch, match=r"engine e2 answers .* bound to e1"):
            host.record_up(other)
    finally:
        signals.host_status_changed.disconnect(hear)
    host.refresh_from_db()
    assert (host.health, host.engine_id) == ("mismatched", "e1")
    assert heard == [
        ("unknown", "healthy"),
        ("healthy", "unreachable"),
        ("unreachable", "healthy"),
        ("healthy", "mismatched"),
    ]


def _as_dict(facts: HostFacts) -> dict[str, Any]:
    return {name: getattr(facts, name) for name in HostFacts.__slots__}


def _facts_of(engine_id: str) -> HostFacts:
    return HostFacts(**{**_as_dict(FACTS), "engine_id": engine_id})


def test_of_two_that_meet_a_host_first_one_binds_it() -> None:
    """From two machines the same address may be two engines, and a slow answer is as good as a quick one."""
    make_host()
    quick, slow = ExecutorHost.objects.get(), ExecutorHost.objects.get()
    quick.record_up(_facts_of("e1"))
    slow.bind(_facts_of("e1"))  # the same engine: both are right
    late = ExecutorHost(pk=quick.pk, name="one", executor_type="fake", connection_string="fake://one")
    with pytest.raises(HostMismatch, match=r"engine e2 answers .* bound to e1"):
        late.bind(_facts_of("e2"))
    assert late.engine_id == "e1"
    row = ExecutorHost.objects.get()
    assert (row.engine_id, row.health) == ("e1", "healthy")


def test_a_save_does_not_undo_what_a_worker_has_learnt_meanwhile() -> None:
    host = make_host()
    ExecutorHost.objects.get().record_up(_facts_of("e1"))
    host.weight = 7
    host.save()
    row = ExecutorHost.objects.get()
    assert (row.weight, row.engine_id, row.health) == (7, "e1", "healthy")
    row.engine_id = ""  # on purpose: it may be bound anew
    row.save()
    assert ExecutorHost.objects.get().engine_id == ""


def test_nobody_hears_of_a_change_that_the_row_does_not_show() -> None:
    """A worker that still follows jobs at a host's old address loses sight of it."""
    old = make_host()
    moved = ExecutorHost.objects.get()
    moved.connection_string = "fake://elsewhere"
    moved.save()
    heard: list[str] = []

    def hear(host: ExecutorHost, previous: str, **kwargs: Any) -> None:
        heard.append(host.health)

    signals.host_status_changed.connect(hear)
    try:
        old.record_down(HostUnreachable("nothing answers"))
        moved.record_up(_facts_of("e2"))
    finally:
        signals.host_status_changed.disconnect(hear)
    assert heard == ["healthy"]


def test_an_answer_from_the_old_address_does_not_bind_the_new_one() -> None:
    host = make_host()
    ExecutorHost.objects.update(connection_string="fake://moved")
    with pytest.raises(HostMismatch, match="has another address now"):
        host.record_up(FACTS)
    row = ExecutorHost.objects.get()
    assert (row.engine_id, row.health) == ("", "unknown")


def test_facts_of_an_engine_that_a_row_has_left_are_not_its_facts() -> None:
    host = make_host()
    host.record_up(FACTS)
    ExecutorHost.objects.update(engine_id="e2", cpus=64)
    host.record_up(FACTS)
    assert ExecutorHost.objects.get().cpus == 64


def test_the_facts_of_a_host_that_was_deleted_are_nobodys() -> None:
    host = make_host()
    ExecutorHost.objects.all().delete()
    host.record_up(FACTS)
    assert not ExecutorHost.objects.exists()


def test_recording_health_keeps_what_others_changed() -> None:
    host = make_host()
    ExecutorHost.objects.update(weight=7, is_active=False)
    host.record_up(FACTS)
    host.refresh_from_db()
    assert (host.weight, host.is_active, host.health) == (7, False, "healthy")


def test_the_type_is_taken_from_the_address() -> None:
    unix = ExecutorHost.objects.create(name="u", connection_string="unix:///var/run/docker.sock")
    tcp = ExecutorHost.objects.create(name="t", connection_string="tcp://[::1]:2375")
    assert (unix.host_type, tcp.host_type) == ("unix", "tcp")


def test_pulling_is_as_the_row_says_else_its_config_else_settings(settings: Any) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = fake_settings(AUTO_PULL_IMAGES=False, DOCKER_TIMEOUT=7)
    host = make_host()
    assert not host.as_config().auto_pull_images
    assert host.as_config().timeout_seconds == 7
    host.executor_config = {"auto_pull_images": True, "timeout": 3}
    assert host.as_config().auto_pull_images
    assert host.as_config().timeout_seconds == 3
    host.auto_pull_images = False
    assert not host.as_config().auto_pull_images


def test_a_host_with_jobs_is_not_deleted() -> None:
    host = make_host()
    make_job()
    with pytest.raises(ProtectedError):
        host.delete()


# ------------------------------------------------------------------------------------------------ jobs


def test_a_new_job_knows_what_it_asked_for() -> None:
    host = make_host()
    user = User.objects.create(username="boss")
    job = ContainerJob.objects.create_job(
        "demo:1",
        ["python", "-c", "print('a b')"],
        name="books",
        description="why",
        memory_limit=64,
        cpu_limit=0.5,
        timeout_seconds=9,
        working_directory="/srv",
        network_configuration=[{"network_name": "back", "aliases": ["db"]}, {"network_name": "front"}],
        environment_vars={"A": "1"},
        priority=3,
        created_by=user,
        user="2000:2000",
    )
    job = ContainerJob.objects.get(pk=job.pk)
    assert isinstance(job.id, uuid.UUID)
    assert (job.status, job.docker_host, job.docker_image) == ("pending", host, "demo:1")
    assert (job.command, job.command_form) == ("python -c 'print('\"'\"'a b'\"'\"')'", "exec")
    assert (job.memory_limit, job.cpu_limit, job.timeout_seconds) == (64, 0.5, 9)
    assert job.get_network_names() == ["back", "front"]
    assert job.get_execution_identifier() == ""
    assert (job.duration, job.exit_code, job.max_memory_usage) == (None, None, None)
    assert (str(job), job.created_by, job.priority, job.user) == ("books", user, 3, "2000:2000")
    assert not job.is_finished
    assert job.latest_execution is None
    assert list(job.iter_log("stdout")) == []


@pytest.mark.parametrize(
    ("command", "form"),
    [("echo hi", "exec"), ("echo hi | wc", "shell"), ("echo 'a | b'", "exec"), ("", "exec")],
)
def test_the_form_of_a_command_is_stored(command: str, form: str) -> None:
    make_host()
    assert make_job(command=command).command_form == form
    assert make_job(command="echo hi", command_form="shell").command_form == "shell"


def test_output_is_shown_clean_and_parsed() -> None:
    make_host()
    job = make_job()
    job.stdout_log = (
        "2030-01-01T00:00:00.000000000Z \x1b[31mred\x1b[0m\n2030-01-01T00:00:00.000000001Z [1, 2]\n"
    )
    assert job.clean_output == "red\n[1, 2]\n"
    assert job.parsed_output == [1, 2]
    job.stdout_log = "2030-01-01T00:00:00.000000000Z plain\n"
    assert job.parsed_output is None


def test_the_exact_log_is_read_chunk_by_chunk() -> None:
    make_host()
    ContainerJob.objects.filter(pk=make_job().pk).update(attempt=1)
    job = ContainerJob.objects.get()
    execution = ExecutionMetadata.objects.create(
        job=job, attempt=1, docker_host=job.docker_host, container_name="c", log_chunk_count=3
    )
    for sequence in range(3):
        frames = [LogFrame(STDOUT, sequence, b"out\0"), LogFrame(STDERR, sequence, b"\xff")]
        LogChunk.objects.create(
            execution=execution, sequence=sequence, data=encode(frames), last_timestamp_ns=sequence
        )
    lines = job.iter_log("stdout")
    assert next(lines) == b"out\0"
    assert list(lines) == [b"out\0"] * 2
    assert list(job.iter_log("stderr")) == [b"\xff"] * 3
    execution.log_chunks.filter(sequence=1).delete()  # retention took it
    assert len(list(job.iter_log("stdout"))) == 2
    with pytest.raises(ValueError, match="stream: 'both' is not known; use 'stdout' or 'stderr'"):
        job.iter_log("both")
    with pytest.raises(IntegrityError), transaction.atomic():
        LogChunk.objects.create(execution=execution, sequence=0, data=b"", last_timestamp_ns=0)
    execution.log_cursor_ns, execution.log_cursor_frames = 5, 2
    assert execution.log_cursor == LogCursor(5, 2)


def test_the_columns_can_be_filtered_and_aggregated() -> None:
    host = make_host()
    jobs = [make_job(name=f"j{n}") for n in range(3)]
    start = datetime(2030, 1, 1, tzinfo=UTC)
    for number, job in enumerate(jobs):
        ContainerJob.objects.filter(pk=job.pk).update(
            started_at=start,
            completed_at=start + timedelta(seconds=10 * number),
            max_memory_usage=5 * 2**40 * number,
            cpu_usage_percent=50.0 * number,
            exit_reason="success",
        )
    figures = ContainerJob.objects.aggregate(
        Max("max_memory_usage"), Avg("cpu_usage_percent"), mean=Avg(F("completed_at") - F("started_at"))
    )
    assert figures["max_memory_usage__max"] == 10 * 2**40  # 64 bit
    assert figures["cpu_usage_percent__avg"] == 50
    assert figures["mean"] == timedelta(seconds=10)
    counted = ContainerJob.objects.values("docker_host__name", "status").annotate(n=Count("id")).order_by()
    assert list(counted) == [{"docker_host__name": "one", "status": "pending", "n": 3}]
    assert host.jobs.count() == ContainerJob.objects.pending().count() == 3
    assert ContainerJob.objects.active().count() == ContainerJob.objects.finished().count() == 0
    assert ContainerJob.objects.get(name="j1").duration == timedelta(seconds=10)


def test_lists_leave_the_large_columns_where_they_are() -> None:
    make_host()
    make_job()
    sql = str(ContainerJob.objects.without_logs().query)
    for column in ("stdout_log", "stderr_log", "docker_log", "environment"):
        assert f'"{column}"' not in sql


def test_the_claim_is_served_by_its_index() -> None:
    if connection.vendor != "sqlite":
        return  # PostgreSQL prefers a scan on a table this small
    make_host()
    waiting = ContainerJob.objects.filter(status="pending", docker_host_id=1)
    plan = waiting.order_by("-priority", "created_at", "pk").values("pk")[:5].explain()
    assert "cm_job_claim" in plan


def test_the_load_of_hosts_is_read_from_the_index_of_open_jobs() -> None:
    """Whatever has ended there: with each job that was ever stored a new one would cost more."""
    make_host()
    sql = str(with_load(ExecutorHost.objects.all()).query)
    assert " JOIN " not in sql
    assert "GROUP BY" not in sql.partition("SELECT COUNT")[0]
    if connection.vendor == "sqlite":  # others prefer a scan on a table this small
        reads = [line for line in _load_plan() if "containerjob" in line or " U0 " in line]
        assert len(reads) == 2
        for line in reads:
            assert "COVERING INDEX cm_job_claim (status=? AND docker_host_id=?)" in line


@pytest.mark.postgres
def test_the_load_of_hosts_is_read_from_an_index_on_postgres_too() -> None:
    host = make_host()
    QuerySet(ContainerJob).bulk_create(
        ContainerJob(docker_image="demo:1", docker_host=host, status="completed") for _ in range(5_000)
    )
    make_job()
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE container_manager_containerjob")
    plan = "\n".join(_load_plan())
    assert plan.count("on container_manager_containerjob") == 2
    assert "Seq Scan on container_manager_containerjob" not in plan


def _load_plan() -> list[str]:
    return with_load(ExecutorHost.objects.all()).explain().splitlines()


def test_the_load_counts_what_is_open_by_host() -> None:
    busy, idle = make_host("busy"), make_host("idle")
    lease = hold("fake-busy")
    for _ in range(2):
        start_job(make_job(docker_host=busy), lease)
    lifecycle.claim(lease, busy, limit=1, worker="w", only=[make_job(docker_host=busy).pk])
    make_job(docker_host=busy)
    ended = make_job(docker_host=idle)
    finish_job(ended)
    found = with_load(ExecutorHost.objects.order_by("name")).values_list("name", "used_slots", "queued_jobs")
    assert list(found) == [("busy", 3, 1), ("idle", 0, 0)]


def test_a_form_is_told_by_field() -> None:
    host = make_host()
    job = ContainerJob(docker_image="", docker_host=host)
    with pytest.raises(ValidationError) as caught:
        job.clean()
    assert list(caught.value.message_dict) == ["docker_image"]
    job = ContainerJob(docker_image="demo:1", docker_host=host, memory_limit=10**6)
    with pytest.raises(ValidationError) as caught:
        job.full_clean()
    assert "memory_limit" in caught.value.message_dict


def test_deleting_a_job_takes_its_record_along() -> None:
    make_host()
    job = make_job()
    ExecutionMetadata.objects.create(job=job, attempt=1, docker_host=job.docker_host, container_name="c")
    job.delete()
    assert not JobEvent.objects.exists()
    assert not ExecutionMetadata.objects.exists()


def test_an_event_reads_as_a_sentence() -> None:
    make_host()
    assert str(make_job().events.get()) == "create: - -> pending"


def test_a_deleted_template_leaves_the_variables() -> None:
    make_host()
    template = EnvironmentVariableTemplate.objects.create(name="t", environment_variables_text="A=1")
    job = make_job(environment_template="t")
    template.delete()
    job = ContainerJob.objects.get(pk=job.pk)
    assert (job.environment_template, job.environment) == (None, {"A": "1"})


def test_the_installation_has_one_identity(settings: Any) -> None:
    first = Installation.current()
    assert uuid.UUID(first)
    assert Installation.current() == first
    assert Installation.objects.count() == 1
    settings.CONTAINER_MANAGER_SETTINGS = fake_settings(INSTALLATION_ID="staging")
    assert Installation.current() == "staging"
