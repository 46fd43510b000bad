"""App configuration."""

from __future__ import annotations

from django.apps import AppConfig


class ContainerManagerConfig(AppConfig):
    """Container jobs for a Django project; add `container_manager` to INSTALLED_APPS."""

    name = "container_manager"
    verbose_name = "Container jobs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks."""
        from container_manager import checks  # noqa: F401
