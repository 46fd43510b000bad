"""The database as a worker meets it: away at times, read-only at times, back again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from django.db import DatabaseError, InterfaceError, InternalError, OperationalError, connections

logger = logging.getLogger("container_manager.worker")

RETRY_SECONDS = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
#: How often it is tried again once the worker is to stop: the next worker finds what could not be stored.
TRIES_AT_STOP = 2
#: SQLite calls a missing table an operational error, as if it came by itself.
_PERMANENT = ("no such table", "no such column")
#: PostgreSQL calls a write to a read-only server an internal error.
_READ_ONLY = "25006"

_T = TypeVar("_T")


class DatabaseAway(Exception):
    """The database did not come back before the worker had to stop."""


class PatientDatabase:
    """Does database work, and again after the database was away; what agents report waits in memory.

    `restore` is called before anything is repeated: a transaction that failed may have left its marks on
    instances in memory.
    """

    def __init__(self, alias: str, stop: threading.Event, restore: Callable[[], None]) -> None:
        self._alias = alias
        self._stop = stop
        self._restore = restore

    def attempt(self, call: Callable[[], _T]) -> _T:
        """What `call` returns, as soon as the database lets it. Raises DatabaseAway at a stop."""
        failures = 0
        while True:
            try:
                if failures:
                    self._restore()
                result = call()
            except (OperationalError, InterfaceError, InternalError) as error:
                if not is_passing(error):
                    raise
                failures += 1
                if self._stop.is_set() and failures > TRIES_AT_STOP:
                    raise DatabaseAway(str(error).strip()) from error
                pause = RETRY_SECONDS[min(failures, len(RETRY_SECONDS)) - 1]
                # A deadlock or a busy moment is the database's everyday; only what lasts is worth a warning.
                level = logging.INFO if failures == 1 else logging.WARNING
                logger.log(level, "database: %s; again in %g s", str(error).strip(), pause)
                self._hang_up()
                self._stop.wait(pause)
            else:
                if failures > 1:
                    logger.info("the database is back")
                return result

    def _hang_up(self) -> None:
        connection = connections[self._alias]
        if not connection.in_atomic_block:
            connection.close()


def is_passing(error: DatabaseError | InterfaceError) -> bool:
    """Whether the same work may succeed later."""
    if isinstance(error, InternalError):
        return getattr(error.__cause__, "sqlstate", "") == _READ_ONLY or "read only" in str(error).lower()
    return not str(error).startswith(_PERMANENT)
