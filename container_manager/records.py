"""What an attempt leaves: its figures, its output and its place in the log, as rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from django.db import router

from container_manager.core.observation import LogCursor
from container_manager.core.outcome import Outcome
from container_manager.models import ExecutionMetadata, LogChunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an attempt used. Unknown is None."""

    max_memory_bytes: int | None = None
    memory_source: str = ""
    cpu_percent: float | None = None
    samples: int = 0


class Chunk(NamedTuple):
    """A run of encoded frames, as in a `LogChunk` row."""

    sequence: int
    data: bytes
    last_timestamp_ns: int  # the newest in the log up to here; the two streams' times may cross


@dataclass(frozen=True, slots=True, kw_only=True)
class LogState:
    """Where the stored log of an attempt stands, and how the job's own columns show it."""

    chunk_count: int
    cursor: LogCursor | None
    stdout_bytes: int
    stderr_bytes: int
    complete: bool
    truncated: bool
    stored_bytes: int = 0  # both streams, with what each frame takes on top
    open_streams: int | None = None  # whose last line has no end yet, as a sum; None: not known
    stdout_text: str | None = None  # None: the column stays as it is
    stderr_text: str | None = None

    @classmethod
    def empty(cls) -> LogState:
        """Of a program that never ran."""
        return cls(
            chunk_count=0, cursor=None, stdout_bytes=0, stderr_bytes=0, complete=False, truncated=False
        )


#: How many chunks are asked for at once; a full one has 256 KiB.
_MOST_AT_ONCE = 32

LOG_FIELDS = [
    "log_chunk_count",
    "log_cursor_ns",
    "log_cursor_frames",
    "stdout_bytes",
    "stderr_bytes",
    "log_stored_bytes",
    "log_open_streams",
    "logs_complete",
    "logs_truncated",
]


def store_attempt(
    execution: ExecutionMetadata,
    outcome: Outcome,
    started_at: datetime | None,
    finished_at: datetime | None,
    now: datetime,
    usage: Usage,
    logs: LogState,
) -> None:
    """Write how an attempt ended, and where its log stands then."""
    execution.started_at, execution.finished_at, execution.recorded_at = started_at, finished_at, now
    execution.exit_code, execution.exit_reason = outcome.exit_code, outcome.reason.value
    execution.exit_message = outcome.message
    execution.max_memory_usage, execution.memory_source = usage.max_memory_bytes, usage.memory_source
    execution.cpu_usage_percent, execution.usage_samples = usage.cpu_percent, usage.samples
    apply_logs(execution, logs)
    execution.save()


def store_chunks(execution: ExecutionMetadata, chunks: Sequence[Chunk]) -> None:
    """Append output; what is stored already stays as it is."""
    if chunks:
        LogChunk.objects.bulk_create(
            [
                LogChunk(
                    execution=execution,
                    sequence=chunk.sequence,
                    data=chunk.data,
                    last_timestamp_ns=chunk.last_timestamp_ns,
                )
                for chunk in chunks
            ],
            ignore_conflicts=True,  # a commit whose answer was lost is repeated
        )


def apply_logs(execution: ExecutionMetadata, logs: LogState) -> None:
    """Put the log's state on an instance; the caller saves it."""
    execution.log_chunk_count = logs.chunk_count
    if logs.cursor is not None:
        execution.log_cursor_ns, execution.log_cursor_frames = logs.cursor
    execution.stdout_bytes, execution.stderr_bytes = logs.stdout_bytes, logs.stderr_bytes
    execution.log_stored_bytes, execution.log_open_streams = logs.stored_bytes, logs.open_streams
    execution.logs_complete, execution.logs_truncated = logs.complete, logs.truncated


def stored_state(execution: ExecutionMetadata) -> LogState:
    """What `apply_logs` has put there."""
    return LogState(
        chunk_count=execution.log_chunk_count,
        cursor=execution.log_cursor,
        stdout_bytes=execution.stdout_bytes,
        stderr_bytes=execution.stderr_bytes,
        complete=execution.logs_complete,
        truncated=execution.logs_truncated,
        stored_bytes=execution.log_stored_bytes,
        open_streams=execution.log_open_streams,
    )


def stored_chunks(execution: ExecutionMetadata, *, backwards: bool = False) -> Iterator[Chunk]:
    """The stored log from its start, or its end, as far as it is read.

    A job that writes a line now and then has small chunks, one that floods has full ones: the first is
    asked for alone, then twice as many each time, up to a few megabytes.
    """
    alias = router.db_for_write(LogChunk)  # a replica may lack the newest
    count, done, at_once = execution.log_chunk_count, 0, 1
    while done < count:
        low, high = done, min(done + at_once, count)
        if backwards:
            low, high = count - high, count - low
        rows = execution.log_chunks.using(alias).filter(sequence__gte=low, sequence__lt=high)
        for row in rows.order_by("-sequence" if backwards else "sequence"):
            yield Chunk(row.sequence, bytes(row.data), row.last_timestamp_ns)
        done += at_once
        at_once = min(2 * at_once, _MOST_AT_ONCE)


def log_columns(logs: LogState) -> dict[str, str]:
    """The job's own log columns, as far as they changed."""
    texts = {"stdout_log": logs.stdout_text, "stderr_log": logs.stderr_text}
    return {name: text for name, text in texts.items() if text is not None}


def job_record(execution: ExecutionMetadata, docker_log: str, logs: LogState) -> dict[str, Any]:
    """What an attempt leaves on the job's own row, whatever the job's status is by now."""
    return {
        "max_memory_usage": execution.max_memory_usage,
        "cpu_usage_percent": execution.cpu_usage_percent,
        "docker_log": docker_log,
        **log_columns(logs),
    }
