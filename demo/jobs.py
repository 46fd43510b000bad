"""What the demo enqueues, and the table of what came back. Import after Django is set up."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from place import DEMO, Place, say
from rich.console import Console
from rich.table import Table

from container_manager.core.states import Status
from container_manager.models import ContainerJob, ExecutorHost
from container_manager.signals import job_status_changed

CANCELLED = "cancelled"
NUMBERS = ("exit", "time", "peak", "CPU")


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
        plain(place.base, ["seq", "1", "100000"], name="long log", **common),
        command("misbehave", "fail", name="fails", **own),
        command("misbehave", "memory", name="out of memory", memory_limit=96, **own),
        command("misbehave", "sleep", name="out of time", timeout_seconds=3, **own),
        command("misbehave", "sleep", name=CANCELLED, **own),
    ]


def tell_and_cancel() -> None:
    """Tell each change of status as it comes, and cancel one job as a person would who sees it run."""
    job_status_changed.connect(_told, dispatch_uid="demo-tell")


def _told(job: ContainerJob, **_: Any) -> None:
    if job.status != Status.LAUNCHING:
        reason = f" ({job.exit_reason})" if job.exit_reason else ""
        say(f"{job.name:<16}{job.status}{reason}")
    if job.name == CANCELLED and job.status == Status.RUNNING:
        ContainerJob.objects.get(pk=job.pk).cancel()


def show(jobs: list[ContainerJob]) -> None:
    """The table, 80 columns wide at the most, and the JSON that the import printed."""
    console = Console()
    table = Table(
        title="\nWhat came back\n",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="bold underline",
    )
    for heading in ("job", "status", "reason", *NUMBERS, "host"):
        table.add_column(heading, justify="right" if heading in NUMBERS else "left", no_wrap=True)
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
            _known(None if job.duration is None else job.duration.total_seconds(), "{:.1f} s"),
            _known(job.max_memory_usage and job.max_memory_usage / 2**20, "{:.0f} MB"),
            _known(job.cpu_usage_percent, "{:.0f} %"),
            job.docker_host.name if job.docker_host else "-",
        )
    console.print(table)
    for job in rows.values():
        if job.parsed_output and job.name == "import_packages":
            console.print("\nparsed_output of import_packages:")
            console.print(job.parsed_output)


def _known(value: Any, form: str) -> str:
    return "unknown" if value is None else form.format(value)
