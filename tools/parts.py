"""Which private parts the tests of this checkout use, and who switches them off."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from tools.engine import engines_below
from tools.mariadb import MariaDB
from tools.mysql import MySQL
from tools.postgres import Cluster

STATE = Path(__file__).resolve().parent.parent / ".state"
ENGINES = STATE / "engines"
PREFIX = "tests"  # of the names of the engines that belong to tests; the demo has its own


class Share:
    """Several test runs may share the parts: the last one that leaves switches them off.

    A shared file lock each, which the kernel releases even for a run that was killed.
    """

    def __init__(self) -> None:
        self._lock: IO[str] | None = None

    def join(self) -> None:
        """Count this run in; call it before starting anything. A second call has no effect."""
        if self._lock is None:
            STATE.mkdir(parents=True, exist_ok=True)
            self._lock = (STATE / "tests.lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    def leave(self, *, keep: bool = False) -> None:
        """Count it out; without `keep`, stop everything unless somebody else is in."""
        if self._lock is None:
            return
        try:
            if not keep:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _stop_all()
        except BlockingIOError:
            return  # the other run does it
        finally:
            self._lock.close()
            self._lock = None


def _stop_all() -> None:
    for engine in engines_below(ENGINES):
        if engine.name.startswith(PREFIX):
            engine.stop()
    Cluster().stop()
    MariaDB().stop()
    MySQL().stop()
