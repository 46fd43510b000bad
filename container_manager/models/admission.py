"""Admission: what a caller asked for becomes a job that may run, or an error that says what to change.

No network call is made here. Every check of a job's own fields happens in this one place, whichever way
the job was made: `create_job`, `create`, `bulk_create`, a form, or `save`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from django.core.exceptions import ObjectDoesNotExist
from django.db.models import Count, OuterRef, QuerySet, Subquery, prefetch_related_objects
from django.db.models.functions import Coalesce
from django.utils import timezone

from container_manager.conf import get_settings
from container_manager.core.commands import CommandForm, parse_command
from container_manager.core.environment import check_environment, merge
from container_manager.core.errors import InvalidJob, NoEligibleHost
from container_manager.core.images import parse_image
from container_manager.core.limits import shown
from container_manager.core.networks import parse_networks
from container_manager.core.placement import HostState, choose
from container_manager.core.policy import JobRequest, build_spec, enforce
from container_manager.core.retry import RetryPolicy, parse_retry
from container_manager.core.spec import ContainerSpec
from container_manager.core.states import ACTIVE, Status
from container_manager.models.environment import EnvironmentVariableTemplate
from container_manager.models.host import ExecutorHost

if TYPE_CHECKING:
    from container_manager.models.job import ContainerJob

MAX_DEADLINE_SECONDS = 366 * 86_400
REGISTER_HINT = "Register the local engine with: python manage.py register_local_host"


@dataclass(slots=True)
class Desk:
    """Admits a batch of jobs with a constant number of queries: hosts and their load are read once."""

    _hosts: list[ExecutorHost] | None = None
    _states: dict[int, HostState] = field(default_factory=dict)

    def admit(self, job: ContainerJob) -> None:
        """Check and complete one job in place; nothing is written. Raises InvalidJob."""
        check(job)
        if job.docker_host_id is None:
            job.docker_host = self._place(job)
            job.host_pinned = False
        host = _host_of(job)
        if not host.is_active:
            raise NoEligibleHost(f"the host {host.name!r} is not active. Activate it, or name another one.")
        enforce(request_of(job), get_settings().policy(), cpus=host.cpus, host_name=host.name)

    def _place(self, job: ContainerJob) -> ExecutorHost:
        if self._hosts is None:
            self._hosts = list(with_load(ExecutorHost.objects.order_by("name")))
            self._states = {host.pk: host_state(host) for host in self._hosts}
        chosen = choose(list(self._states.values()), cpus=job.cpu_limit)
        self._states[int(chosen.key)] = _with_one_more(chosen)
        return next(host for host in self._hosts if str(host.pk) == chosen.key)


def with_load(hosts: QuerySet[ExecutorHost]) -> QuerySet[ExecutorHost]:
    """The hosts with `used_slots` and `queued_jobs`.

    Each figure is a subquery over the open jobs of one host, which the index of the claims serves: a join
    would read all that ever ran there, for each new job.
    """
    return hosts.annotate(
        used_slots=_jobs_of_host(*ACTIVE),
        queued_jobs=_jobs_of_host(Status.PENDING),
    )


def _jobs_of_host(*statuses: Status) -> Coalesce:
    from container_manager.models.job import ContainerJob

    jobs: QuerySet[ContainerJob] = QuerySet(ContainerJob).filter(
        docker_host=OuterRef("pk"), status__in=[status.value for status in statuses]
    )
    counted = jobs.order_by().values("docker_host").annotate(count=Count("*"))
    return Coalesce(Subquery(counted.values("count")), 0)


def host_state(host: ExecutorHost) -> HostState:
    """A host row, as `with_load` has read it, for the placement."""
    return HostState(
        key=str(host.pk),
        name=host.name,
        is_active=host.is_active,
        status=host.health,
        weight=host.weight,
        max_jobs=host.max_concurrent_jobs,
        used=getattr(host, "used_slots", 0),
        queued=getattr(host, "queued_jobs", 0),
        cpus=host.cpus,
    )


def check(job: ContainerJob) -> None:
    """Check and complete everything about a job but its place. Raises InvalidJob."""
    parse_image(job.docker_image)
    parsed = parse_command(job.command, command_form(job.command_form))
    job.command, job.command_form = parsed.text, parsed.form
    job.environment_vars = check_environment(job.environment_vars)
    inherited = job.environment_template.get_environment_variables() if job.environment_template else {}
    job.environment = merge(inherited, job.environment_vars)
    parse_networks(job.network_configuration)
    job.retry = parse_retry(job.retry).as_json()
    _check_deadline(job.deadline_seconds)
    job.deadline_at = None
    if job.deadline_seconds is not None:
        job.deadline_at = (job.created_at or timezone.now()) + timedelta(seconds=job.deadline_seconds)
    enforce(request_of(job), get_settings().policy())
    for field_name in ("name", "description"):
        _check_text(field_name, getattr(job, field_name))
    if len(job.name) > 200:
        raise InvalidJob("name", f"it has {len(job.name)} characters; use at most 200.")
    if (
        isinstance(job.priority, bool)
        or not isinstance(job.priority, int)
        or not -32768 <= job.priority <= 32767
    ):
        raise InvalidJob("priority", f"{job.priority!r} is not a whole number from -32768 to 32767.")


def command_form(name: str) -> CommandForm:
    """A form by its name; empty means that the command decides. Raises InvalidJob."""
    try:
        return CommandForm(name or CommandForm.AUTO)
    except ValueError:
        raise InvalidJob("command_form", f"{name!r} is not one of {', '.join(CommandForm)}.") from None


def request_of(job: ContainerJob) -> JobRequest:
    """The job's own wishes as the policy sees them."""
    return JobRequest(
        image=job.docker_image,
        argv=parse_command(job.command, CommandForm(job.command_form)).argv,
        environment=dict(job.environment),
        working_directory=job.working_directory,
        memory_limit=job.memory_limit,
        cpu_limit=job.cpu_limit,
        timeout_seconds=job.timeout_seconds,
        networks=parse_networks(job.network_configuration),
        user=job.user,
        read_only_root=job.read_only_root,
    )


