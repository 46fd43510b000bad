"""What an attempt leaves: its figures, its output and its place in the log, as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

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
    """A run of encoded frames on its way to a `LogChunk` row."""

    sequence: int
    data: bytes
    last_timestamp_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogState:
    """Where the stored log of an attempt stands, and how the job's own columns show it."""

    chunk_count: int
    cursor: LogCursor | None
    stdout_bytes: int
    stderr_bytes: int
    complete: bool
    truncated: bool
    stdout_text: str | None = None  # None: the column stays as it is
    stderr_text: str | None = None


LOG_FIELDS = [
    "log_chunk_count",
    "log_cursor_ns",
    "log_cursor_frames",
    "stdout_bytes",
    "stderr_bytes",
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
    execution.logs_complete, execution.logs_truncated = logs.complete, logs.truncated


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
