"""What the page of one job shows, gathered in a fixed number of queries and made harmless."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.utils import timezone

from container_manager.admin.display import (
    UNKNOWN,
    duration_text,
    exit_code_text,
    line,
    percent_text,
    reason_label,
    size_text,
    status_tone,
)
from container_manager.core.environment import redact
from container_manager.core.inert import inert
from container_manager.core.logtext import clean_output
from container_manager.core.outcome import REASONS, ExitReason
from container_manager.core.retry import RetryPolicy
from container_manager.core.states import Status
from container_manager.models import ContainerJob, EngineLease, ExecutionMetadata, JobEvent
from container_manager.models.admission import retry_of

TAIL_LINES = 12
_TAIL_CHARACTERS = 4000
EVENTS_SHOWN = 200
REFRESH_SECONDS = 5
_START_A_WORKER = "python manage.py process_container_jobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The box on top: how it stands with the job, why, and what to do next."""

    tone: str
    status: str
    headline: str
    sentence: str
    next_step: str
    exit_code: str
    tail: str  # last lines of stderr; empty for a job that did not fail
    tail_title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLine:
    """One line of the timeline."""

    at: datetime
    who: str
    what: str
    change: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptLine:
    """One attempt, its use against its limits."""

    number: int
    host: str
    worker: str
    container: str
    outcome: str
    exit_code: str
    duration: str
    started_at: datetime | None
    finished_at: datetime | None
    memory: str
    memory_bytes: int | None
    memory_limit_bytes: int
    cpu: str
    cpu_percent: float | None
    cpu_limit_percent: float
    image: str
    stdout: str
    stderr: str
    log_note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One stream as the job's own row shows it."""

    stream: str
    text: str
    size: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """All of it."""

    verdict: Verdict
    details: list[tuple[str, list[tuple[str, str, bool]]]]  # group: (label, value, is code)
    events: list[EventLine]
    events_left_out: int
    attempts: list[AttemptLine]
    outputs: list[Output]
    engine_log: str
    attempt: int
    live: bool
    as_of: datetime
    refresh_seconds: int


def gather(job: ContainerJob, *, refresh: bool) -> Panel:
    """Read what belongs to a job, and put it into words."""
    attempts = list(job.executions.select_related("docker_host").order_by("attempt"))
    events = list(job.events.order_by("-id")[: EVENTS_SHOWN + 1])
    left_out = job.events.count() - EVENTS_SHOWN if len(events) > EVENTS_SHOWN else 0
    events = events[:EVENTS_SHOWN][::-1]
    people = _people([*(event.actor for event in events), job.cancel_requested_by])
    live = not job.is_finished
    latest = next((item for item in attempts if item.attempt == job.attempt), None)
    outputs = [
        Output(stream="stdout", text=inert(job.stdout_log), size=_stream_size(latest, "stdout")),
        Output(stream="stderr", text=inert(job.stderr_log), size=_stream_size(latest, "stderr")),
    ]
    if status_tone(job.status) == "bad":
        outputs.reverse()
    return Panel(
        verdict=_verdict(job, latest, people),
        details=_details(job),
        events=[_event_line(event, people) for event in events],
        events_left_out=left_out,
        attempts=[_attempt_line(job, item) for item in attempts],
        outputs=outputs,
        engine_log=inert(job.docker_log),
        attempt=latest.attempt if latest else 0,
        live=live,
        as_of=timezone.now(),
        refresh_seconds=REFRESH_SECONDS if refresh and live else 0,
    )


def _verdict(job: ContainerJob, latest: ExecutionMetadata | None, people: dict[str, str]) -> Verdict:
    sentence, next_step = _ended(job, people) if job.is_finished else _under_way(job, people)
    tail, tail_title = "", ""
    if status_tone(job.status) == "bad" and latest is not None:
        tail = _tail(job.stderr_log)
        tail_title = "The end of stderr" if tail else "Nothing was written to stderr."
    return Verdict(
        tone=status_tone(job.status),
        status=job.status,
        headline=reason_label(job.exit_reason) if job.exit_reason else job.status.capitalize(),
        sentence=inert(sentence),
        next_step=next_step,
        exit_code=exit_code_text(job.exit_code) if job.exit_code is not None else "",
        tail=inert(tail),
        tail_title=tail_title,
    )


def _ended(job: ContainerJob, people: dict[str, str]) -> tuple[str, str]:
    """The stored sentence, and the remedy that stands at its end."""
    remedy = REASONS[ExitReason(job.exit_reason)].remedy if job.exit_reason else ""
    sentence = job.exit_message.removesuffix(remedy).rstrip() if remedy else job.exit_message
    if job.cancel_requested_by and job.exit_reason == ExitReason.CANCELLED:
        return f"{sentence} Requested by {_who(job.cancel_requested_by, people)}.", remedy
    return sentence, remedy


def _under_way(job: ContainerJob, people: dict[str, str]) -> tuple[str, str]:
    host = job.docker_host
    name = f"host {line(host.name)}"
    worker = EngineLease.holder(host.engine_id) if host.engine_id else ""
    next_step = "" if worker else f"No worker serves this host now. Start one with: {_START_A_WORKER}"
    if job.cancel_requested_at is not None:
        who = _who(job.cancel_requested_by, people)
        return f"Its end was requested by {who}; the worker on {name} stops the program.", next_step
    if job.status == Status.PENDING:
        sentence = f"The job waits for a free slot on {name}."
        if job.not_before is not None:
            moment = timezone.localtime(job.not_before)
            return f"Attempt {job.attempt} failed; the next one follows from {moment:%H:%M:%S} on.", next_step
        if not host.is_active:
            sentence = f"The job waits for {name}, which is not active."
        elif host.health in (host.Health.UNREACHABLE, host.Health.MISMATCHED):
            sentence = f"The job waits for {name}: {host.health_error}"
        return sentence, next_step
    if job.status == Status.LAUNCHING:
        return f"The image is fetched and the container is made on {name}.", next_step
    return f"The program runs on {name}.", next_step


