"""Leases: one worker watches one engine, and a worker that lost its lease can write nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple

from django.db import models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import ExpressionWrapper, F, Q, functions
from django.db.models.expressions import CombinedExpression
from django.db.models.sql.compiler import SQLCompiler

from container_manager.core.errors import LeaseLost


class HeldLease(NamedTuple):
    """What the holder of a lease keeps: the engine, and the fencing token of this tenure."""

    engine_id: str
    token: int


class Now(functions.Now):
    """The database's clock, in UTC on every database.

    Django's own gives on MySQL and MariaDB the local time of the server. Who reads a lease would see times
    that are hours off, and with each change to or from summer time all leases would run out at once, or last
    an hour longer.
    """

    def as_mysql(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any
    ) -> tuple[str, Any]:
        """Not CURRENT_TIMESTAMP, which follows the session's zone."""
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)", **context)


class EngineLease(models.Model):
    """The right to act on one engine, known by its own id and not by an address.

    All times are the database's. The token grows with every tenure and never repeats for an engine.
    """

    engine_id = models.CharField(max_length=200, primary_key=True)
    token = models.BigIntegerField(default=0)
    worker = models.CharField(max_length=200, blank=True, default="")
    acquired_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.engine_id} held by {self.worker or 'nobody'}"

    @classmethod
    def acquire(cls, engine_id: str, worker: str, seconds: float) -> HeldLease | None:
        """Take the lease if it is free or has run out; None while another worker holds it."""
        cls.objects.get_or_create(engine_id=engine_id)
        free = Q(expires_at__isnull=True) | Q(expires_at__lt=Now()) | Q(worker="")
        with transaction.atomic():
            taken = cls.objects.filter(free, engine_id=engine_id).update(
                token=F("token") + 1, worker=worker, acquired_at=Now(), expires_at=_in(seconds)
            )
            if not taken:
                return None
            return HeldLease(engine_id, cls.objects.values_list("token", flat=True).get(engine_id=engine_id))

    @classmethod
    def renew(cls, lease: HeldLease, seconds: float) -> None:
        """Prolong a tenure. Raises LeaseLost when another one has begun."""
        if not cls._held(lease).update(expires_at=_in(seconds)):
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
    def release(cls, lease: HeldLease) -> None:
        """Give the lease back at once, so that the next worker need not wait for it to run out."""
        cls._held(lease).update(worker="", expires_at=None)

    @classmethod
    def holder(cls, engine_id: str) -> str:
        """The worker that holds a live lease on the engine, or an empty string."""
        live = cls.objects.filter(engine_id=engine_id, expires_at__gte=Now()).exclude(worker="")
        return live.values_list("worker", flat=True).first() or ""

    @classmethod
    def _held(cls, lease: HeldLease) -> models.QuerySet[EngineLease]:
        return cls.objects.filter(engine_id=lease.engine_id, token=lease.token).exclude(worker="")


def _in(seconds: float) -> ExpressionWrapper[CombinedExpression]:
    return ExpressionWrapper(Now() + timedelta(seconds=seconds), output_field=models.DateTimeField())


def _lost(lease: HeldLease) -> LeaseLost:
    return LeaseLost(f"another worker has taken over the engine {lease.engine_id} since tenure {lease.token}")
