"""Before `migrate`, and after an upgrade without it: each command says what to run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.core.management import CommandError, call_command, get_commands
from django.db import DatabaseError, connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from container_manager.management.command import JobCommand, tables_problem
from container_manager.models import ContainerJob

#: What each command needs to come as far as the database.
ARGUMENTS = {
    "prune_container_jobs": ("--completed-days=1",),
    "register_local_host": ("--process", "--url=process:///nowhere/jobs"),
    "run_in_container": ("--image=any:1", "--", "check"),
    "build_job_image": ("--context=.",),
}
OURS = sorted(name for name, app in get_commands().items() if app == "container_manager")


@pytest.fixture
def _no_tables(transactional_db: None) -> Iterator[None]:
    call_command("migrate", "container_manager", "zero", verbosity=0)
    yield
    call_command("migrate", "container_manager", verbosity=0)


@pytest.mark.usefixtures("_no_tables")
def test_each_command_says_that_the_tables_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert OURS
    for name in OURS:
        with pytest.raises(CommandError) as caught:
            call_command(name, *ARGUMENTS.get(name, ()))
        assert str(caught.value) == "the tables are missing: run `python manage.py migrate`", name
        # 125 is the one exit code that a job's own command cannot be taken for.
        assert caught.value.returncode == (125 if name == "run_in_container" else 1)
        assert capsys.readouterr().out == ""


@pytest.mark.django_db
def test_tables_of_an_older_version_are_told_as_well() -> None:
    assert tables_problem() == ""
    latest = max(
        name for app, name in MigrationLoader(connection).disk_migrations if app == "container_manager"
    )
    MigrationRecorder(connection).record_unapplied("container_manager", latest)
    assert tables_problem() == "the tables are those of an older version: run `python manage.py migrate`"


@pytest.mark.django_db
def test_another_error_of_the_database_keeps_its_traceback() -> None:
    class Broken(JobCommand):
        def handle(self, *args: object, **options: object) -> None:
            ContainerJob.objects.extra(where=["no_such_column = 1"]).exists()

    with pytest.raises(DatabaseError, match="no_such_column"):
        call_command(Broken())
