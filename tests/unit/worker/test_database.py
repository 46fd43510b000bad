"""Which failures of a database pass by themselves, as each driver tells them."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg.errors
import pytest
from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
)

from container_manager.worker.database import PatientDatabase, is_cut_short, is_passing


def postgres(sqlstate: str, kind: type[DatabaseError] = OperationalError) -> DatabaseError:
    """As Django raises what psycopg raised."""
    error = kind("the server's words")
    error.__cause__ = psycopg.errors.lookup(sqlstate)("the server's words")
    return error


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("08006", OperationalError),
        ("25006", InternalError),  # a standby, or default_transaction_read_only
        ("40001", OperationalError),
        ("40P01", OperationalError),
        ("53100", OperationalError),  # disk full
        ("53300", OperationalError),  # too many connections
        ("55P03", OperationalError),
        ("57P01", OperationalError),
        ("57P03", OperationalError),
    ],
)
def test_what_passes_on_postgres(sqlstate: str, kind: type[DatabaseError]) -> None:
    assert is_passing(postgres(sqlstate, kind))


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("22021", DataError),
        ("23503", IntegrityError),
        ("42P01", ProgrammingError),
        ("42501", ProgrammingError),
        ("54000", OperationalError),
        ("57014", OperationalError),  # statement_timeout: it is there
        ("XX000", InternalError),
    ],
)
def test_what_does_not_pass_on_postgres(sqlstate: str, kind: type[DatabaseError]) -> None:
    assert not is_passing(postgres(sqlstate, kind))


def test_a_connection_that_breaks_has_no_code() -> None:
    error = OperationalError("server closed the connection unexpectedly")
    error.__cause__ = psycopg.OperationalError("server closed the connection unexpectedly")
    assert is_passing(error)
    assert is_passing(InterfaceError("connection already closed"))


@pytest.mark.parametrize(
    "number", [1040, 1053, 1205, 1213, 1290, 1836, 1927, 2002, 2003, 2006, 2013, 2055, 3572]
)
def test_what_passes_on_mysql(number: int) -> None:
    assert is_passing(OperationalError(number, "the server's words"))


@pytest.mark.parametrize("number", [1054, 1153, 1366, 1406, 1969, 3024])
def test_what_does_not_pass_on_mysql(number: int) -> None:
    assert not is_passing(OperationalError(number, "the server's words"))


def sqlite_error(call: Callable[[], object]) -> OperationalError:
    """As Django raises it."""
    try:
        call()
    except sqlite3.Error as error:
        raised = OperationalError(*error.args)
        raised.__cause__ = error
        return raised
    raise AssertionError("nothing failed")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with a table."""
    path = tmp_path / "db.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    return path


def test_what_passes_on_sqlite(path: Path) -> None:
    one, two = sqlite3.connect(path), sqlite3.connect(path, timeout=0)
    one.execute("BEGIN IMMEDIATE")
    assert is_passing(sqlite_error(lambda: two.execute("INSERT INTO t VALUES (1)")))  # locked
    one.close()
    two.execute("PRAGMA query_only = 1")
    assert is_passing(sqlite_error(lambda: two.execute("INSERT INTO t VALUES (1)")))  # read-only
    two.execute("PRAGMA query_only = 0")
    two.execute("PRAGMA max_page_count = 2")
    assert is_passing(
        sqlite_error(lambda: two.execute("INSERT INTO t VALUES (zeroblob(1000000))"))  # full
    )
    two.close()
    assert is_passing(
        sqlite_error(lambda: sqlite3.connect(path.parent / "no" / "such"))  # as on a disk that is away
    )


@pytest.mark.parametrize("statement", ["SELECT x FROM missing", "SELECT missing FROM t", "SELECT"])
def test_what_does_not_pass_on_sqlite(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    assert not is_passing(sqlite_error(lambda: connection.execute(statement)))
    connection.close()


@pytest.mark.parametrize("error", [ValueError("no"), OverflowError("int too large"), KeyError("x")])
def test_what_is_no_database_error_does_not_pass(error: Exception) -> None:
    assert not is_passing(error)


@pytest.mark.parametrize(
    "error",
    [postgres("57014"), OperationalError(1969, "max_statement_time"), OperationalError(3024, "timeout")],
)
def test_a_slow_statement_is_tried_again_but_not_for_ever(
    error: DatabaseError, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_cut_short(error)
    monkeypatch.setattr("container_manager.worker.database.RETRY_SECONDS", (0.0,))
    database = PatientDatabase("default", threading.Event(), lambda: None)
    monkeypatch.setattr(database, "_hang_up", lambda: None)
    tries: list[None] = []

    def slow() -> None:
        tries.append(None)
        raise error

    with pytest.raises(OperationalError):
        database.attempt(slow)
    assert len(tries) == 3
