"""A lease for a moment: what a command or a call needs that does one thing on an engine and goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from container_manager.models.lease import EngineLease, HeldLease
from container_manager.models.worker import RegisteredWorker


@contextmanager
def temporary_lease(engine_id: str, purpose: str, seconds: float) -> Iterator[HeldLease | None]:
    """Hold an engine's lease for the block; None while somebody else holds it.

    The process registers like a worker, so that one need not wait for the lease to run out if it dies here.
    """
    name = RegisteredWorker.new_name(purpose)
    RegisteredWorker.register(name, slots=0)
    lease = EngineLease.acquire(engine_id, name, seconds)
    try:
        yield lease
    finally:
        if lease is not None:
            EngineLease.release(lease)
        RegisteredWorker.leave(name)
