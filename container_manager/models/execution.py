"""One attempt at a job."""

from __future__ import annotations

from collections.abc import Iterator

from django.db import models

from container_manager.core.observation import STDERR, STDOUT, LogCursor, LogFrame
from container_manager.core.outcome import ExitReason

_STREAMS = {"stdout": STDOUT, "stderr": STDERR}


class ExecutionMetadata(models.Model):
    """What one attempt was given, what happened to it and what it used. Unknown is null."""

    job = models.ForeignKey(
        "container_manager.ContainerJob", on_delete=models.CASCADE, related_name="executions"
    )
    attempt = models.PositiveIntegerField()
    docker_host = models.ForeignKey(
        "container_manager.ExecutorHost", on_delete=models.PROTECT, related_name="+"
    )
    engine_id = models.CharField(max_length=200, blank=True, default="", db_index=True)
    worker = models.CharField(max_length=200, blank=True, default="")
    container_name = models.CharField(max_length=100)
    container_id = models.CharField(max_length=100, blank=True, default="", db_index=True)
    image_id = models.CharField(max_length=200, blank=True, default="")
    image_digest = models.CharField(max_length=500, blank=True, default="")
    spec_hash = models.CharField(max_length=64, blank=True, default="")

    created_at = models.DateTimeField(auto_now_add=True)  # the intent, before any call to the engine
    started_at = models.DateTimeField(null=True, blank=True)  # by the engine's clock, as is the next
    finished_at = models.DateTimeField(null=True, blank=True)
    recorded_at = models.DateTimeField(null=True, blank=True)  # when the result was stored
    removed_at = models.DateTimeField(null=True, blank=True)  # when the container was removed

    exit_code = models.IntegerField(null=True, blank=True)
    exit_reason = models.CharField(
        max_length=32, blank=True, default="", choices=[(r, r) for r in ExitReason]
    )
    exit_message = models.TextField(blank=True, default="")
    docker_log = models.TextField(blank=True, default="")  # what the engine did and said

    max_memory_usage = models.BigIntegerField(null=True, blank=True)  # bytes
    # The kernel's "peak", "sampled", or the "limit" that it died at.
    memory_source = models.CharField(max_length=16, blank=True, default="")
    cpu_usage_percent = models.FloatField(null=True, blank=True)  # mean, 100 is one core
    usage_samples = models.PositiveIntegerField(default=0)

    stdout_bytes = models.BigIntegerField(default=0)
    stderr_bytes = models.BigIntegerField(default=0)
    # Both streams, with what each frame takes on top. Workers of an older version leave it to the database.
    log_stored_bytes = models.BigIntegerField(default=0, db_default=0)
    log_chunk_count = models.PositiveIntegerField(default=0)
    log_cursor_ns = models.BigIntegerField(null=True, blank=True)
    log_cursor_frames = models.PositiveIntegerField(default=0)
    # The streams whose last line has no end yet, as a sum of their numbers; null: not known.
    log_open_streams = models.PositiveSmallIntegerField(null=True, blank=True)
    logs_complete = models.BooleanField(default=False)  # read to the container's end
    logs_pruned = models.BooleanField(default=False)  # deleted since, by the retention rules
    logs_truncated = models.BooleanField(default=False)  # more was written than LOG_MAX_BYTES

    class Meta:
        ordering = ["job", "attempt"]
        verbose_name = "execution"
        constraints = [models.UniqueConstraint(fields=["job", "attempt"], name="cm_execution_attempt")]

    def __str__(self) -> str:
        return f"attempt {self.attempt} of {self.job_id}"

    @property
    def log_cursor(self) -> LogCursor | None:
        """Where the stored log ends; None while nothing is stored."""
        if self.log_cursor_ns is None:
            return None
        return LogCursor(self.log_cursor_ns, self.log_cursor_frames)

    def iter_frames(self) -> Iterator[LogFrame]:
        """Every stored frame of both streams in order, one chunk in memory at a time."""
        for sequence in range(self.log_chunk_count):
            chunk = self.log_chunks.filter(sequence=sequence).first()
            if chunk is not None:  # retention may have taken it meanwhile
                yield from chunk.frames()

    def iter_log(self, stream: str) -> Iterator[bytes]:
        """The exact bytes of "stdout" or "stderr", piece by piece, in constant memory."""
        if stream not in _STREAMS:
            raise ValueError(f"stream: {stream!r} is not known; use 'stdout' or 'stderr'.")
        wanted = _STREAMS[stream]
        return (frame.payload for frame in self.iter_frames() if frame.stream == wanted)
