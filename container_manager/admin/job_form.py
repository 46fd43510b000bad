"""The forms of a job: the whole wish while it is pending, notes once it has been claimed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.core.exceptions import ValidationError

from container_manager.core.commands import parse_command
from container_manager.core.environment import REDACTED, TEXT_FIELD, parse_environment_text, redact
from container_manager.core.errors import InvalidJob
from container_manager.models import ContainerJob, ExecutorHost
from container_manager.models.admission import Desk

if TYPE_CHECKING:
    _Base = forms.ModelForm[ContainerJob]
else:
    _Base = forms.ModelForm

NOTES = ("name", "description", "priority")

#: A model field that the form shows in another shape.
_SHOWN_AS = {
    "environment_vars": "environment_text",
    TEXT_FIELD: "environment_text",
    "network_configuration": "networks_text",
}


class NotesForm(_Base):
    """What may change about a job at any time; nothing else about it is looked at."""

    class Meta:
        model = ContainerJob
        fields = NOTES
        widgets = {"description": forms.Textarea(attrs={"rows": 2})}

    def _post_clean(self) -> None:
        """Take the values over without the model's own checks.

        Those are admission: they would hold a finished job against today's policy and templates.
        """
        for name, value in self.cleaned_data.items():
            if name == "name":
                self.instance.name = value
            elif name == "description":
                self.instance.description = value
            elif name == "priority":
                self.instance.priority = value


class JobForm(_Base):
    """A new or pending job. What admission refuses becomes an error on the field that caused it."""

    environment_text = forms.CharField(
        label="Environment overrides",
        required=False,
        strip=False,
        widget=forms.Textarea(attrs={"rows": 4, "class": "vLargeTextField cm-code", "spellcheck": "false"}),
        help_text=(
            "One KEY=value a line, as in templates; these win over the template. Stored values are shown "
            f"as {REDACTED}: leave one as it is to keep it."
        ),
    )
    networks_text = forms.CharField(
        label="Networks",
        required=False,
        widget=forms.Textarea(attrs={"rows": 2, "class": "vLargeTextField cm-code", "spellcheck": "false"}),
        help_text="One network a line: its name, then the job's aliases in it. Empty: the default bridge.",
    )

    class Meta:
        model = ContainerJob
        fields = (
            *NOTES,
            "docker_image",
            "command",
            "command_form",
            "working_directory",
            "docker_host",
            "memory_limit",
            "cpu_limit",
            "timeout_seconds",
            "retry",
            "deadline_seconds",
            "environment_template",
            "user",
            "read_only_root",
        )
        widgets = {
            "description": forms.Textarea(attrs={"rows": 2}),
            "command": forms.Textarea(
                attrs={"rows": 2, "class": "vLargeTextField cm-code", "spellcheck": "false"}
            ),
            "retry": forms.Textarea(
                attrs={"rows": 2, "class": "vLargeTextField cm-code", "spellcheck": "false"}
            ),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        job = self.instance
        self._placed_on: ExecutorHost | None = None
        hosts = ExecutorHost.objects.filter(is_active=True)
        if not job._state.adding:
            hosts |= ExecutorHost.objects.filter(pk=job.docker_host_id)
            if not job.host_pinned:
                self._placed_on = job.docker_host
                self.initial["docker_host"] = None
            self.initial["environment_text"] = _as_text(redact(job.environment_vars))
            self.initial["networks_text"] = _networks_as_text(job.network_configuration)
            if parse_command(job.command).form == job.command_form:
                self.initial["command_form"] = ""
        if "docker_host" in self.fields:
            choice = self.fields["docker_host"]
            assert isinstance(choice, forms.ModelChoiceField)  # noqa: S101 - a foreign key's form field
            choice.queryset = hosts.order_by("name")
            choice.empty_label = (
                f"Placed automatically (now on {self._placed_on})"
                if self._placed_on
                else "Placed automatically"
            )

    def clean_environment_text(self) -> dict[str, str]:
        """The overrides as a dict; a value that was left hidden is the stored one."""
        try:
            variables = parse_environment_text(self.cleaned_data["environment_text"])
        except InvalidJob as error:
            place = error.field.removeprefix(TEXT_FIELD).lstrip(", ")
            raise ValidationError(f"{place}: {error.message}" if place else error.message) from error
        stored = self.instance.environment_vars
        for key, value in variables.items():
            if value == REDACTED:
                if key not in stored:
                    raise ValidationError(f"{key!r} has no stored value to keep; write its value.")
                variables[key] = stored[key]
        return variables

    def clean_networks_text(self) -> list[dict[str, Any]]:
        """The lines as a `network_configuration`."""
        networks: list[dict[str, Any]] = []
        for text in self.cleaned_data["networks_text"].splitlines():
            name, *aliases = text.split() or [""]
            if name:
                networks.append({"network_name": name, **({"aliases": aliases} if aliases else {})})
        return networks

    def add_error(self, field: str | None, error: Any) -> None:
        """Put an error of the model on the field that shows it here; one without a field goes on top."""
        if field is None and hasattr(error, "error_dict"):
            for name, errors in error.error_dict.items():
                shown = _SHOWN_AS.get(name, name)
                super().add_error(shown if shown in self.fields else None, errors)
            return
        super().add_error(field, error)

    def _post_clean(self) -> None:
        """Build the job and admit it, so that what only the database can tell is a form error as well."""
        job = self.instance
        if "environment_text" in self.cleaned_data:
            job.environment_vars = self.cleaned_data["environment_text"]
        if "networks_text" in self.cleaned_data:
            job.network_configuration = self.cleaned_data["networks_text"]
        super()._post_clean()  # type: ignore[misc]
        if self.cleaned_data.get("docker_host") is not None:
            job.host_pinned = True
        elif self._placed_on is not None:
            job.docker_host = self._placed_on
        if self.errors:
            return
        try:
            Desk().admit(job)
        except InvalidJob as error:
            self.add_error(None, ValidationError({error.field: error.message}))


def _as_text(variables: dict[str, str]) -> str:
    return "\n".join(f"{_key(key)}={value}" for key, value in variables.items())


def _key(key: str) -> str:
    """A key as the grammar of templates reads it: one with spaces or signs stands in quotes."""
    return key if key.replace("_", "a").isalnum() else f"'{key}'"


def _networks_as_text(configuration: list[dict[str, Any]]) -> str:
    return "\n".join(" ".join([item["network_name"], *item.get("aliases", [])]) for item in configuration)


__all__ = ["NOTES", "JobForm", "NotesForm"]
