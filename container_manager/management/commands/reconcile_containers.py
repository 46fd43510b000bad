"""Containers on the hosts against the database, by hand."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from django.core.management.base import CommandError

from container_manager.conf import get_settings
from container_manager.core.errors import ConfigurationError, HostFault
from container_manager.core.reconcile import Verdict
from container_manager.executors.registry import open_executor
from container_manager.management.command import JobCommand
from container_manager.management.hosts import chosen_hosts
from container_manager.models import ExecutorHost
from container_manager.worker.strays import Stray, Survey, remove_useless, survey


class Command(JobCommand):
    """`manage.py reconcile_containers [--host NAME] [--apply] [--json]`."""

    help = (
        "Show what is on the hosts and what becomes of it: adopt, finish, keep or remove. Nothing is changed "
        "without --apply. A running worker does the same by itself, all the time."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The options; each has a default."""
        parser.add_argument(
            "--host", action="append", default=[], metavar="NAME", help="look at this host alone; repeatable"
        )
        parser.add_argument(
            "--apply",
            action="store_true",
            help="remove what is useless, where no worker serves the host; at most RECONCILE_LIMIT",
        )
        parser.add_argument(
            "--json", action="store_true", help="one JSON object a line, which says whether it was removed"
        )

    def handle(self, *args: Any, host: Sequence[str] = (), **options: Any) -> None:
        """Look at each host; one that does not answer is an error at the end, after all others."""
        failures = []
        for row in chosen_hosts(host):
            try:
                self._host(row, apply=bool(options.get("apply")), as_json=bool(options.get("json")))
            except (HostFault, ConfigurationError) as error:
                failures.append(f"{row.name}: {error}")
        if failures:
            raise CommandError("; ".join(failures))

    def _host(self, row: ExecutorHost, *, apply: bool, as_json: bool) -> None:
        settings = get_settings()
        executor = open_executor(row.executor_type, row.as_config())
        try:
            found = survey(row, executor, settings)
            if not as_json:
                self._show(row, found)
            removed: list[Stray] | None = []
            try:
                if apply and found.useless:
                    removed = remove_useless(found, executor, settings)
            except HostFault:
                if as_json:  # some of these may be gone; nobody knows which
                    self._print(row, found, dict.fromkeys(_ids(found.useless[: settings.RECONCILE_LIMIT])))
                raise
        finally:
            executor.close()
        if as_json:
            self._print(row, found, dict.fromkeys(_ids(removed or ()), True))
        elif apply and found.useless:
            self._say_what_was_done(found, removed)

    def _print(self, row: ExecutorHost, found: Survey, removed: Mapping[str, bool | None]) -> None:
        for container_id, line in _lines(row, found):
            self.stdout.write(json.dumps({**line, "removed": removed.get(container_id, False)}))

    def _show(self, row: ExecutorHost, found: Survey) -> None:
        served = f"served by {found.holder}" if found.holder else "no worker serves it"
        count = len(found.containers)
        self.stdout.write(f"{row.name}: {count} container{'' if count == 1 else 's'} of ours; {served}")
        for _, line in _lines(row, found):
            self.stdout.write(f"  {line['verdict']:<7} {line['container']}  {line['state']}")
            self.stdout.write(f"          {line['why']}")

    def _say_what_was_done(self, found: Survey, removed: Sequence[object] | None) -> None:
        if removed is None:
            self.stdout.write(f"  nothing removed here: the worker {found.holder or 'that came'} does it")
            return
        left = len(found.useless) - len(removed)
        rest = f"; {left} left for the next pass (RECONCILE_LIMIT)" if left else ""
        self.stdout.write(f"  removed {len(removed)}{rest}")


def _ids(strays: Iterable[Stray]) -> list[str]:
    return [stray.container.container_id for stray in strays]


def _lines(row: ExecutorHost, found: Survey) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each container's id, where it has one, and what is said of it."""
    for stray in found.containers:
        verdict, why = stray.judgement.verdict.value, stray.judgement.why
        if stray.judgement.verdict is Verdict.ADOPT and found.holder:
            verdict, why = Verdict.KEEP.value, f"its job is active; {found.holder} follows it"
        yield (
            stray.container.container_id,
            {
                "host": row.name,
                "verdict": verdict,
                "container": stray.container.name,
                "state": stray.container.state.value,
                "job": stray.job_id,
                "attempt": stray.attempt,
                "why": why,
            },
        )
    for job in found.missing:
        # A worker creates a container after it has claimed the job, and stores its end after it is gone.
        verdict, why = "finish", "a worker gives the job back or ends it"
        if found.holder:
            verdict, why = Verdict.KEEP.value, "its worker is launching or ending it"
        yield (
            "",
            {
                "host": row.name,
                "verdict": verdict,
                "container": job.container_name,
                "state": "not-found",
                "job": str(job.pk),
                "attempt": job.attempt,
                "why": f"its job is {job.status} and it is not there; {why}",
            },
        )
