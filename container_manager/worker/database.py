"""The database as a worker meets it: away at times, read-only at times, back again."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from typing import TypeVar

from django.db import DatabaseError, InterfaceError, OperationalError, connections

from container_manager.core.errors import LeaseLost

logger = logging.getLogger("container_manager.worker")

RETRY_SECONDS = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
#: How often it is tried again once the worker is to stop: the next worker finds what could not be stored.
TRIES_AT_STOP = 2
#: How often a statement is tried again that took the database too long.
TRIES_CUT_SHORT = 2

# What passes, by each driver's own codes: drivers call nearly every failure of a server "operational". All
# else comes again however often it is tried, and would hold up everything that waits behind it.
_SQLITE_PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
}
# Connections, rollbacks by the server, its resources (a full disk), its operator (a restart), its disks.
_POSTGRES_PASSING = ("08", "40", "53", "57P", "58030", "25006", "25P03", "55P03")  # 25006: read-only
_POSTGRES_CUT_SHORT = "57014"
_MYSQL_PASSING = {
    # the connection: not to be had, refused, broken
    *(0, 2002, 2003, 2005, 2006, 2012, 2013, 2014, 2026, 2027, 2055, 4031),
    *(1040, 1042, 1043, 1080, 1081, 1129, 1152, 1158, 1159, 1160, 1161, 1184, 1203, 1226, 1927),
    # a server that stops, or a cluster's node that is not ready
    *(1047, 1053, 1077, 1079),
    # locks, deadlocks, what somebody else has changed meanwhile
    *(1020, 1205, 1206, 1213, 1412, 1637, 3101, 3572),
    # read-only; out of memory, of disk
    *(1223, 1290, 1792, 1836),
    *(1021, 1030, 1037, 1041, 1114, 1180),
}
_MYSQL_CUT_SHORT = {1317, 1969, 3024}

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
            except (DatabaseError, InterfaceError) as error:
                if not is_passing(error) and not (is_cut_short(error) and failures < TRIES_CUT_SHORT):
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


def is_passing(error: BaseException) -> bool:
    """Whether it is the database that is in trouble, so that the same work succeeds when that is over."""
    cause = error.__cause__
    if isinstance(cause, sqlite3.Error):
        # The lowest byte: the others say more closely what kind of it. Python's own complaints have none.
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE_PASSING
    if not isinstance(error, DatabaseError | InterfaceError):
        return False
    sqlstate, number = _sqlstate(error), _number(error)
    if sqlstate is not None:
        return sqlstate.startswith(_POSTGRES_PASSING)
    if number is not None:
        return number in _MYSQL_PASSING
    # A connection that breaks has no code, and other drivers have codes of their own.
    return isinstance(error, OperationalError | InterfaceError)


def is_cut_short(error: BaseException) -> bool:
    """Whether the database gave a statement up that took too long: it is there, and may be as slow again."""
    return _sqlstate(error) == _POSTGRES_CUT_SHORT or _number(error) in _MYSQL_CUT_SHORT


def is_of_one(error: BaseException) -> bool:
    """Whether a failure is the matter of the one job or host that was worked at, and the others may go on."""
    return not (isinstance(error, LeaseLost | DatabaseAway) or is_passing(error) or is_cut_short(error))


def _sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's code, as psycopg or psycopg2 gives it."""
    cause = error.__cause__
    code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return code if isinstance(code, str) else None


def _number(error: BaseException) -> int | None:
    """The number with which MySQL's drivers begin what they raise, and Django what it makes of that."""
    number = error.args[0] if isinstance(error, DatabaseError | InterfaceError) and error.args else None
    return number if isinstance(number, int) else None
