"""Django settings of the tests, steered by the environment.

CM_TEST_DB           sqlite (default), postgres, mariadb or mysql
CM_TEST_POSTGRES_URL an existing server; a private one is started where it is not set
CM_TEST_MARIADB_URL  the same, as is CM_TEST_MYSQL_URL
CM_TEST_DB_NAME      the database itself, for child processes that join a running test (`child_environment`)
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from tests.engines import database, mariadb_url, mysql_url, postgres_url

SECRET_KEY = "only-for-tests"
DEBUG = False
ALLOWED_HOSTS = ["*"]
USE_TZ = True
TIME_ZONE = "UTC"
ROOT_URLCONF = "tests.urls"
STATIC_URL = "/static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "container_manager",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

CONTAINER_MANAGER_SETTINGS: dict[str, Any] = {"ALLOW_PROCESS_EXECUTOR": True}


def _sqlite() -> dict[str, Any]:
    # A file, not memory: workers are threads and processes, and each has connections of its own.
    default = Path(tempfile.gettempdir()) / f"container-jobs-tests-{os.getpid()}.sqlite3"
    name = os.environ.get("CM_TEST_DB_NAME") or str(default)
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": name,
        "TEST": {"NAME": name},
        "OPTIONS": {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        },
    }


def _postgres() -> dict[str, Any]:
    return _on_server("django.db.backends.postgresql", urlsplit(postgres_url()))


def _mariadb() -> dict[str, Any]:
    return _on_server("django.db.backends.mysql", urlsplit(mariadb_url()))


def _mysql() -> dict[str, Any]:
    return _on_server("django.db.backends.mysql", urlsplit(mysql_url()))


def _on_server(backend: str, server: SplitResult) -> dict[str, Any]:
    return {
        "ENGINE": backend,
        "NAME": os.environ.get("CM_TEST_DB_NAME") or server.path.lstrip("/"),
        "USER": unquote(server.username or ""),
        "PASSWORD": unquote(server.password or ""),
        "HOST": server.hostname or "",
        "PORT": server.port or "",
        # Several runs may share a server.
        "TEST": {"NAME": f"test_container_jobs_{os.getpid()}"},
    }


_KINDS = {"sqlite": _sqlite, "postgres": _postgres, "mariadb": _mariadb, "mysql": _mysql}
DATABASES = {"default": _KINDS[database()]()}
