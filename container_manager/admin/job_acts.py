"""What the pages do with jobs: cancel them, run them again. Each tells what was done and what was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from container_manager.core.errors import InvalidJob
from container_manager.models import ContainerJob


@dataclass(slots=True, kw_only=True)
class Tally:
    """How many jobs something was done to, and why it was not done to the others."""

    done: list[ContainerJob] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def sentence(self, what: str) -> str:
        """For example: "2 cancelled, 1 skipped: 1 has ended already."."""
        text = f"{len(self.done)} {what}"
        if self.skipped:
            reasons = "; ".join(f"{count} \u00d7 {reason}" for reason, count in self.skipped.most_common(5))
            text += f", {self.skipped.total()} skipped: {reasons}"
        return text.rstrip(".") + "."


def cancel_all(jobs: Iterable[ContainerJob], actor: str) -> Tally:
    """Ask for the end of each job that has not ended."""
    tally = Tally()
    for job in jobs:
        before = job.cancel_requested_at
        if not job.cancel(by=actor):
            tally.skipped["has ended already"] += 1
        elif before is not None:
            tally.skipped["is being cancelled already"] += 1
        else:
            tally.done.append(job)
    return tally


def run_all_again(jobs: Iterable[ContainerJob], person: Any) -> Tally:
    """Enqueue each job once more, as a new job of `person`."""
    tally = Tally()
    for job in jobs:
        try:
            tally.done.append(run_again(job, person))
        except InvalidJob as error:
            tally.skipped[str(error)] += 1
    return tally


def run_again(job: ContainerJob, person: Any) -> ContainerJob:
    """A new job with the same wishes. Raises InvalidJob where today's policy refuses them.

    The template is read anew, so a rotated secret is taken up. Where the template is gone, the values
    that the old job was given are kept. A job that was placed by us is placed anew.
    """
    template = job.environment_template
    return ContainerJob.objects.create_job(
        job.docker_image,
        job.command,
        command_form=job.command_form,
        environment_template=template,
        environment_vars=job.environment if template is None else job.environment_vars,
        docker_host=job.docker_host if job.host_pinned else None,
        name=job.name,
        description=job.description,
        priority=job.priority,
        working_directory=job.working_directory,
        memory_limit=job.memory_limit,
        cpu_limit=job.cpu_limit,
        timeout_seconds=job.timeout_seconds,
        retry=job.retry,
        deadline_seconds=job.deadline_seconds,
        network_configuration=job.network_configuration,
        user=job.user,
        read_only_root=job.read_only_root,
        created_by=person,
    )
