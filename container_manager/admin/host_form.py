"""The form of a host: secrets of its configuration are never sent back to the browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.core.exceptions import ValidationError

from container_manager.admin.secrets import mask, unmask
from container_manager.core.environment import REDACTED
from container_manager.executors.registry import known_types
from container_manager.models import ContainerJob, ExecutorHost

if TYPE_CHECKING:
    _Base = forms.ModelForm[ExecutorHost]
else:
    _Base = forms.ModelForm


class HostForm(_Base):
    """A host with its secrets masked; what is left masked stays as it is stored."""

    configuration = forms.JSONField(
        label="Executor configuration",
        required=False,
        widget=forms.Textarea(attrs={"rows": 6, "class": "vLargeTextField cm-code", "spellcheck": "false"}),
        help_text=(
            'A JSON object, such as {"timeout": 60, "pull_silence_seconds": 300}. Secrets '
            f"are shown as {REDACTED}: leave one as it is to keep it."
        ),
    )

    class Meta:
        model = ExecutorHost
        fields = (
            "name",
            "executor_type",
            "connection_string",
            "is_active",
            "max_concurrent_jobs",
            "weight",
            "auto_pull_images",
            "tls_enabled",
            "tls_verify",
            "tls_ca_cert",
            "tls_client_cert",
            "tls_client_key",
        )
        help_texts = {
            "weight": "A host of twice the weight gets twice the jobs; weight 0: only those that name it."
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["configuration"] = mask(self.instance.executor_config)
        self._address = (self.instance.executor_type, self.instance.connection_string)
        if "auto_pull_images" in self.fields:
            self.fields["auto_pull_images"].widget = forms.Select(
                choices=[("", "as configured"), ("True", "yes"), ("False", "no")]
            )
        if "executor_type" in self.fields:
            types = sorted({*known_types(), self.initial.get("executor_type", "docker")})
            self.fields["executor_type"] = forms.ChoiceField(choices=[(name, name) for name in types])

    def clean_configuration(self) -> Any:
        """The configuration with the stored secrets back in their places."""
        value = self.cleaned_data["configuration"]
        if value is None:
            return {}
        try:
            return unmask(value, self.instance.executor_config)
        except ValueError as error:
            raise ValidationError(str(error)) from error

    def add_error(self, field: str | None, error: Any) -> None:
        """Put an error of the model on the field that shows it here; one without a field goes on top."""
        if field is None and hasattr(error, "error_dict"):
            for name, errors in error.error_dict.items():
                shown = "configuration" if name == "executor_config" else name
                super().add_error(shown if shown in self.fields else None, errors)
            return
        super().add_error(field, error)

    def _post_clean(self) -> None:
        """Take the configuration over, and unbind a host that was given another address on purpose.

        A host with jobs under way stays bound to its engine: their containers are there.
        """
        host = self.instance
        if "configuration" in self.cleaned_data:
            host.executor_config = self.cleaned_data["configuration"]
        host.host_type = ""  # taken from the address on saving
        super()._post_clean()  # type: ignore[misc]
        address = (host.executor_type, host.connection_string)
        if (
            host.engine_id
            and address != self._address
            and not self.errors
            and not ContainerJob.objects.active().filter(docker_host=host).exists()
        ):
            host.engine_id = ""
