"""Retention by hand."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from container_manager.conf import get_settings, out_of_bounds
from container_manager.management.command import JobCommand
from container_manager.retention import Rules, jobs_over_time, logs_over_time, prune_jobs, prune_logs


class Command(JobCommand):
    """`manage.py prune_container_jobs [--dry-run] [--completed-days N] [--failed-days N] [--log-days N]`."""

    help = (
        "Delete ended jobs, and stored output, whose time is over; in batches, so that workers go on. "
        "Days come from the settings KEEP_COMPLETED_DAYS, KEEP_FAILED_DAYS, KEEP_LOGS_DAYS unless given here."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The options; each has a default."""
        add = parser.add_argument
        add("--completed-days", type=float, metavar="N", help="keep completed jobs for so long; 0: for ever")
        add("--failed-days", type=float, metavar="N", help="failed, timed out and cancelled ones")
        add(
            "--log-days",
            type=float,
            metavar="N",
            help="stored output and engine log; the record stays",
        )
        add("--dry-run", action="store_true", help="only count what would be deleted")

    def handle(self, *args: Any, **options: Any) -> None:
        """Delete until nothing is left to delete, and say how much it was."""
        settings = get_settings()
        rules = Rules(
            completed_days=_days(options, "completed_days", "KEEP_COMPLETED_DAYS"),
            failed_days=_days(options, "failed_days", "KEEP_FAILED_DAYS"),
            log_days=_days(options, "log_days", "KEEP_LOGS_DAYS"),
        )
        if rules.are_off:
            self.stdout.write(
                "Everything is kept for ever: set KEEP_COMPLETED_DAYS or give --completed-days."
            )
            return
        if options.get("dry_run"):
            jobs, logs = jobs_over_time(rules).count(), logs_over_time(rules).count()
            self.stdout.write(f"would delete {jobs} jobs and the output of {logs} attempts")
            return
        jobs = sum(prune_jobs(rules, batch=settings.RETENTION_BATCH))
        logs = sum(prune_logs(rules, batch=settings.RETENTION_BATCH))
        self.stdout.write(f"deleted {jobs} jobs and the output of {logs} attempts")


def _days(options: dict[str, Any], name: str, setting: str) -> float:
    given = options.get(name)
    if given is None:
        return float(getattr(get_settings(), setting))
    if wanted := out_of_bounds(setting, given):
        raise CommandError(f"--{name.replace('_', '-')}: {given:g} is not {wanted} days.")
    return float(given)
