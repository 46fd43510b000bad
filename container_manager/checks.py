"""System checks: a mistake in the settings is told before the first job, with the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register  # noqa: A004
from django.db import OperationalError, connections
from django.utils.module_loading import import_string

from container_manager.conf import SETTING, Settings, problems
from container_manager.executors.base import Executor


@register("container_manager")
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E001: an unknown key, a wrong type or value. E002: an executor that cannot be imported."""
    raw = getattr(django_settings, SETTING, {})
    found: list[CheckMessage] = [
        Error(problem.message, hint=problem.hint, id="container_manager.E001") for problem in problems(raw)
    ]
    if found:
        return found
    for name, path in raw.get("EXECUTORS", {}).items():
        try:
            loaded = import_string(path)
        except ImportError as error:
            found.append(_bad_executor(name, f"cannot be imported: {error}"))
            continue
        if not (isinstance(loaded, type) and issubclass(loaded, Executor)):
            found.append(
                _bad_executor(name, "is not a subclass of container_manager.executors.base.Executor")
            )
    return found


@register("container_manager", deploy=True)
def check_deployment(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W001: the executor without isolation is allowed in a deployment."""
    raw = getattr(django_settings, SETTING, {})
    if problems(raw):
        return []  # E001 says so already
    if raw.get("ALLOW_PROCESS_EXECUTOR", Settings().ALLOW_PROCESS_EXECUTOR):
        return [
            Warning(
                "The process executor is allowed: its jobs run on this machine without isolation.",
                hint=f"Remove 'ALLOW_PROCESS_EXECUTOR' from {SETTING} outside development.",
                id="container_manager.W001",
            )
        ]
    return []


@register(Tags.database)
def check_sqlite(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """W002: SQLite without IMMEDIATE transactions, which makes writers fail instead of wait."""
    found: list[CheckMessage] = []
    for alias in databases or ():
        options = django_settings.DATABASES[alias]
        if not options["ENGINE"].endswith("sqlite3"):
            continue
        mode = str(options.get("OPTIONS", {}).get("transaction_mode") or "DEFERRED").upper()
        if mode == "DEFERRED":
            found.append(
                Warning(
                    f"The SQLite database {alias!r} uses deferred transactions; "
                    "a worker and a web process that write at once may get 'database is locked'.",
                    hint="Set OPTIONS = {'transaction_mode': 'IMMEDIATE', 'timeout': 20, "
                    "'init_command': 'PRAGMA journal_mode=WAL'}.",
                    id="container_manager.W002",
                )
            )
    return found


@register(Tags.database)
def check_sqlite_journal(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """W003: an SQLite file without a write-ahead log. The file knows its mode, so it is asked."""
    found: list[CheckMessage] = []
    for alias in databases or ():
        connection = connections[alias]
        if connection.vendor != "sqlite":
            continue
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT file FROM pragma_database_list WHERE name = 'main'")
                is_file = bool(cursor.fetchone()[0])
                cursor.execute("PRAGMA journal_mode")
                mode = str(cursor.fetchone()[0])
        except OperationalError:
            continue  # whatever keeps the file from being read is told better by what comes next
        if is_file and mode != "wal":
            found.append(
                Warning(
                    f"The SQLite database {alias!r} keeps its journal in mode {mode!r}; a worker that writes "
                    "and a web process that reads hold each other up.",
                    hint="Set OPTIONS = {'init_command': 'PRAGMA journal_mode=WAL', ...}. The file keeps the "
                    "mode; it has to lie on a local disk.",
                    id="container_manager.W003",
                )
            )
    return found


@register(Tags.database)
def check_mysql_charset(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """W004: MySQL or MariaDB with a character set that cannot hold every name and every line of output.

    The connection's own, and the database's, which new tables take over.
    """
    found: list[CheckMessage] = []
    for alias in databases or ():
        connection = connections[alias]
        if connection.vendor != "mysql":
            continue
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT @@character_set_connection, @@character_set_database")
                used = [str(name) for name in cursor.fetchone()]
        except OperationalError:
            continue  # whatever keeps the server from answering is told better by what comes next
        found += [
            Warning(
                f"The {whose} {alias!r} uses the character set {name!r}; a job whose name or output has "
                "a character outside it cannot be stored.",
                hint=remedy,
                id="container_manager.W004",
            )
            for name, (whose, remedy) in zip(used, _CHARSETS, strict=True)
            if name != "utf8mb4"
        ]
    return found


#: Whose a character set is, and how it is changed.
_CHARSETS = (
    ("connection to the database", "Set OPTIONS = {'charset': 'utf8mb4', ...} in DATABASES."),
    (
        "database",
        "ALTER DATABASE ... CHARACTER SET utf8mb4; for each table: CONVERT TO CHARACTER SET utf8mb4.",
    ),
)


def _bad_executor(name: str, what: str) -> Error:
    return Error(
        f"{SETTING}['EXECUTORS'][{name!r}] {what}.",
        hint="Give the dotted path of an Executor class.",
        id="container_manager.E002",
    )