def spec_of(job: ContainerJob, installation: str, *, as_admitted: bool = False) -> ContainerSpec:
    """The container of the job's current attempt, built from the policy in force. Raises InvalidJob.

    `as_admitted`: it may be running already, and a ceiling that was lowered since does not undo that.
    """
    policy = get_settings().policy()
    if as_admitted:
        policy = replace(
            policy,
            max_memory_mb=max(policy.max_memory_mb, job.memory_limit),
            max_cpus=max(policy.max_cpus, job.cpu_limit),
            max_timeout=max(policy.max_timeout, job.timeout_seconds),
            allow_writable_root=True,
        )
    return build_spec(
        request_of(job),
        policy,
        name=job.container_name,
        installation=installation,
        job_id=str(job.pk),
        attempt=job.attempt,
    )


def move_what_does_not_fit(host: ExecutorHost) -> None:
    """Place again what we placed on a host before it was known to have too few CPUs for it.

    What no other host can take stays, to be refused when it is claimed.
    """
    if host.cpus is None:
        return
    from container_manager.models.job import ContainerJob

    waiting = ContainerJob.objects.filter(docker_host=host, status=Status.PENDING, host_pinned=False)
    too_big = list(waiting.filter(cpu_limit__gt=host.cpus).values_list("pk", "cpu_limit"))
    if not too_big:
        return
    states = {other.pk: host_state(other) for other in with_load(ExecutorHost.objects.order_by("name"))}
    for pk, cpus in too_big:
        try:
            chosen = choose(list(states.values()), cpus=cpus)
        except NoEligibleHost:
            continue
        states[int(chosen.key)] = _with_one_more(chosen)
        waiting.filter(pk=pk).update(docker_host_id=int(chosen.key))


def find_template(
    template: EnvironmentVariableTemplate | str | None,
) -> EnvironmentVariableTemplate | None:
    """A template by name or instance. Raises InvalidJob for an unknown name."""
    if template is None or isinstance(template, EnvironmentVariableTemplate):
        return template
    if not isinstance(template, str):
        raise InvalidJob("environment_template", f"{template!r} is neither a template nor the name of one.")
    try:
        return EnvironmentVariableTemplate.objects.get(name=template)
    except EnvironmentVariableTemplate.DoesNotExist:
        names = EnvironmentVariableTemplate.objects.order_by("name").values_list("name", flat=True)[:10]
        known = f"Known: {', '.join(names)}." if names else "None exists yet."
        raise InvalidJob(
            "environment_template", f"there is no template named {template!r}. {known}"
        ) from None


def retry_of(job: ContainerJob) -> RetryPolicy:
    """The job's retry policy, as it was admitted."""
    return parse_retry(job.retry)


def _check_deadline(value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_DEADLINE_SECONDS:
        raise InvalidJob(
            "deadline_seconds",
            f"{shown(value)} is not a whole number of seconds from 1 to {MAX_DEADLINE_SECONDS}; "
            "leave it out for no deadline.",
        )


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise InvalidJob(name, f"it is a {type(text).__name__}; give a string.")
    if "\0" in text:
        raise InvalidJob(name, "it has a NUL in it, which no database keeps; take it out.")


def _host_of(job: ContainerJob) -> ExecutorHost:
    try:
        host: ExecutorHost | None = job.docker_host
    except ObjectDoesNotExist:
        host = None
    if host is None:
        raise InvalidJob("docker_host", f"there is no host with the id {job.docker_host_id!r}; name another.")
    return host


def _with_one_more(state: HostState) -> HostState:
    return replace(state, queued=state.queued + 1)


def jobs_admitted(jobs: Iterable[ContainerJob]) -> list[ContainerJob]:
    """Admit a batch; one refused job refuses all, before anything is written."""
    desk = Desk()
    admitted = list(jobs)
    # Rows named by their id alone: read once for all, not once for each.
    prefetch_related_objects([job for job in admitted if job.docker_host_id], "docker_host")
    prefetch_related_objects([job for job in admitted if job.environment_template_id], "environment_template")
    for job in admitted:
        desk.admit(job)
    return admitted
