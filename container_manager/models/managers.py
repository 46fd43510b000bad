"""The ways to make and query jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django.db import models

from container_manager.conf import get_settings
from container_manager.core.commands import CommandForm, parse_command
from container_manager.core.errors import IllegalTransition, InvalidJob
from container_manager.core.states import ACTIVE, FINAL, Status
from container_manager.models import admission
from container_manager.models.host import ExecutorHost

if TYPE_CHECKING:
    from container_manager.models.environment import EnvironmentVariableTemplate
    from container_manager.models.job import ContainerJob


class ContainerJobQuerySet(models.QuerySet["ContainerJob"]):
    """Jobs, with the names that queries need. The status is not for queries to write."""

    def pending(self) -> ContainerJobQuerySet:
        """Jobs that wait to be claimed."""
        return self.filter(status=Status.PENDING)

    def active(self) -> ContainerJobQuerySet:
        """Jobs that a worker holds."""
        return self.filter(status__in=[status.value for status in ACTIVE])

    def finished(self) -> ContainerJobQuerySet:
        """Jobs with a final status."""
        return self.filter(status__in=[status.value for status in FINAL])

    def without_logs(self) -> ContainerJobQuerySet:
        """The rows without their large columns, for lists."""
        return self.defer("stdout_log", "stderr_log", "docker_log", "environment", "environment_vars")

    def update(self, **kwargs: Any) -> int:
        """As Django's, but for `status`, which only the state machine changes."""
        if "status" in kwargs:
            raise IllegalTransition(
                "status: a query cannot change it, since no event and no signal would tell. "
                "Call cancel() on each job."
            )
        return super().update(**kwargs)

    def bulk_update(
        self, objs: Iterable[ContainerJob], fields: Iterable[str], *args: Any, **kwargs: Any
    ) -> int:
        """As Django's, but for `status`."""
        names = list(fields)
        if "status" in names:
            raise IllegalTransition("status: bulk_update cannot change it. Call cancel() on each job.")
        return super().bulk_update(objs, names, *args, **kwargs)

    def bulk_create(self, objs: Iterable[ContainerJob], *args: Any, **kwargs: Any) -> list[ContainerJob]:
        """Admit and store many jobs with a constant number of queries; one bad job refuses them all.

        Jobs are always new: what Django offers for rows that are there already would write past the
        state machine, and is refused.
        """
        from container_manager import lifecycle

        if kwargs.get("ignore_conflicts") or kwargs.get("update_conflicts") or len(args) > 1:
            raise InvalidJob(
                "bulk_create",
                "jobs are always new; leave out ignore_conflicts and update_conflicts.",
            )
        admitted = admission.jobs_admitted(objs)
        return lifecycle.create_many(
            admitted, lambda jobs: super(ContainerJobQuerySet, self).bulk_create(jobs, *args, **kwargs)
        )


class ContainerJobManager(models.Manager.from_queryset(ContainerJobQuerySet)):  # type: ignore[misc]
    """`ContainerJob.objects`."""

    def create_job(
        self,
        image: str,
        command: str | Sequence[str] = "",
        *,
        environment_template: EnvironmentVariableTemplate | str | None = None,
        environment_vars: Mapping[str, str] | None = None,
        docker_host: ExecutorHost | None = None,
        command_form: str = CommandForm.AUTO,
        **fields: Any,
    ) -> ContainerJob:
        """Enqueue a command in an image.

        `command` is a list (exec form) or a string; a string that needs a shell gets one, and
        `command_form` overrides that choice. `fields` are the job's other columns: `name`, `memory_limit`
        (MB), `cpu_limit` (cores), `timeout_seconds`, `working_directory`, `network_configuration`,
        `priority`, `user`, `read_only_root`, `description`, `created_by`, `deadline_seconds` (from creation
        to end, all attempts together), `retry` (a number of attempts, or a policy: see `core.retry`).
        Nothing is visible to a worker before the caller's transaction commits. Raises InvalidJob, which
        names the field; nothing is stored then.
        """
        job = self._build(
            image, command, environment_template, environment_vars, docker_host, command_form, fields
        )
        job.save(force_insert=True, using=self._db)
        return job

    def create_jobs(self, wishes: Iterable[Mapping[str, Any]]) -> list[ContainerJob]:
        """Enqueue many jobs at once, each given as the arguments of `create_job`.

        The number of queries does not depend on the number of jobs. One bad job refuses all of them.
        """
        templates: dict[str, EnvironmentVariableTemplate] = {}
        jobs = []
        for wish in wishes:
            arguments = dict(wish)
            template = arguments.pop("environment_template", None)
            if isinstance(template, str):
                if template not in templates:
                    found = admission.find_template(template)
                    assert found is not None  # noqa: S101 - a name yields a template or raises
                    templates[template] = found
                template = templates[template]
            jobs.append(
                self._build(
                    arguments.pop("image", ""),
                    arguments.pop("command", ""),
                    template,
                    arguments.pop("environment_vars", None),
                    arguments.pop("docker_host", None),
                    arguments.pop("command_form", CommandForm.AUTO),
                    arguments,
                )
            )
        return list(self.bulk_create(jobs))

    def create_command_job(
        self, command_name: str, *args: str, image: str | None = None, **fields: Any
    ) -> ContainerJob:
        """Enqueue one of the project's own management commands: `manage.py <command_name> <args>`.

        Runs in `image`, by default the project's own (`COMMAND_IMAGE`, which `build_job_image` makes).
        Further keywords as in `create_job`; `name` defaults to the command's.
        """
        settings = get_settings()
        chosen = image or settings.COMMAND_IMAGE
        if not chosen:
            raise InvalidJob(
                "docker_image",
                "no image is given and CONTAINER_MANAGER_SETTINGS['COMMAND_IMAGE'] is empty. "
                "Set it to the tag that `build_job_image` printed, or build the image first.",
            )
        if not isinstance(command_name, str) or not command_name or command_name.startswith("-"):
            raise InvalidJob("command", f"{command_name!r} is not the name of a management command.")
        fields.setdefault("name", command_name)
        return self.create_job(chosen, [*settings.COMMAND_PREFIX, command_name, *args], **fields)

    def _build(
        self,
        image: str,
        command: str | Sequence[str],
        template: EnvironmentVariableTemplate | str | None,
        environment_vars: Mapping[str, str] | None,
        docker_host: ExecutorHost | None,
        command_form: str,
        fields: Mapping[str, Any],
    ) -> ContainerJob:
        known = {item.name for item in self.model._meta.concrete_fields if item.editable}
        for name in fields:
            if name not in known:
                raise InvalidJob(name, f"there is no such field. Known: {', '.join(sorted(known))}.")
        if docker_host is not None and not isinstance(docker_host, ExecutorHost):
            raise InvalidJob(
                "docker_host", f"{docker_host!r} is a {type(docker_host).__name__}; give an ExecutorHost."
            )
        parsed = parse_command(command, admission.command_form(command_form))
        job: ContainerJob = self.model(
            docker_image=image,
            command=parsed.text,
            command_form=parsed.form,
            environment_template=admission.find_template(template),
            environment_vars=_copied(environment_vars),
            **fields,
        )
        if docker_host is not None:
            job.docker_host = docker_host
        return job


def _copied(environment_vars: Mapping[str, str] | None) -> Any:
    if environment_vars is None:
        return {}
    return dict(environment_vars) if isinstance(environment_vars, Mapping) else environment_vars
