"""The worker."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from argparse import ArgumentParser
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import CommandError

from container_manager.conf import out_of_bounds
from container_manager.management.command import JobCommand
from container_manager.management.hosts import chosen_hosts
from container_manager.worker.supervisor import Worker


class Command(JobCommand):
    """`manage.py process_container_jobs`: claim jobs, run them, keep the record."""

    help = "Run container jobs. Runs until it is stopped; containers outlive the worker and are adopted."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The options; each has a default."""
        parser.add_argument(
            "--once", action="store_true", help="run until nothing is pending or active, then exit"
        )
        parser.add_argument(
            "--host",
            action="append",
            default=[],
            metavar="NAME",
            help="serve this host alone; repeatable; default: all active hosts",
        )
        parser.add_argument(
            "--concurrency",
            type=int,
            metavar="N",
            help="jobs at the same time, over all hosts; default: MAX_CONCURRENT_JOBS of the settings",
        )
        parser.add_argument(
            "--poll-interval",
            type=float,
            metavar="SECONDS",
            help="between looks at the database where nothing wakes the worker; default: POLL_INTERVAL",
        )
        parser.add_argument(
            "--drain",
            action="store_true",
            help="at SIGTERM, take no new jobs and wait for those that run, however long it takes; a second "
            "one stops at once",
        )
        parser.add_argument(
            "--log-format",
            choices=["text", "json"],
            default="text",
            help="how the worker's own log looks on stderr; json carries each job's id; default: text",
        )

    def handle(
        self,
        *args: Any,
        once: bool = False,
        host: Sequence[str] = (),
        concurrency: int | None = None,
        poll_interval: float | None = None,
        drain: bool = False,
        log_format: str | None = None,
        **options: Any,
    ) -> None:
        """Work. Called with `once=True` alone it drains the queue in the calling process."""
        chosen_hosts(host)
        if concurrency is not None and (wanted := out_of_bounds("MAX_CONCURRENT_JOBS", concurrency)):
            raise CommandError(f"--concurrency: {concurrency} is not {wanted}.")
        if poll_interval is not None and (wanted := out_of_bounds("POLL_INTERVAL", poll_interval)):
            raise CommandError(f"--poll-interval: {poll_interval} is not {wanted} seconds.")
        if log_format is not None:
            _log_to_stderr(log_format, int(options.get("verbosity", 1)))
        worker = Worker(
            hosts=host, concurrency=concurrency, poll_interval=poll_interval, once=once, drain=drain
        )
        with _Signals(worker):
            left_behind = worker.run()
        if left_behind:
            raise CommandError("some jobs could not be run: " + "; ".join(left_behind))


class _Signals:
    """SIGTERM and SIGINT stop the worker; handlers can only be set in the main thread."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, lambda *_: self._worker.stop())

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the job's context where a record carries it."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        data: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("job_id", "execution_id", "docker_host"):
            if hasattr(record, name):
                data[name] = getattr(record, name)
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        return json.dumps(data)


def _log_to_stderr(log_format: str, verbosity: int) -> None:
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
    handler.setFormatter(JsonFormatter() if log_format == "json" else text)
    root = logging.getLogger("container_manager")
    root.handlers = [handler]
    root.propagate = False
    root.setLevel({0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG))
