"""The pages of environment templates."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from container_manager.admin.base import PageAdmin
from container_manager.admin.display import UNKNOWN, brief, line, two_lines
from container_manager.core.environment import redact
from container_manager.core.errors import InvalidJob
from container_manager.core.inert import inert
from container_manager.models import EnvironmentVariableTemplate


@admin.register(EnvironmentVariableTemplate)
class EnvironmentTemplateAdmin(PageAdmin):
    """Values are shown to those who may change them, and to nobody else."""

    list_display = ["list_name", "display_variables", "display_jobs", "updated_at"]
    search_fields = ["name", "description"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[EnvironmentVariableTemplate]:
        """Templates with the number of jobs that name them."""
        found: QuerySet[EnvironmentVariableTemplate] = super().get_queryset(request)
        return found.annotate(job_count=Count("jobs"))

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """The text itself for those who may change it; the names alone for those who may look."""
        if obj is None:
            return [(None, {"fields": ["name", "description", "environment_variables_text"]})]
        if self.has_change_permission(request, obj):
            fields = ["name", "description", "environment_variables_text"]
        else:
            fields = ["display_name", "display_description", "display_redacted"]
        return [
            (None, {"fields": fields}),
            ("Use", {"fields": ["display_jobs", "created_at", "updated_at"]}),
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """What the form shows and does not take."""
        shown = ["display_name", "display_description", "display_redacted", "display_jobs"]
        return [*shown, "created_at", "updated_at"]

    def formfield_for_dbfield(self, db_field: Any, request: Any, **kwargs: Any) -> Any:
        """A plain wide field for the lines."""
        if db_field.name == "environment_variables_text":
            kwargs["widget"] = forms.Textarea(
                attrs={"rows": 12, "class": "vLargeTextField cm-code", "spellcheck": "false"}
            )
        elif db_field.name == "description":
            kwargs["widget"] = forms.Textarea(attrs={"rows": 2, "class": "vLargeTextField"})
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    @admin.display(description="template", ordering="name")
    def list_name(self, template: EnvironmentVariableTemplate) -> SafeString:
        """The name, and what it is for."""
        return two_lines(brief(template.name), brief(template.description, 100))

    @admin.display(description="name")
    def display_name(self, template: EnvironmentVariableTemplate) -> str:
        """The name, harmless."""
        return line(template.name)

    @admin.display(description="description")
    def display_description(self, template: EnvironmentVariableTemplate) -> str:
        """What it is for, harmless."""
        return line(template.description)

    @admin.display(description="variables")
    def display_variables(self, template: EnvironmentVariableTemplate) -> str:
        """How many variables it sets."""
        found = _variables(template)
        return UNKNOWN if found is None else str(len(found))

    @admin.display(description="variables")
    def display_redacted(self, template: EnvironmentVariableTemplate) -> SafeString | str:
        """The names of its variables, the values hidden."""
        found = _variables(template)
        if found is None:
            return "The text cannot be read; whoever may change it sees why on saving."
        text = "\n".join(f"{key}={value}" for key, value in redact(found).items())
        return format_html('<pre class="cm-pre">{}</pre>', inert(text)) if text else UNKNOWN

    @admin.display(description="jobs", ordering="job_count")
    def display_jobs(self, template: EnvironmentVariableTemplate) -> str:
        """How many jobs name this template; each keeps the values of the moment it was made."""
        return str(getattr(template, "job_count", UNKNOWN))


def _variables(template: EnvironmentVariableTemplate) -> dict[str, str] | None:
    """The variables; None for a text that came into the table by another way and does not parse."""
    try:
        return template.get_environment_variables()
    except InvalidJob:
        return None
