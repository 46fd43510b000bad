"""The list of jobs: its columns, filters and search."""

from __future__ import annotations

import itertools
import re
from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import DurationField, ExpressionWrapper, F, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.safestring import SafeString

from container_manager.admin.base import PageAdmin
from container_manager.admin.display import (
    UNKNOWN,
    brief,
    duration_text,
    exit_code_text,
    moment_text,
    percent_text,
    reason_label,
    size_text,
    status_badge,
    two_lines,
)
from container_manager.core.outcome import REASONS
from container_manager.core.states import Status
from container_manager.models import ContainerJob

_ID_PREFIX = re.compile(r"[0-9a-f]{4,8}(-[0-9a-f-]{0,27})?|[0-9a-f]{4,32}", re.IGNORECASE)


class ReasonFilter(admin.SimpleListFilter):
    """Filter by exit reason, in the words of the reason table."""

    title = "reason"
    parameter_name = "exit_reason"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Every reason, whether a job has it or not: asking the table would read all of it."""
        return [(reason.value, text.label) for reason, text in REASONS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The jobs that ended for the chosen reason."""
        return queryset.filter(exit_reason=self.value()) if self.value() else queryset


class JobList(ChangeList):
    """The list reads no log and no environment."""

    def get_queryset(self, *args: Any, **kwargs: Any) -> QuerySet[Any]:
        """The rows of the list, without their large columns."""
        found = super().get_queryset(*args, **kwargs)
        assert hasattr(found, "without_logs")  # noqa: S101 - the model's own queryset
        rows: QuerySet[Any] = found.without_logs()
        return rows


class JobListAdmin(PageAdmin):
    """What the list shows; `JobAdmin` adds the page of one job, its forms and its acts."""

    list_display = ["display_name", "display_status", "display_reason", "display_image"]
    list_display += ["display_duration", "display_use", "display_created"]
    list_filter = ["status", "docker_host", "created_at", ReasonFilter]
    search_fields = ["name", "docker_image", "command"]
    search_help_text = "Name, image, command, or the beginning of an id"
    ordering = ["-created_at"]

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list that leaves the logs where they are."""
        return JobList

    def get_queryset(self, request: HttpRequest) -> QuerySet[ContainerJob]:
        """Jobs with what every page shows of their relations."""
        found: QuerySet[ContainerJob] = super().get_queryset(request)
        return found.select_related("docker_host")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """By words, and by the beginning of an id with or without its hyphens."""
        found, duplicates = super().get_search_results(request, queryset, search_term)
        term = search_term.strip()
        if _ID_PREFIX.fullmatch(term):
            found |= queryset.filter(id__startswith=_hyphenated(term))
        return found, duplicates

    # ----------------------------------------------------------------------------------- columns

    @admin.display(description="job", ordering="name")
    def display_name(self, job: ContainerJob) -> SafeString:
        """The name, and enough of the id to tell two runs apart."""
        return two_lines(brief(job.name) if job.name else "unnamed", str(job.id)[:8])

    @admin.display(description="status", ordering="status")
    def display_status(self, job: ContainerJob) -> SafeString:
        """The status in a word."""
        badge = status_badge(job.status)
        if job.cancel_requested_at is not None and not job.is_finished:
            return two_lines(badge, "cancelling")
        return badge

    @admin.display(description="reason, exit", ordering="exit_reason")
    def display_reason(self, job: ContainerJob) -> SafeString | str:
        """Why it ended, and what the program returned."""
        if not job.exit_reason:
            return UNKNOWN
        code = "no exit code" if job.exit_code is None else f"exit {exit_code_text(job.exit_code)}"
        return two_lines(reason_label(job.exit_reason), code)

    @admin.display(description="image, host", ordering="docker_image")
    def display_image(self, job: ContainerJob) -> SafeString:
        """The image as asked for, and where the job runs or ran."""
        return two_lines(brief(job.docker_image), brief(job.docker_host.name))

    @admin.display(
        description="duration",
        ordering=ExpressionWrapper(F("completed_at") - F("started_at"), output_field=DurationField()),
    )
    def display_duration(self, job: ContainerJob) -> SafeString | str:
        """How long the program ran; of a running one, how long so far."""
        if job.status == Status.RUNNING and job.started_at is not None:
            return two_lines(duration_text(max(timezone.now() - job.started_at, timedelta(0))), "so far")
        return duration_text(job.duration)

    @admin.display(description="peak, CPU", ordering="max_memory_usage")
    def display_use(self, job: ContainerJob) -> SafeString | str:
        """The most memory that it held, and CPU use over the run; 100 % is one core."""
        if job.max_memory_usage is None and job.cpu_usage_percent is None:
            return UNKNOWN
        return two_lines(size_text(job.max_memory_usage), f"{percent_text(job.cpu_usage_percent)} CPU")

    @admin.display(description="created", ordering="created_at")
    def display_created(self, job: ContainerJob) -> SafeString:
        """When it was asked for."""
        day, _, clock = moment_text(job.created_at).partition(" ")
        return two_lines(day, clock)


def _hyphenated(prefix: str) -> str:
    """The beginning of a UUID as it is written: with a hyphen after 8, 12, 16 and 20 digits."""
    digits = prefix.replace("-", "").lower()
    parts = [digits[start:end] for start, end in itertools.pairwise((0, 8, 12, 16, 20, 32))]
    return "-".join(part for part in parts if part)
