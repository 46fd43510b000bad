"""Leases: one worker watches one engine, and a worker that lost its lease can write nothing."""

from __future__ import annotations

from typing import NamedTuple

from django.db import models, router, transaction
from django.db.models import F, Q

from container_manager.core.errors import LeaseLost
from container_manager.models.clock import Now, from_now, time_until


class HeldLease(NamedTuple):
    """What the holder of a lease keeps: the engine, and the fencing token of this tenure."""

    engine_id: str
    token: int


class Holding(NamedTuple):
    """How a lease stands that somebody else has. `worker` is empty where nobody has it."""

    token: int
    worker: str
    seconds_left: float  # by the database's clock; below 0: it has run out


class EngineLease(models.Model):
    """The right to act on one engine, known by its own id and not by an address.

    All times are the database's. The token grows with every tenure and never repeats for an engine.
    """

    engine_id = models.CharField(max_length=200, primary_key=True)
    token = models.BigIntegerField(default=0)
    worker = models.CharField(max_length=200, blank=True, default="")
    acquired_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)
    #: A worker that would serve the engine for good; who holds the lease for one job alone yields to it.
    wanted_by = models.CharField(max_length=200, blank=True, default="")

    def __str__(self) -> str:
        return f"{self.engine_id} held by {self.worker or 'nobody'}"

    @classmethod
    def acquire(cls, engine_id: str, worker: str, seconds: float) -> HeldLease | None:
        """Take the lease if it is free or has run out; None while another worker holds it."""
        cls._rows().get_or_create(engine_id=engine_id)
        free = Q(expires_at__isnull=True) | Q(expires_at__lt=Now()) | Q(worker="")
        with transaction.atomic(using=router.db_for_write(cls)):
            if not cls._take(cls._rows().filter(free, engine_id=engine_id), worker, seconds):
                return None
            return HeldLease(engine_id, cls._rows().values_list("token", flat=True).get(engine_id=engine_id))

    @classmethod
    def seize(cls, engine_id: str, token: int, worker: str, seconds: float) -> HeldLease | None:
        """Take over from the tenure `token`, whose holder is proven to be gone; None: somebody else did."""
        if not cls._take(cls._rows().filter(engine_id=engine_id, token=token), worker, seconds):
            return None
        return HeldLease(engine_id, token + 1)

    @classmethod
    def holding(cls, engine_id: str) -> Holding:
        """Who has the lease, and for how long yet."""
        row = cls._rows().filter(engine_id=engine_id).annotate(left=time_until("expires_at"))
        token, worker, remaining = row.values_list("token", "worker", "left").first() or (0, "", None)
        return Holding(token, worker, remaining.total_seconds() if worker and remaining is not None else 0.0)

    @classmethod
    def want(cls, engine_id: str, worker: str) -> None:
        """Ask whoever holds the lease for one job alone to yield."""
        cls._rows().filter(engine_id=engine_id).exclude(wanted_by=worker).update(wanted_by=worker)

    @classmethod
    def is_wanted(cls, lease: HeldLease) -> bool:
        """Whether another worker asks for the engine."""
        return bool(cls._held(lease).exclude(wanted_by="").exists())

    @classmethod
    def renew(cls, lease: HeldLease, seconds: float) -> None:
        """Prolong a tenure. Raises LeaseLost when another one has begun."""
        if not cls._held(lease).update(expires_at=from_now(seconds)):
            raise _lost(lease)

    @classmethod
    def fence(cls, lease: HeldLease) -> None:
        """First statement of every transaction that a worker writes in.

        It locks the lease row until the commit, so that a take-over waits for us or we for it: what is
        committed was written by the holder. On SQLite it also takes the write lock at once, which spares
        a failing upgrade of a read transaction later. Raises LeaseLost.
        """
        if not cls._held(lease).update(token=F("token")):
            raise _lost(lease)

    @classmethod
    def is_held(cls, lease: HeldLease) -> bool:
        """Whether the tenure is still the current one."""
        return cls._held(lease).exists()

    @classmethod
    def release(cls, lease: HeldLease) -> None:
        """Give the lease back at once, so that the next worker need not wait for it to run out."""
        cls._held(lease).update(worker="", expires_at=None)

    @classmethod
    def holder(cls, engine_id: str) -> str:
        """The worker that holds a live lease on the engine, or an empty string."""
        live = cls._rows().filter(engine_id=engine_id, expires_at__gte=Now()).exclude(worker="")
        return live.values_list("worker", flat=True).first() or ""

    @classmethod
    def _rows(cls) -> models.QuerySet[EngineLease]:
        """All leases, where they are written: what a replica says of them is of yesterday."""
        return cls.objects.using(router.db_for_write(cls))

    @classmethod
    def _take(cls, lease: models.QuerySet[EngineLease], worker: str, seconds: float) -> bool:
        taken = lease.update(
            token=F("token") + 1, worker=worker, wanted_by="", acquired_at=Now(), expires_at=from_now(seconds)
        )
        return taken > 0

    @classmethod
    def _held(cls, lease: HeldLease) -> models.QuerySet[EngineLease]:
        return cls._rows().filter(engine_id=lease.engine_id, token=lease.token).exclude(worker="")


def _lost(lease: HeldLease) -> LeaseLost:
    return LeaseLost(f"another worker has taken over the engine {lease.engine_id} since tenure {lease.token}")
