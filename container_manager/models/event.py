"""The append-only history of jobs."""

from __future__ import annotations

from django.db import models
from django.utils import timezone

from container_manager.core.outcome import ExitReason


class JobEvent(models.Model):
    """One transition of one job, written in the same transaction, with who or what caused it."""

    job = models.ForeignKey("container_manager.ContainerJob", on_delete=models.CASCADE, related_name="events")
    attempt = models.PositiveIntegerField(default=0)
    at = models.DateTimeField(default=timezone.now)
    transition = models.CharField(max_length=32)  # a Transition, or "create", "cancel_requested", "adopt"
    from_status = models.CharField(max_length=16, blank=True, default="")
    to_status = models.CharField(max_length=16)
    actor = models.CharField(max_length=200, blank=True, default="")  # "worker:...", "user:...", "code"
    reason = models.CharField(max_length=32, blank=True, default="", choices=[(r, r) for r in ExitReason])
    message = models.TextField(blank=True, default="")

    class Meta:
        ordering = ["id"]
        verbose_name = "job event"
        indexes = [models.Index(fields=["job", "id"], name="cm_event_job")]

    def __str__(self) -> str:
        return f"{self.transition}: {self.from_status or '-'} -> {self.to_status}"
