"""A user's own command that hands work to containers and waits for it, as the guide's example does."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from container_manager.management.commands.process_container_jobs import Command as ProcessCommand
from container_manager.models import ContainerJob, ExecutorHost

PROGRAM = """
import os, sys
name, number = sys.argv[1:]
assert (os.environ["WORKER_ID"], os.environ["INPUT_FILE"]) == (number, name)
print(f"worker {number} has read {name}")
sys.exit(int(number) == 2)
"""


class Command(BaseCommand):
    help = "Process a data file with workers in containers."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--input-file", required=True)
        parser.add_argument("--workers", type=int, default=1)
        parser.add_argument("--memory", type=int, default=512)

    def handle(self, *args: Any, **options: Any) -> None:
        if not ExecutorHost.objects.filter(executor_type="docker", is_active=True).exists():
            raise CommandError("No active Docker hosts available")
        name = options["input_file"]
        jobs = [
            ContainerJob.objects.create_job(
                image="data-processor:latest",
                command=["python", "-c", PROGRAM, name, str(number)],
                name=f"data-worker-{number}",
                memory_limit=options["memory"],
                cpu_limit=1.0,
                environment_vars={"WORKER_ID": str(number), "INPUT_FILE": name, "LOG_LEVEL": "INFO"},
            )
            for number in range(options["workers"])
        ]
        self.stdout.write(f"Created {len(jobs)} processing jobs")

        ProcessCommand().handle(once=True)

        # The worker wrote rows; these instances are older than that.
        for job in jobs:
            job.refresh_from_db()
        completed = sum(job.status == "completed" for job in jobs)
        failed = sum(job.status == "failed" for job in jobs)
        self.stdout.write(f"Results: {completed} completed, {failed} failed")
