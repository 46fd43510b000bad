"""Stored output, in chunks."""

from __future__ import annotations

from collections.abc import Iterator

from django.db import models

from container_manager.core.logframes import decode
from container_manager.core.observation import LogFrame


class LogChunk(models.Model):
    """A run of log frames of one attempt, in the form of `core.logframes`; both streams in one order."""

    execution = models.ForeignKey(
        "container_manager.ExecutionMetadata", on_delete=models.CASCADE, related_name="log_chunks"
    )
    sequence = models.PositiveIntegerField()
    data = models.BinaryField()
    last_timestamp_ns = models.BigIntegerField()  # the newest in the log up to here

    class Meta:
        ordering = ["execution", "sequence"]
        verbose_name = "log chunk"
        constraints = [
            models.UniqueConstraint(fields=["execution", "sequence"], name="cm_log_chunk_sequence")
        ]

    def __str__(self) -> str:
        return f"chunk {self.sequence} of attempt {self.execution_id}"

    def frames(self) -> Iterator[LogFrame]:
        """The frames of this chunk."""
        return decode(bytes(self.data))
