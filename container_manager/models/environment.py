"""Reusable sets of environment variables."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.db import models

from container_manager.core.environment import parse_environment_text
from container_manager.core.errors import InvalidJob
from container_manager.core.inert import inert_line


class EnvironmentVariableTemplate(models.Model):
    """Named KEY=value lines that jobs start from; a job's own variables win over them."""

    name = models.CharField(max_length=200, unique=True)
    description = models.TextField(blank=True, default="")
    environment_variables_text = models.TextField(
        blank=True,
        default="",
        help_text="One KEY=value a line. Lines that start with # are comments; quotes keep spaces.",
    )
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["name"]
        verbose_name = "environment template"

    def __str__(self) -> str:
        return inert_line(self.name)

    def get_environment_variables(self) -> dict[str, str]:
        """The variables as a dict. Raises InvalidJob naming the line that is wrong."""
        return parse_environment_text(self.environment_variables_text)

    def clean(self) -> None:
        """Turn a mistake in the text into a form error on that field."""
        super().clean()
        try:
            self.get_environment_variables()
        except InvalidJob as error:
            raise ValidationError({"environment_variables_text": error.message}) from error

    def save(self, *args: object, **kwargs: object) -> None:
        """Store the template; a text that does not parse is refused before anything is written."""
        self.get_environment_variables()
        super().save(*args, **kwargs)  # type: ignore[arg-type]
