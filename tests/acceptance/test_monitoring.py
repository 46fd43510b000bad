"""Guide: Resource Monitoring, Health and Job Monitoring, Performance Issues, Alerting, Capacity Planning."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest
from django.core import mail
from django.core.exceptions import FieldError
from django.core.mail import send_mail
from django.db import connection
from django.db.models import Avg, Count, F, Max, Sum
from django.db.models.functions import Length, TruncHour
from django.utils import timezone

from container_manager.executors.factory import ExecutorFactory
from container_manager.models import ContainerJob, ExecutorHost
from tests.acceptance.running import OBEDIENT_PROGRAM, drain, register, stored, until, worker_thread

pytestmark = pytest.mark.engine

BUSY = "data = b'x' * (40 << 20); import time; end = time.monotonic() + 3\nwhile time.monotonic() < end: pass"


@pytest.fixture
def history(local_host: ExecutorHost) -> dict[str, ContainerJob]:
    """Some jobs that have run: two good ones, one of them long enough to be measured, and a bad one."""
    jobs = {
        "quick": ContainerJob.objects.create_job(image="alpine:3.18", command="echo quick", name="quick"),
        "busy": ContainerJob.objects.create_job(
            image="python:3.11", command=["python", "-c", BUSY], name="busy", memory_limit=1024
        ),
        "bad": ContainerJob.objects.create_job(image="alpine:3.18", command="sh -c 'exit 1'", name="bad"),
    }
    drain()
    return {name: stored(job) for name, job in jobs.items()}


def test_the_queries_of_the_guide(history: dict[str, ContainerJob]) -> None:
    counts = {
        row["status"]: row["count"]
        for row in ContainerJob.objects.values("status").annotate(count=Count("id"))
    }
    assert counts == {"completed": 2, "failed": 1}

    yesterday = timezone.now() - timedelta(days=1)
    assert ContainerJob.objects.filter(created_at__gte=yesterday).count() == 3
    failures = ContainerJob.objects.filter(status="failed").order_by("-created_at")[:5]
    assert [job.name for job in failures] == ["bad"]
    recent = ContainerJob.objects.filter(status="failed", created_at__gte=timezone.now() - timedelta(hours=1))
    assert recent.count() == 1

    assert ContainerJob.objects.filter(status="running", memory_limit__gte=1024).count() == 0
    assert ContainerJob.objects.filter(memory_limit__gt=1023).count() == 1
    assert ContainerJob.objects.filter(cpu_limit__gt=2.0).count() == 0
    assert ContainerJob.objects.filter(memory_limit__isnull=True).count() == 0
    assert ContainerJob.objects.filter(cpu_limit__isnull=True).count() == 0


def test_usage_is_aggregated_over_the_jobs_where_it_is_known(history: dict[str, ContainerJob]) -> None:
    memory = ContainerJob.objects.filter(max_memory_usage__isnull=False).aggregate(
        avg_memory=Avg("max_memory_usage"), max_memory=Max("max_memory_usage"), job_count=Count("id")
    )
    assert memory["job_count"] >= 1
    assert memory["max_memory"] == history["busy"].max_memory_usage
    assert memory["avg_memory"] / (1024 * 1024) > 0
    cpu = ContainerJob.objects.filter(cpu_usage_percent__isnull=False).aggregate(
        avg_cpu=Avg("cpu_usage_percent"), max_cpu=Max("cpu_usage_percent")
    )
    assert cpu["max_cpu"] >= cpu["avg_cpu"] > 0
    top = ContainerJob.objects.filter(max_memory_usage__isnull=False).order_by("-max_memory_usage")[:5]
    assert top[0] == history["busy"]


def test_the_time_to_start_is_an_aggregate(history: dict[str, ContainerJob]) -> None:
    average = (
        ContainerJob.objects.filter(started_at__isnull=False, created_at__isnull=False)
        .annotate(startup_seconds=F("started_at") - F("created_at"))
        .aggregate(avg_startup=Avg("startup_seconds"))["avg_startup"]
    )
    assert timedelta(0) < average < timedelta(minutes=1)


def test_large_logs_are_found_by_their_length(history: dict[str, ContainerJob]) -> None:
    sized = ContainerJob.objects.filter(stdout_log__isnull=False).extra(
        select={"log_size": "LENGTH(stdout_log)"}
    )
    assert sized.order_by("-log_size")[0].name == "quick"
    with pytest.raises(FieldError):  # Django cannot filter on a column of `extra`; the next form does it
        sized.filter(log_size__gt=10)
    large = ContainerJob.objects.annotate(log_size=Length("stdout_log")).filter(log_size__gt=10)
    assert [job.name for job in large.order_by("-log_size")[:10]] == ["quick"]


def test_capacity_is_planned_from_sums(history: dict[str, ContainerJob]) -> None:
    stats = ContainerJob.objects.filter(created_at__gte=timezone.now() - timedelta(days=7)).aggregate(
        total_jobs=Count("id"),
        avg_memory=Avg("memory_limit"),
        total_memory=Sum("memory_limit"),
        avg_cpu=Avg("cpu_limit"),
        total_cpu=Sum("cpu_limit"),
    )
    assert stats == {
        "total_jobs": 3,
        "avg_memory": 512.0,
        "total_memory": 1536,
        "avg_cpu": 1.0,
        "total_cpu": 3.0,
    }
    slots = ExecutorHost.objects.filter(executor_type="docker", is_active=True).aggregate(
        total_slots=Sum("max_concurrent_jobs")
    )
    assert slots == {"total_slots": 5}
    peak = (
        ContainerJob.objects.filter(started_at__isnull=False)
        .annotate(hour=TruncHour("started_at"))
        .values("hour")
        .annotate(jobs=Count("*"), memory=Sum("memory_limit"), cpu=Sum("cpu_limit"))
        .order_by("-jobs")
    )
    assert sum(row["jobs"] for row in peak) == 3


@pytest.mark.postgres
def test_the_guides_own_sql_for_the_peak_runs_on_postgresql(history: dict[str, ContainerJob]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT DATE_TRUNC('hour', started_at) AS hour, COUNT(*) AS jobs, "
            "SUM(memory_limit), SUM(cpu_limit) "
            "FROM container_manager_containerjob "
            "WHERE started_at IS NOT NULL AND started_at >= NOW() - INTERVAL '7 days' "
            "GROUP BY hour ORDER BY jobs DESC LIMIT 5"
        )
        assert sum(row[1] for row in cursor.fetchall()) == 3


def test_a_jobs_performance_can_be_read_from_its_record(history: dict[str, ContainerJob]) -> None:
    job = history["busy"]
    assert job.max_memory_usage is not None
    assert 40 <= job.max_memory_usage / (1024 * 1024) <= 100
    assert job.cpu_usage_percent is not None
    assert 10 < job.cpu_usage_percent <= 105
    assert job.duration is not None
    assert job.duration >= timedelta(seconds=3)
    efficiency = (job.max_memory_usage / (1024 * 1024)) / job.memory_limit * 100
    assert 3 < efficiency < 10


def test_running_jobs_are_counted_while_they_run(local_host: ExecutorHost) -> None:
    job = ContainerJob.objects.create_job(
        image="python:3.11",
        command=["python", "-c", OBEDIENT_PROGRAM],
        memory_limit=1024,
    )
    running = ContainerJob.objects.filter(status="running", memory_limit__gte=1024)
    with worker_thread():
        until(lambda: running.count() == 1, "the job to be counted as running")
        stored(job).cancel()
    assert running.count() == 0


def test_an_alert_on_failures_and_on_sick_hosts_reaches_the_admins(
    history: dict[str, ContainerJob], tmp_path: object, caplog: pytest.LogCaptureFixture
) -> None:
    register(f"unix://{tmp_path}/nothing.sock", "sick-host")
    logger = logging.getLogger("container_manager.alerts")

    def alert(message: str) -> None:
        logger.error("Container Manager Alert: %s", message)
        send_mail("Container Manager Alert - ERROR", message, "jobs@example.com", ["admin@example.com"])

    failures = ContainerJob.objects.filter(status="failed").count()
    if failures > 0:
        alert(f"High failure rate: {failures} jobs failed in last hour")
    sick = []
    for host in ExecutorHost.objects.filter(executor_type="docker", is_active=True):
        executor = ExecutorFactory.create_executor("docker", {"docker_host": host})
        if not executor.get_health_status()["healthy"]:
            sick.append(host.name)
        executor.close()
    assert sick == ["sick-host"]
    alert(f"Unhealthy Docker hosts: {', '.join(sick)}")
    assert [message.body for message in mail.outbox] == [
        "High failure rate: 1 jobs failed in last hour",
        "Unhealthy Docker hosts: sick-host",
    ]
    assert "sick-host" in caplog.text
