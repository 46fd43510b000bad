"""What the system writes about its own doing: events, attempts, leases, the installation. To look at only."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from container_manager.admin.base import RecordAdmin
from container_manager.admin.display import (
    brief,
    exit_code_text,
    line,
    moment_text,
    percent_text,
    reason_label,
    size_text,
    status_badge,
    two_lines,
)
from container_manager.admin.job_list import ReasonFilter
from container_manager.conf import get_settings
from container_manager.models import (
    EngineLease,
    ExecutionMetadata,
    Installation,
    JobEvent,
    RegisteredWorker,
)

_CONTAINER: Any = ["container_name", "container_id", "engine_id", "image_id", "image_digest", "spec_hash"]


@admin.register(JobEvent)
class EventAdmin(RecordAdmin):
    """Every transition of every job, with who or what caused it."""

    list_display = ["list_at", "list_job", "display_change", "display_actor", "list_message"]
    list_filter = ["transition", "to_status", "at"]
    search_fields = ["job__name", "actor"]
    ordering = ["-id"]
    fields = ["at", "display_job", "attempt", "display_change", "display_actor"]
    fields += ["display_reason", "display_message"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[JobEvent]:
        """Events with their job's name, and nothing more of the job."""
        found: QuerySet[JobEvent] = super().get_queryset(request)
        own = [field.name for field in JobEvent._meta.concrete_fields]
        return found.select_related("job").only(*own, "job__name")

    @admin.display(description="job", ordering="job__name")
    def display_job(self, event: JobEvent) -> str:
        """The job's name, or its id."""
        return line(str(event.job))

    @admin.display(description="at", ordering="id")
    def list_at(self, event: JobEvent) -> str:
        """When it happened."""
        return moment_text(event.at)

    @admin.display(description="job", ordering="job__name")
    def list_job(self, event: JobEvent) -> str:
        """The job's name, or its id."""
        return brief(str(event.job), 40)

    @admin.display(description="transition", ordering="transition")
    def display_change(self, event: JobEvent) -> SafeString:
        """The transition, and the statuses on both sides of it."""
        after = status_badge(event.to_status)
        return format_html("{} {} \u2192 {}", event.transition.replace("_", " "), event.from_status, after)

    @admin.display(description="message")
    def list_message(self, event: JobEvent) -> str:
        """The beginning of the sentence that was stored with it."""
        return brief(event.message, 100)

    @admin.display(description="by", ordering="actor")
    def display_actor(self, event: JobEvent) -> str:
        """Who or what caused it."""
        return line(event.actor)

    @admin.display(description="reason")
    def display_reason(self, event: JobEvent) -> str:
        """Why the job ended, for the last event of a job."""
        return reason_label(event.reason)

    @admin.display(description="message")
    def display_message(self, event: JobEvent) -> str:
        """The sentence that was stored with it."""
        return line(event.message)


