"""Django settings of the benchmarks: the databases of the tests, the package's defaults, and little else."""

from __future__ import annotations

from tests.settings import DATABASES, DEFAULT_AUTO_FIELD, SECRET_KEY, USE_TZ

__all__ = ["DATABASES", "DEFAULT_AUTO_FIELD", "SECRET_KEY", "USE_TZ"]

INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "container_manager"]
CONTAINER_MANAGER_SETTINGS: dict[str, object] = {}
ROOT_URLCONF = "tests.benchmarks.settings"
urlpatterns: list[object] = []
