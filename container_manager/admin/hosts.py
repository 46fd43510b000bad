"""The pages of hosts: what they are, how they are, and a test of the way to them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from django.contrib import admin, messages
from django.db import transaction
from django.db.models import Count, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from container_manager.admin.base import PageAdmin, names_of
from container_manager.admin.display import (
    UNKNOWN,
    badge,
    brief,
    health_badge,
    line,
    moment_text,
    size_text,
    two_lines,
)
from container_manager.admin.host_form import HostForm
from container_manager.admin.secrets import mask
from container_manager.core.errors import ConfigurationError
from container_manager.core.inert import inert
from container_manager.executors.factory import HostExecutor
from container_manager.executors.registry import open_executor
from container_manager.models import ContainerJob, EngineLease, ExecutorHost
from container_manager.models.admission import with_load

#: Longest wait of a page for one answer of an engine, whatever the worker's patience is.
TEST_SECONDS = 5.0

_TLS = ["tls_enabled", "tls_verify", "tls_ca_cert", "tls_client_cert", "tls_client_key"]


@admin.register(ExecutorHost)
class HostAdmin(PageAdmin):
    """Hosts, with the record of their health; a test of the connection adds to that record."""

    form = HostForm
    list_display = ["list_name", "list_health", "display_active", "list_slots", "list_engine"]
    list_display += ["display_cpus", "weight"]
    list_filter = ["health", "is_active", "executor_type"]
    search_fields = ["name", "connection_string", "engine_id"]
    ordering = ["name"]
    actions = ["check_connection", "activate", "deactivate"]

    _HEALTH = ["display_health", "display_error", "health_checked_at", "display_response", "display_worker"]
    _ENGINE = ["display_engine", "display_engine_id", "display_cpus", "display_memory", "display_facts"]
    _LOAD = ["display_slots", "display_waiting"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[ExecutorHost]:
        """Hosts with their load."""
        found: QuerySet[ExecutorHost] = super().get_queryset(request)
        return with_load(found)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Health first; the address and its secrets in the shape that fits the reader's rights."""
        record = [("Health", {"fields": self._HEALTH}), ("Engine", {"fields": self._ENGINE})]
        if obj is not None and not self.has_change_permission(request, obj):
            shown = ["display_name", "display_active", "executor_type", "display_address", *self._LOAD]
            shown += ["max_concurrent_jobs", "weight", "tls_enabled", "tls_verify", "display_configuration"]
            return [*record, ("Host", {"fields": shown})]
        editable = [
            ("Host", {"fields": ["name", "executor_type", "connection_string", "is_active"]}),
            ("Load", {"fields": [*(self._LOAD if obj else []), "max_concurrent_jobs", "weight"]}),
            (
                "TLS",
                {
                    "fields": _TLS,
                    "classes": [] if obj is not None and obj.tls_enabled else ["collapse"],
                    "description": "Paths of PEM files on the machine of the worker.",
                },
            ),
            ("Images and configuration", {"fields": ["auto_pull_images", "configuration"]}),
        ]
        return [*record, *editable] if obj is not None else editable

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """What the form shows and does not take."""
        shown = ["display_name", "display_active", "display_address", "display_configuration"]
        return [*self._HEALTH, *self._ENGINE, *self._LOAD, *shown]

    def save_model(self, request: HttpRequest, obj: ExecutorHost, form: Any, change: Any) -> None:
        """Store the host, then ask it who it is; one that is down is stored all the same.

        Asked after the commit: no lock is held while an engine thinks about its answer.
        """
        super().save_model(request, obj, form, change)

        def ask() -> None:
            healthy, text = check(obj)
            self.message_user(request, text, messages.SUCCESS if healthy else messages.WARNING)

        transaction.on_commit(ask)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """What a deletion takes: the rows alone. A host with jobs stays; its jobs are not read to say so."""
        counts = dict(
            ContainerJob.objects.filter(docker_host__in=[host.pk for host in objs])
            .order_by()
            .values_list("docker_host__name")
            .annotate(Count("pk"))
        )
        protected = [
            f"{line(name)} has {count} jobs. Deactivate the host, or delete its jobs first."
            for name, count in counts.items()
        ]
        names = names_of(objs)
        missing = set() if self.has_delete_permission(request) else {self.opts.verbose_name}
        return names, {self.opts.verbose_name_plural: len(names)}, missing, protected

    # -------------------------------------------------------------------------------- actions

    @admin.action(description="Test the connection of selected hosts", permissions=["change"])
    def check_connection(self, request: HttpRequest, queryset: QuerySet[ExecutorHost]) -> None:
        """Ask each host who it is, and record the answer."""
        for host in queryset:
            healthy, text = check(host)
            self.message_user(request, text, messages.SUCCESS if healthy else messages.ERROR)

    @admin.action(description="Activate selected hosts", permissions=["change"])
    def activate(self, request: HttpRequest, queryset: QuerySet[ExecutorHost]) -> None:
        """Let hosts have new jobs."""
        self._switch(request, queryset, active=True)

    @admin.action(description="Deactivate selected hosts", permissions=["change"])
    def deactivate(self, request: HttpRequest, queryset: QuerySet[ExecutorHost]) -> None:
        """Give hosts no new jobs; what runs on them runs on."""
        self._switch(request, queryset, active=False)

    def _switch(self, request: HttpRequest, queryset: QuerySet[ExecutorHost], *, active: bool) -> None:
        done = 0
        for host in queryset.filter(is_active=not active):
            host.is_active = active
            host.save(update_fields=["is_active"])
            self.log_change(request, host, "Activated." if active else "Deactivated.")
            done += 1
        word = "activated" if active else "deactivated"
        self.message_user(request, f"{done} {word}, {queryset.count() - done} were so already.")

    # -------------------------------------------------------------------------------- columns

    @admin.display(description="host", ordering="name")
    def list_name(self, host: ExecutorHost) -> SafeString:
        """The name, and where it is."""
        return two_lines(brief(host.name), brief(str(mask(host.connection_string))))

    @admin.display(description="health", ordering="health")
    def list_health(self, host: ExecutorHost) -> SafeString:
        """The last health on record, and of when."""
        if host.health_checked_at is None:
            return health_badge(host)
        return two_lines(health_badge(host), moment_text(host.health_checked_at))

    @admin.display(description="slots used", ordering="used_slots")
    def list_slots(self, host: ExecutorHost) -> SafeString:
        """Jobs under way, of how many at the same time, and how many wait."""
        return two_lines(self.display_slots(host), f"{self.display_waiting(host)} waiting")

    @admin.display(description="engine", ordering="engine_version")
    def list_engine(self, host: ExecutorHost) -> SafeString | str:
        """The engine's version and the beginning of its id."""
        if not host.engine_id:
            return "never in contact"
        return two_lines(line(host.engine_version), brief(host.engine_id, 16))

    @admin.display(description="name", ordering="name")
    def display_name(self, host: ExecutorHost) -> str:
        """The name, harmless."""
        return line(host.name)

    @admin.display(description="health", ordering="health")
    def display_health(self, host: ExecutorHost) -> SafeString:
        """The last health on record."""
        return health_badge(host)

    @admin.display(description="error")
    def display_error(self, host: ExecutorHost) -> str:
        """What the last health call said."""
        return line(host.health_error)

    @admin.display(description="answered in")
    def display_response(self, host: ExecutorHost) -> str:
        """How long the last good answer took."""
        return UNKNOWN if host.response_seconds is None else f"{host.response_seconds * 1000:.0f} ms"

    @admin.display(description="new jobs", ordering="is_active")
    def display_active(self, host: ExecutorHost) -> SafeString:
        """Whether the host gets new jobs."""
        return badge("active", "good") if host.is_active else badge("inactive", "quiet")

    @admin.display(description="slots used", ordering="used_slots")
    def display_slots(self, host: ExecutorHost) -> str:
        """Jobs under way, of how many at the same time."""
        return f"{getattr(host, 'used_slots', UNKNOWN)} of {host.max_concurrent_jobs}"

    @admin.display(description="waiting", ordering="queued_jobs")
    def display_waiting(self, host: ExecutorHost) -> str:
        """Jobs that wait for this host."""
        return str(getattr(host, "queued_jobs", UNKNOWN))

    @admin.display(description="address", ordering="connection_string")
    def display_address(self, host: ExecutorHost) -> str:
        """Where the host is."""
        return line(str(mask(host.connection_string)))

    @admin.display(description="worker")
    def display_worker(self, host: ExecutorHost) -> str:
        """Who watches the engine now."""
        holder = EngineLease.holder(host.engine_id) if host.engine_id else ""
        return line(holder) if holder else "none; start one with: python manage.py process_container_jobs"

    @admin.display(description="version")
    def display_engine(self, host: ExecutorHost) -> str:
        """The engine's version."""
        return line(host.engine_version) if host.engine_id else "never in contact"

    @admin.display(description="engine id")
    def display_engine_id(self, host: ExecutorHost) -> str:
        """The id that this row is bound to."""
        return line(host.engine_id)

    @admin.display(description="CPUs", ordering="cpus")
    def display_cpus(self, host: ExecutorHost) -> str:
        """Cores of the host."""
        return UNKNOWN if host.cpus is None else str(host.cpus)

    @admin.display(description="memory")
    def display_memory(self, host: ExecutorHost) -> str:
        """Memory of the host."""
        return size_text(host.memory_bytes)

    @admin.display(description="facts")
    def display_facts(self, host: ExecutorHost) -> SafeString | str:
        """What else the engine said about itself."""
        rows = [(line(str(key)), line(str(value))) for key, value in sorted(mask(host.facts).items())]
        if not rows:
            return UNKNOWN
        body = format_html_join("", "<tr><th scope='row'>{}</th><td>{}</td></tr>", rows)
        return format_html('<table class="cm-facts">{}</table>', body)

    @admin.display(description="executor configuration")
    def display_configuration(self, host: ExecutorHost) -> SafeString:
        """The configuration, secrets hidden."""
        text = json.dumps(mask(host.executor_config), indent=2, ensure_ascii=False)
        return format_html('<pre class="cm-pre">{}</pre>', inert(text))


def check(host: ExecutorHost) -> tuple[bool, str]:
    """Ask a host now and record what it says: whether it is well, and a sentence."""
    name = line(host.name)
    try:
        config = host.as_config()
        patience = min(config.timeout_seconds, TEST_SECONDS)
        executor = HostExecutor(
            host, open_executor(host.executor_type, replace(config, timeout_seconds=patience))
        )
    except ConfigurationError as error:
        return False, f"{name}: not tested. {line(str(error))}"
    try:
        answer = executor.get_health_status()
    except ConfigurationError as error:
        return False, f"{name}: not tested. {line(str(error))}"
    finally:
        executor.close()
    if answer["healthy"]:
        took = f"{answer['response_time'] * 1000:.0f} ms"
        return True, f"{name}: healthy, engine {line(host.engine_version)}, answered in {took}."
    return False, f"{name}: {line(str(answer['error']))}"
