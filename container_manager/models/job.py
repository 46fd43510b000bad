"""Jobs."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, Self

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models

from container_manager.conf import get_settings
from container_manager.core.commands import CommandForm
from container_manager.core.errors import IllegalTransition, InvalidJob
from container_manager.core.inert import inert_line
from container_manager.core.logtext import clean_output, parse_output, without_escapes
from container_manager.core.networks import parse_networks
from container_manager.core.outcome import ExitReason
from container_manager.core.spec import container_name
from container_manager.core.states import FINAL, Status
from container_manager.models import admission
from container_manager.models.execution import ExecutionMetadata
from container_manager.models.managers import ContainerJobManager


def default_memory_limit() -> int:
    """Megabytes, from settings."""
    return get_settings().DEFAULT_MEMORY_LIMIT


def default_cpu_limit() -> float:
    """Cores, from settings."""
    return get_settings().DEFAULT_CPU_LIMIT


def default_timeout_seconds() -> int:
    """Seconds, from settings."""
    return get_settings().DEFAULT_TIMEOUT_SECONDS


#: What was asked for: the container, and what is to happen when it fails. Fixed while a worker holds the job.
SPEC_FIELDS = (
    "docker_image",
    "command",
    "command_form",
    "working_directory",
    "memory_limit",
    "cpu_limit",
    "timeout_seconds",
    "environment_template_id",
    "environment_vars",
    "environment",
    "network_configuration",
    "user",
    "read_only_root",
    "docker_host_id",
    "host_pinned",
    "retry",
    "deadline_seconds",
    "deadline_at",
)
#: What a caller may change at any time.
NOTE_FIELDS = ("name", "description", "priority", "created_by_id")
#: Times that the worker writes. `update_or_create` names them to `save` whatever its caller names.
TIME_FIELDS = (
    "created_at",
    "launched_at",
    "started_at",
    "completed_at",
    "cancel_requested_at",
    "not_before",
    "deadline_at",
)

#: Longest output that `parsed_output` reads as one document; beyond it only the last line counts.
PARSED_OUTPUT_BYTES = 4 * 1024 * 1024


class ContainerJob(models.Model):
    """One command in one container: what was asked for, where it stands, and how it ended."""

    class CommandForms(models.TextChoices):
        EXEC = CommandForm.EXEC.value, "exec form"
        SHELL = CommandForm.SHELL.value, "shell form"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=200, blank=True, default="")
    description = models.TextField(blank=True, default="")
    status = models.CharField(
        max_length=16, choices=[(s.value, s.value) for s in Status], default=Status.PENDING.value
    )
    priority = models.SmallIntegerField(default=0, help_text="Higher goes first; equal ones go by age.")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )

    docker_host = models.ForeignKey(
        "container_manager.ExecutorHost",
        on_delete=models.PROTECT,
        related_name="jobs",
        blank=True,
        help_text="Left empty: the job is placed by weight and free slots.",
    )
    host_pinned = models.BooleanField(default=True, editable=False)  # the caller chose the host
    docker_image = models.CharField(max_length=500)
    command = models.TextField(blank=True, default="", help_text="Empty: the image's own command.")
    command_form = models.CharField(
        max_length=8,
        choices=CommandForms,
        blank=True,
        default="",
        help_text="Left empty: shell form where the command needs a shell.",
    )
    working_directory = models.CharField(max_length=500, blank=True, default="")
    memory_limit = models.PositiveIntegerField("memory limit (MB)", default=default_memory_limit)
    cpu_limit = models.FloatField("CPU limit (cores)", default=default_cpu_limit)
    timeout_seconds = models.PositiveIntegerField("timeout (s)", default=default_timeout_seconds)
    environment_template = models.ForeignKey(
        "container_manager.EnvironmentVariableTemplate",
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="jobs",
    )
    environment_vars = models.JSONField("environment overrides", blank=True, default=dict)
    environment = models.JSONField(blank=True, default=dict, editable=False)  # as merged at creation
    network_configuration = models.JSONField(blank=True, default=list)
    user = models.CharField(
        max_length=32, blank=True, default="", help_text="Numeric uid:gid, both above 1000."
    )
    read_only_root = models.BooleanField(default=True)
    retry = models.JSONField(
        "retry policy",
        blank=True,
        default=dict,
        help_text='Empty: never. For example {"attempts": 3, "backoff_seconds": 30}.',
    )
    deadline_seconds = models.PositiveIntegerField(
        "total deadline (s)",
        null=True,
        blank=True,
        help_text="From the creation to the end, waiting and all attempts together. Empty: none.",
    )

    created_at = models.DateTimeField(auto_now_add=True)
    launched_at = models.DateTimeField(null=True, blank=True, editable=False)
    started_at = models.DateTimeField(null=True, blank=True, editable=False)
    completed_at = models.DateTimeField(null=True, blank=True, editable=False)
    cancel_requested_at = models.DateTimeField(null=True, blank=True, editable=False)
    cancel_requested_by = models.CharField(max_length=200, blank=True, default="", editable=False)
    attempt = models.PositiveIntegerField(default=0, editable=False)
    lease_token = models.BigIntegerField(null=True, blank=True, editable=False)
    failed_attempts = models.PositiveIntegerField(default=0, editable=False)  # as the retry policy counts
    not_before = models.DateTimeField(null=True, blank=True, editable=False)  # null: may be claimed
    deadline_at = models.DateTimeField(null=True, blank=True, editable=False, db_index=True)

    exit_code = models.IntegerField(null=True, blank=True, editable=False)
    exit_reason = models.CharField(
        max_length=32, blank=True, default="", editable=False, choices=[(r, r) for r in ExitReason]
    )
    exit_message = models.TextField(blank=True, default="", editable=False)
    stdout_log = models.TextField(blank=True, default="", editable=False)
    stderr_log = models.TextField(blank=True, default="", editable=False)
    docker_log = models.TextField(blank=True, default="", editable=False)
    max_memory_usage = models.BigIntegerField(null=True, blank=True, editable=False)
    cpu_usage_percent = models.FloatField(null=True, blank=True, editable=False)

    objects = ContainerJobManager()

    class Meta:
        ordering = ["-created_at"]
        verbose_name = "container job"
        indexes = [
            # Serves the claim: what waits for a host, in the order in which it goes.
            models.Index(
                fields=["status", "docker_host", "not_before", "-priority", "created_at"], name="cm_job_claim"
            ),
            models.Index(fields=["-created_at"], name="cm_job_created"),
            models.Index(fields=["not_before"], name="cm_job_not_before"),
            models.Index(fields=["status", "completed_at"], name="cm_job_ended"),
        ]

    def __str__(self) -> str:
        return inert_line(self.name) or str(self.id)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stored_status: str | None = None
        self._stored_spec: dict[str, Any] = {}
        self._stored_times: dict[str, datetime | None] = {}

    @classmethod
    def from_db(
        cls, db: str | None, field_names: Collection[str], values: Collection[Any], **further: Any
    ) -> Self:
        """Remember what is stored, so that `save` can tell what the caller changed."""
        job = super().from_db(db, field_names, values, **further)
        job.mark_stored()
        return job

    def refresh_from_db(
        self,
        using: str | None = None,
        fields: Iterable[str] | None = None,
        from_queryset: models.QuerySet[ContainerJob] | None = None,
    ) -> None:
        """Read the row again, and take it as what is stored. Deferred columns arrive this way, too."""
        names = None if fields is None else list(fields)
        super().refresh_from_db(using, names, from_queryset)
        self.mark_stored(None if names is None else [*names, *(f"{name}_id" for name in names)])

    def clean(self) -> None:
        """Run the admission checks for forms. Raises ValidationError by field."""
        super().clean()
        try:
            admission.check(self)
        except InvalidJob as error:
            raise ValidationError(
                {error.field: error.message} if hasattr(self, error.field) else str(error)
            ) from error

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store a new job after admission, or the changes that a caller may make to an old one.

        A changed `status` goes through the state machine: `cancelled` is what a caller may ask for,
        anything else raises IllegalTransition. What describes the container can be changed while the job
        is pending. Columns that belong to the worker are never written from here, so a stale instance
        cannot undo a result.
        """
        from container_manager import lifecycle

        if self._state.adding:
            lifecycle.create(self, lambda: super(ContainerJob, self).save(*args, **kwargs))
            self.mark_stored()
        else:
            lifecycle.change(self, kwargs.pop("update_fields", None), super().save)

    def cancel(self, by: str = "") -> bool:
        """Ask for the end of the job; False when it has ended already.

        A pending job is cancelled at once. A running one is sent SIGTERM by its worker, after the grace
        period SIGKILL, and is `cancelled` when it is gone; its logs and usage are kept.
        """
        from container_manager import lifecycle

        return lifecycle.request_cancel(self, actor=by)

    @property
    def is_finished(self) -> bool:
        """Whether the status is final."""
        return self.status in FINAL

    @property
    def duration(self) -> timedelta | None:
        """How long the program ran, by the engine's clock; None before its end or if it never started."""
        if self.started_at is None or self.completed_at is None:
            return None
        return self.completed_at - self.started_at

    @property
    def clean_output(self) -> str:
        """Stdout without timestamps and terminal escapes, as far as the column holds it."""
        return clean_output(self.stdout_log)

    @property
    def parsed_output(self) -> Any:
        """The JSON document that stdout is, or its last JSON line, else None.

        Read from the column where it holds all of stdout, else from the stored bytes, up to
        PARSED_OUTPUT_BYTES; of longer output only the last line counts, as far as the column has it.
        """
        text = self.clean_output
        if len(self.stdout_log) >= get_settings().LOG_COLUMN_BYTES // 8:  # a character has four bytes at most
            execution = self.latest_execution
            if execution is not None and execution.stdout_bytes <= PARSED_OUTPUT_BYTES:
                whole = b"".join(execution.iter_log("stdout")).decode(errors="replace")
                text = without_escapes(whole)
        return parse_output(text)

    @property
    def latest_execution(self) -> ExecutionMetadata | None:
        """The record of the current attempt; None before the first."""
        return self.executions.filter(attempt=self.attempt).first()

    def iter_log(self, stream: str = "stdout") -> Iterator[bytes]:
        """The complete bytes of "stdout" or "stderr" of the latest attempt, in constant memory.

        Exactly what the program wrote, up to LOG_MAX_BYTES; `latest_execution.logs_truncated` tells
        whether there was more, `logs_complete` whether the end was read.
        """
        execution = self.latest_execution
        return iter(()) if execution is None else execution.iter_log(stream)

    @property
    def container_name(self) -> str:
        """The deterministic name of the latest attempt's container."""
        return container_name(str(self.id), self.attempt)

    def get_execution_identifier(self) -> str:
        """What an executor knows the latest attempt by: its container's name. Empty before the first."""
        return self.container_name if self.attempt else ""

    def get_network_names(self) -> list[str]:
        """The names of the networks that the job joins."""
        return [network.network_name for network in parse_networks(self.network_configuration)]

    def changed_spec_fields(self) -> list[str]:
        """The container-describing fields that differ from what is stored."""
        return [
            name
            for name, stored in self._stored_spec.items()
            if name in self.__dict__ and self.__dict__[name] != stored
        ]

    def is_time_as_stored(self, name: str) -> bool:
        """Whether this is a time of the worker's that nobody has touched since it was read."""
        return name in self._stored_times and self._stored_times[name] == getattr(self, name)

    @property
    def stored_status(self) -> str | None:
        """The status as last read from or written to the database; None where it was not read."""
        return self._stored_status

    def mark_stored(self, names: Collection[str] | None = None) -> None:
        """Take these attributes, by default all, as what the database holds; `save` compares with it."""
        loaded = self.__dict__.keys() & (self.__dict__.keys() if names is None else set(names))
        if "status" in loaded:
            self._stored_status = self.status
        self._stored_spec |= {name: _frozen(self.__dict__[name]) for name in SPEC_FIELDS if name in loaded}
        self._stored_times |= {name: self.__dict__[name] for name in TIME_FIELDS if name in loaded}


def _frozen(value: Any) -> Any:
    """A copy of a JSON value, so that a change in place is seen; other values as they are."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_frozen(item) for item in value]
    return value


__all__ = ["NOTE_FIELDS", "SPEC_FIELDS", "ContainerJob", "IllegalTransition"]
