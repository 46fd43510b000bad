"""What the demo enqueues, and the table of what came back. Import after Django is set up."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from place import DEMO, Place
from rich.console import Console
from rich.table import Table

from container_manager.core.states import Status
from container_manager.models import ContainerJob, ExecutorHost
from container_manager.signals import job_status_changed

CANCELLED = "cancelled while it runs"
NUMBERS = {"exit", "duration", "peak memory", "CPU"}


def enqueue(place: Place, host: ExecutorHost) -> list[ContainerJob]:
    """One job for each way in which a job can end."""
    common: dict[str, Any] = {"docker_host": host}
    own: dict[str, Any] = {**common, "environment_vars": {"DEMO_DATABASE": "/tmp/db.sqlite3"}}
    if not place.is_docker:
        # Plain processes see this machine's /tmp and its project: a database in memory, and our own Python.
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
        own["environment_vars"] = {"DEMO_DATABASE": ":memory:", "PATH": path}
        own["working_directory"] = str(DEMO)
    command, plain = ContainerJob.objects.create_command_job, ContainerJob.objects.create_job
    return [
        command("migrate", "--no-color", **own),
        command("check", "--deploy", name="check --deploy", **own),
        command("import_packages", "--migrate", **own),
        plain(place.base, "seq 1 1000 | grep 7 | wc -l", name="shell pipeline", **common),
        plain(place.base, ["seq", "1", "100000"], name="a long log", **common),
        command("misbehave", "fail", name="a command that fails", **own),
        command("misbehave", "memory", name="runs out of memory", memory_limit=96, **own),
        command("misbehave", "sleep", name="runs out of time", timeout_seconds=3, **own),
        command("misbehave", "sleep", name=CANCELLED, **own),
    ]


def cancel_when_running() -> None:
    """Cancel the one job whose name says so, as a person would who sees it run."""
    job_status_changed.connect(_cancel, dispatch_uid="demo-cancel")


def _cancel(job: ContainerJob, **_: Any) -> None:
    if job.name == CANCELLED and job.status == Status.RUNNING:
        ContainerJob.objects.get(pk=job.pk).cancel()


def show(jobs: list[ContainerJob]) -> None:
    """The table, and the JSON that the import printed."""
    console = Console()
    table = Table(title="What came back")
    for heading in ("job", "status", "reason", "exit", "duration", "peak memory", "CPU", "host"):
        table.add_column(
            heading, justify="right" if heading in {"exit", "duration", "peak memory", "CPU"} else "left"
        )
    rows = {
        job.pk: job
        for job in ContainerJob.objects.select_related("docker_host").filter(pk__in=[j.pk for j in jobs])
    }
    for job in (rows[job.pk] for job in jobs):
        table.add_row(
            job.name,
            job.status,
            job.exit_reason,
            _known(job.exit_code, "{}"),
            _known(job.duration.total_seconds() if job.duration else None, "{:.1f} s"),
            _known(job.max_memory_usage and job.max_memory_usage / 2**20, "{:.0f} MB"),
            _known(job.cpu_usage_percent, "{:.0f} %"),
            job.docker_host.name if job.docker_host else "-",
        )
    console.print(table)
    for job in rows.values():
        if job.parsed_output and job.name == "import_packages":
            console.print("parsed_output of import_packages:")
            console.print_json(data=job.parsed_output)


def _known(value: Any, form: str) -> str:
    return "unknown" if value is None else form.format(value)
