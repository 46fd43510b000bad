"""Django signals for what happens to jobs and hosts.

All are sent after the commit, from the process that made the change: the worker for most transitions.
A receiver that raises is logged and never stops the worker.
"""

from __future__ import annotations

from django.dispatch import Signal

#: Every change of status. Arguments: `job`, `event` (the stored `JobEvent`).
job_status_changed = Signal()

#: A job reached its final status. Arguments: `job`, `event`.
job_finished = Signal()

#: A host became reachable, unreachable or another engine. Arguments: `host`, `previous`.
host_status_changed = Signal()
