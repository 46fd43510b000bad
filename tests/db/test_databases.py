"""The databases of the tests are what workers meet: shared by threads and processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.db import connection

from tests.engines import database

CHILD = """
import django
django.setup()
from django.contrib.auth.models import User
print(User.objects.get().username)
User.objects.create(username="child")
"""


@pytest.mark.django_db
def test_the_database_is_the_one_that_was_asked_for() -> None:
    wanted = {"postgres": "postgresql", "mariadb": "mysql"}
    assert connection.vendor == wanted.get(database(), database())
    if connection.vendor == "mysql":
        assert connection.mysql_is_mariadb is (database() == "mariadb")  # type: ignore[attr-defined]


@pytest.mark.django_db(transaction=True)
def test_a_child_process_joins_the_tests_database(child_environment: dict[str, str]) -> None:
    User.objects.create(username="parent")
    answer = subprocess.run(
        [sys.executable, "-c", CHILD], env=child_environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "parent"
    assert User.objects.filter(username="child").exists()


@pytest.mark.django_db
def test_sqlite_is_a_file_with_a_write_ahead_log() -> None:
    if connection.vendor != "sqlite":
        assert connection.vendor in {"postgresql", "mysql"}
        return
    assert Path(connection.settings_dict["NAME"]).is_file()
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode")
        assert cursor.fetchone() == ("wal",)


@pytest.mark.postgres
@pytest.mark.django_db
def test_postgres_is_new_enough() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version_num")
        assert int(cursor.fetchone()[0]) >= 150000
