"""What all commands share: tables that are not there are told in a sentence, not in a traceback."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connections, router
from django.db.migrations.loader import MigrationLoader

from container_manager.models import ContainerJob


class JobCommand(BaseCommand):
    """A command of ours. After any other database error its traceback is what helps, and stays."""

    #: The exit code of a command that found no tables.
    returncode_without_tables = 1

    def execute(self, *args: Any, **options: Any) -> str | None:
        """As Django's. Raises CommandError where the tables are not there, or are of an older version."""
        try:
            return super().execute(*args, **options)
        except DatabaseError as error:
            if problem := tables_problem():
                raise CommandError(problem, returncode=self.returncode_without_tables) from error
            raise


def tables_problem() -> str:
    """What keeps the tables from being used, with the remedy; empty where it is not their fault.

    Asked after an error: no command pays for it before, and no command races a migration.
    """
    connection = connections[router.db_for_write(ContainerJob)]
    try:
        loader = MigrationLoader(connection)
    except DatabaseError:
        return ""  # the database has another problem, and the error at hand tells it
    label = ContainerJob._meta.app_label
    ours = {key for key in loader.disk_migrations if key[0] == label}
    missing = ours - loader.applied_migrations.keys()
    if not missing:
        return ""
    what = "missing" if missing == ours else "those of an older version"
    return f"the tables are {what}: run `python manage.py migrate`"