def _details(job: ContainerJob) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """What was asked for, in groups. Values of the environment are hidden."""
    networks = [
        " ".join([item["network_name"], *(["as", *item["aliases"]] if item.get("aliases") else [])])
        for item in job.network_configuration
    ]
    environment = "\n".join(f"{key}={value}" for key, value in redact(job.environment).items())
    template = job.environment_template
    placed = "as asked for" if job.host_pinned else "placed automatically"
    person = job.created_by.get_username() if job.created_by else UNKNOWN
    return [
        (
            "What runs",
            [
                ("Image", line(job.docker_image), True),
                ("Command", inert(job.command) or "the image's own", True),
                ("Form", "shell, /bin/sh -c" if job.command_form == "shell" else "exec, no shell", False),
                (
                    "Directory",
                    line(job.working_directory) if job.working_directory else "the image's own",
                    False,
                ),
                ("User", job.user or "as in settings", False),
                ("Root filesystem", "read-only" if job.read_only_root else "writable", False),
                ("Template", line(template.name) if template else "none", False),
                ("Environment", inert(environment) or "empty", True),
            ],
        ),
        (
            "Limits and place",
            [
                ("Memory", f"{job.memory_limit} MB", False),
                ("CPU", f"{job.cpu_limit:g} {'core' if job.cpu_limit == 1 else 'cores'}", False),
                ("Timeout", f"{job.timeout_seconds} s", False),
                ("Retry", _retry_text(job), False),
                ("Total deadline", f"{job.deadline_seconds} s" if job.deadline_seconds else "none", False),
                ("Host", f"{line(job.docker_host.name)}, {placed}", False),
                ("Networks", inert("\n".join(networks)) or "default bridge", True),
                ("Priority", str(job.priority), False),
                ("Created by", line(person), False),
                ("Id", str(job.id), True),
            ],
        ),
    ]


def _retry_text(job: ContainerJob) -> str:
    policy = retry_of(job)
    if policy == RetryPolicy():
        return "never"
    rules = f", {len(policy.rules)} rule{'' if len(policy.rules) == 1 else 's'}" if policy.rules else ""
    return f"{policy.attempts} attempts, {job.failed_attempts} failed so far{rules}"


def _attempt_line(job: ContainerJob, item: ExecutionMetadata) -> AttemptLine:
    span = item.finished_at - item.started_at if item.started_at and item.finished_at else None
    cpu_limit = job.cpu_limit * 100
    return AttemptLine(
        number=item.attempt,
        host=line(item.docker_host.name),
        worker=line(item.worker),
        container=item.container_name,
        outcome=_attempt_outcome(item),
        exit_code=exit_code_text(item.exit_code),
        duration=duration_text(span),
        started_at=item.started_at,
        finished_at=item.finished_at,
        memory=f"{size_text(item.max_memory_usage)} of {job.memory_limit} MB",
        memory_bytes=item.max_memory_usage,
        memory_limit_bytes=job.memory_limit * 1024 * 1024,
        cpu=f"{percent_text(item.cpu_usage_percent)} of {cpu_limit:g} %",
        cpu_percent=item.cpu_usage_percent,
        cpu_limit_percent=cpu_limit,
        image=line(item.image_digest or item.image_id),
        stdout=size_text(item.stdout_bytes),
        stderr=size_text(item.stderr_bytes),
        log_note=_log_note(item),
    )


def _attempt_outcome(item: ExecutionMetadata) -> str:
    if item.exit_reason:
        return reason_label(item.exit_reason)
    return inert(item.exit_message) or "under way"  # given back to the queue: a message and no reason


def _log_note(item: ExecutionMetadata) -> str:
    if item.logs_pruned:
        return "deleted by the retention rules"
    if item.logs_truncated:
        return "cut at LOG_MAX_BYTES: the program wrote more"
    if item.recorded_at is None:
        return "so far"
    return "complete" if item.logs_complete else "the end could not be read"


def _event_line(event: JobEvent, people: dict[str, str]) -> EventLine:
    return EventLine(
        at=event.at,
        who=_who(event.actor, people),
        what=event.transition.replace("_", " "),
        change=f"{event.from_status} \u2192 {event.to_status}".strip(),
        reason=reason_label(event.reason) if event.reason else "",
        message=inert(event.message),
    )


def _stream_size(latest: ExecutionMetadata | None, stream: str) -> str:
    if latest is None:
        return "nothing yet"
    return size_text(latest.stdout_bytes if stream == "stdout" else latest.stderr_bytes)


def _tail(log: str) -> str:
    """The last lines without timestamps, bounded: one line alone may be as long as the column."""
    lines = clean_output(log[-4 * _TAIL_CHARACTERS :]).rstrip().split("\n")[-TAIL_LINES:]
    return "\n".join(lines)[-_TAIL_CHARACTERS:]


def _people(actors: list[str]) -> dict[str, str]:
    """The names behind actors of the form `user:<id>`, in one query."""
    model: Any = get_user_model()
    keys = {}
    for actor in actors:
        kind, _, key = actor.partition(":")
        if kind == "user" and key:
            try:
                keys[actor] = model._meta.pk.to_python(key)
            except ValidationError:
                continue  # a caller's own words, shown as they are
    if not keys:
        return {}
    names = {user.pk: user.get_username() for user in model.objects.filter(pk__in=keys.values())}
    return {actor: names[key] for actor, key in keys.items() if key in names}


def _who(actor: str, people: dict[str, str]) -> str:
    return line(people.get(actor, actor)) if actor else "code"
