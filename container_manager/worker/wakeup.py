"""How an idle worker learns at once that there is something to do."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from container_manager.lifecycle import WAKE_CHANNEL

logger = logging.getLogger("container_manager.worker")

SQLITE_LOOK_SECONDS = 0.025
POLL_SECONDS = 0.5
RELISTEN_SECONDS = 2.0


class Wakeup(ABC):
    """A source of wake-ups. Polling stands behind each, as every one of them may fail unseen."""

    #: How long the supervisor may wait before it asks `changed` again; None: it need not ask.
    look_seconds: float | None = None

    def changed(self) -> bool:
        """Whether the database was written to since the last look."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Stop listening."""


class Polling(Wakeup):
    """No way to be told (MySQL and MariaDB have none): a look twice a second, so that a cancel is heard."""

    look_seconds = POLL_SECONDS

    def changed(self) -> bool:
        """Nobody knows; let us see."""
        return True

    def close(self) -> None:
        """Nothing to stop."""


class SqliteDataVersion(Wakeup):
    """SQLite counts the commits of other connections; reading the counter costs microseconds."""

    look_seconds = SQLITE_LOOK_SECONDS

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._connection = connection
        self._version = self._read()

    def changed(self) -> bool:
        """Whether another connection has committed since the last call."""
        version = self._read()
        changed, self._version = version != self._version, version
        return changed

    def close(self) -> None:
        """Nothing to stop: the connection is the worker's own."""

    def _read(self) -> int:
        # Django's cursor costs three times what the question does, and it is asked forty times a second.
        self._connection.ensure_connection()
        with self._connection.wrap_database_errors:
            return int(self._connection.connection.execute("PRAGMA data_version").fetchone()[0])


class PostgresNotify(Wakeup):
    """LISTEN on a connection of its own; a thread waits on its socket."""

    def __init__(self, connection: BaseDatabaseWrapper, woken: Callable[[], None]) -> None:
        self._make = connection.copy
        self._woken = woken
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wakeup", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread within half a second."""
        self._stop.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            wrapper = self._make()
            try:
                wrapper.ensure_connection()
                wrapper.set_autocommit(True)
                with wrapper.wrap_database_errors:
                    self._listen(wrapper.connection)
            except DatabaseError as error:
                logger.info("cannot listen for wake-ups, polling goes on: %s", error)
                self._stop.wait(RELISTEN_SECONDS)
            finally:
                wrapper.close()

    def _listen(self, raw: Any) -> None:
        raw.execute(f"LISTEN {WAKE_CHANNEL}")
        self._woken()  # whatever came before we listened
        while not self._stop.is_set():
            for _ in raw.notifies(timeout=0.5, stop_after=1):
                self._woken()


def for_database(alias: str, woken: Callable[[], None]) -> Wakeup:
    """The best way that the database offers."""
    connection = connections[alias]
    if connection.vendor == "sqlite":
        return SqliteDataVersion(connection)
    if connection.vendor == "postgresql":
        from django.db.backends.postgresql.psycopg_any import is_psycopg3

        if is_psycopg3:
            return PostgresNotify(connection, woken)
    return Polling()
