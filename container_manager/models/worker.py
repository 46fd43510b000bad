"""Workers, as they register themselves."""

from __future__ import annotations

import os
import socket
import uuid

from django.db import models

import container_manager
from container_manager.identity import ProcessIdentity
from container_manager.models.clock import Now


class RegisteredWorker(models.Model):
    """One worker process. All times are the database's.

    The four fields of its process let another worker on the same machine prove that it is gone; unknown ones
    are empty or 0.
    """

    name = models.CharField(max_length=200, primary_key=True)
    hostname = models.CharField(max_length=255, blank=True, default="")
    version = models.CharField(max_length=50, blank=True, default="")
    boot_id = models.CharField(max_length=64, blank=True, default="")
    pid_namespace = models.CharField(max_length=64, blank=True, default="")
    pid = models.BigIntegerField(default=0)
    start_ticks = models.BigIntegerField(default=0)
    slots = models.PositiveIntegerField(default=0)  # jobs at the same time
    started_at = models.DateTimeField(db_default=Now())
    heartbeat_at = models.DateTimeField(db_default=Now(), db_index=True)
    stopped_at = models.DateTimeField(null=True, blank=True)  # null: it runs, or died without a word

    class Meta:
        ordering = ["-started_at"]
        verbose_name = "worker"

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def new_name(purpose: str) -> str:
        """A name that no process has had: what it is for, where it runs, its id, and a piece of chance."""
        return f"{purpose}:{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"

    @classmethod
    def register(cls, name: str, *, slots: int) -> None:
        """Enter this process under a name of its own."""
        me = ProcessIdentity.current()
        cls.objects.create(
            name=name,
            hostname=me.hostname,
            version=container_manager.__version__,
            boot_id=me.boot_id,
            pid_namespace=me.pid_namespace,
            pid=me.pid,
            start_ticks=me.start_ticks,
            slots=slots,
        )

    @classmethod
    def identity_of(cls, name: str) -> ProcessIdentity:
        """The process behind a name; an unknown one where nobody registered it."""
        row = cls.objects.filter(pk=name).first()
        if row is None:
            return ProcessIdentity()
        return ProcessIdentity(
            hostname=row.hostname,
            boot_id=row.boot_id,
            pid_namespace=row.pid_namespace,
            pid=row.pid,
            start_ticks=row.start_ticks,
        )

    @classmethod
    def beat(cls, name: str) -> None:
        """The worker lives."""
        cls.objects.filter(pk=name).update(heartbeat_at=Now())

    @classmethod
    def leave(cls, name: str) -> None:
        """The worker has stopped in good order."""
        cls.objects.filter(pk=name).update(stopped_at=Now(), heartbeat_at=Now())
