"""Django settings of the benchmarks: the databases of the tests, the package's defaults, and little else."""

from __future__ import annotations

from tests.settings import *  # noqa: F403

INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "container_manager"]
MIDDLEWARE: list[str] = []
TEMPLATES: list[dict[str, object]] = []
CONTAINER_MANAGER_SETTINGS: dict[str, object] = {}
ROOT_URLCONF = "tests.benchmarks.settings"
urlpatterns: list[object] = []
