"""The state machine on the database: the only package that writes `ContainerJob.status`.

Each function is one short transaction: the fence (for a worker), a conditional UPDATE that names the
expected status and, for a worker, its lease token, the attempt's row, and an event. An UPDATE that
matches no row means that somebody else was faster; the function then writes nothing and says so.
Signals go out after the commit.
"""

from container_manager.lifecycle.attempts import (
    adopt,
    adopt_stranded,
    finish,
    note,
    refuse,
    release,
    start,
    store_logs,
)
from container_manager.lifecycle.callers import change, create, create_many, request_cancel
from container_manager.lifecycle.moves import WAKE_CHANNEL, wake
from container_manager.lifecycle.queue import admit_due, claim, deadline_left, expire_waiting

__all__ = [
    "WAKE_CHANNEL",
    "admit_due",
    "adopt",
    "adopt_stranded",
    "change",
    "claim",
    "create",
    "create_many",
    "deadline_left",
    "expire_waiting",
    "finish",
    "note",
    "refuse",
    "release",
    "request_cancel",
    "start",
    "store_logs",
    "wake",
]
