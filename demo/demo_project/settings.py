"""Settings of the demo project: on the developer's machine, and, steered by the environment, in containers.

DEMO_DATABASE   path of the SQLite file; a job has one of its own on its /tmp, as no container shares files
                with the machine
DEMO_EXECUTOR   "process" allows the executor without isolation, for a machine that has no Docker Engine
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Any

BASE_DIR = Path(__file__).resolve().parent.parent

# Sessions of `make demo-web` need not survive a restart, and a key in a repository is none.
SECRET_KEY = os.environ.get("DEMO_SECRET_KEY") or secrets.token_urlsafe(48)
DEBUG = os.environ.get("DEMO_DEBUG") == "1"
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]"]
USE_TZ = True
TIME_ZONE = "UTC"
ROOT_URLCONF = "demo_project.urls"
WSGI_APPLICATION = "demo_project.wsgi.application"
STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "static"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "container_manager",
    "library",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
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

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DEMO_DATABASE") or BASE_DIR / "db.sqlite3",
        "OPTIONS": {
            # The worker and the admin write at the same time: wait for each other, never fail at once.
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        },
    }
}

CONTAINER_MANAGER_SETTINGS: dict[str, Any] = {
    # Known before the first run, so that `make demo-clean` finds our containers and no others.
    "INSTALLATION_ID": "demo-" + hashlib.sha256(str(BASE_DIR).encode()).hexdigest()[:8],
    "COMMAND_IMAGE": "container-jobs-demo:latest",
    "ALLOW_PROCESS_EXECUTOR": os.environ.get("DEMO_EXECUTOR") == "process",
    "STOP_GRACE_SECONDS": 2.0,  # the demo's jobs have nothing to tidy up
}