@admin.register(ExecutionMetadata)
class ExecutionAdmin(RecordAdmin):
    """Every attempt at every job."""

    list_display = ["list_job", "docker_host", "list_reason", "list_started", "display_memory", "display_cpu"]
    list_filter = ["docker_host", "created_at", ReasonFilter]
    search_fields = ["job__name", "container_name", "container_id", "engine_id"]
    ordering = ["-id"]
    fieldsets = [
        (None, {"fields": ["display_job", "attempt", "docker_host", "display_worker"]}),
        ("End", {"fields": ["display_reason", "display_code", "display_message"]}),
        ("Times", {"fields": ["created_at", "started_at", "finished_at", "recorded_at", "removed_at"]}),
        ("Use", {"fields": ["display_memory", "memory_source", "display_cpu", "usage_samples"]}),
        ("Output", {"fields": ["stdout_bytes", "stderr_bytes", "logs_complete", "logs_truncated"]}),
        (
            "Container",
            {"fields": _CONTAINER},
        ),
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[ExecutionMetadata]:
        """Attempts with the names of their job and host."""
        found: QuerySet[ExecutionMetadata] = super().get_queryset(request)
        own = [field.name for field in ExecutionMetadata._meta.concrete_fields]
        return found.select_related("job", "docker_host").only(*own, "job__name", "docker_host__name")

    @admin.display(description="job", ordering="job__name")
    def display_job(self, execution: ExecutionMetadata) -> str:
        """The job's name, or its id."""
        return line(str(execution.job))

    @admin.display(description="job", ordering="job__name")
    def list_job(self, execution: ExecutionMetadata) -> SafeString:
        """The job's name, or its id, and which attempt at it."""
        return two_lines(brief(str(execution.job), 40), f"attempt {execution.attempt}")

    @admin.display(description="reason, exit code", ordering="exit_reason")
    def list_reason(self, execution: ExecutionMetadata) -> SafeString:
        """Why it ended, and what the program returned."""
        return two_lines(reason_label(execution.exit_reason), exit_code_text(execution.exit_code))

    @admin.display(description="started, ended", ordering="started_at")
    def list_started(self, execution: ExecutionMetadata) -> SafeString:
        """Both times, by the engine's clock."""
        return two_lines(moment_text(execution.started_at), moment_text(execution.finished_at))

    @admin.display(description="worker")
    def display_worker(self, execution: ExecutionMetadata) -> str:
        """Who ran it."""
        return line(execution.worker)

    @admin.display(description="reason", ordering="exit_reason")
    def display_reason(self, execution: ExecutionMetadata) -> str:
        """Why it ended."""
        return reason_label(execution.exit_reason)

    @admin.display(description="exit code", ordering="exit_code")
    def display_code(self, execution: ExecutionMetadata) -> str:
        """The program's exit code."""
        return exit_code_text(execution.exit_code)

    @admin.display(description="message")
    def display_message(self, execution: ExecutionMetadata) -> str:
        """How it ended, in a sentence."""
        return line(execution.exit_message)

    @admin.display(description="peak memory", ordering="max_memory_usage")
    def display_memory(self, execution: ExecutionMetadata) -> str:
        """The most memory that it held."""
        return size_text(execution.max_memory_usage)

    @admin.display(description="mean CPU", ordering="cpu_usage_percent")
    def display_cpu(self, execution: ExecutionMetadata) -> str:
        """CPU use over the run; 100 % is one core."""
        return percent_text(execution.cpu_usage_percent)


@admin.register(EngineLease)
class LeaseAdmin(RecordAdmin):
    """Which worker watches which engine."""

    list_display = ["engine_id", "display_worker", "token", "acquired_at", "expires_at"]
    ordering = ["engine_id"]
    fields = ["engine_id", "display_worker", "token", "acquired_at", "expires_at"]

    @admin.display(description="worker", ordering="worker")
    def display_worker(self, lease: EngineLease) -> str:
        """Who holds it, or nobody."""
        return line(lease.worker) if lease.worker else "nobody"


@admin.register(RegisteredWorker)
class WorkerAdmin(RecordAdmin):
    """Who works, or did within the last week."""

    list_display = ["display_name", "display_state", "display_engines", "slots", "started_at", "heartbeat_at"]
    ordering = ["-started_at"]
    fields = ["display_name", "display_state", "display_engines", "hostname", "version", "pid", "slots"]
    fields += ["started_at", "heartbeat_at", "stopped_at"]

    @admin.display(description="worker", ordering="name")
    def display_name(self, worker: RegisteredWorker) -> str:
        """Its name, which has the machine's in it."""
        return line(worker.name)

    @admin.display(description="state")
    def display_state(self, worker: RegisteredWorker) -> str:
        """In a word: by its own last word, or by how long it has been silent."""
        if worker.stopped_at is not None:
            return "stopped"
        silent = (timezone.now() - worker.heartbeat_at).total_seconds()
        return "running" if silent <= get_settings().LEASE_SECONDS else "silent"

    @admin.display(description="engines")
    def display_engines(self, worker: RegisteredWorker) -> str:
        """The engines whose leases it holds."""
        held = EngineLease.objects.filter(worker=worker.name).order_by("engine_id")
        return line(", ".join(held.values_list("engine_id", flat=True))) or "none"


@admin.register(Installation)
class InstallationAdmin(RecordAdmin):
    """The id that every container of this database carries."""

    list_display: Any = ["identifier", "display_current"]
    fields = ["identifier", "display_current"]

    @admin.display(description="label in force")
    def display_current(self, installation: Installation) -> str:
        """What the containers carry: INSTALLATION_ID in settings wins over the stored id."""
        return line(Installation.current())
