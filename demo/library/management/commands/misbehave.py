"""End badly, in each of the ways that a job can end: so that the demo has something to show."""

from __future__ import annotations

import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

STEP_MB = 16


class Command(BaseCommand):
    help = "Fails, eats memory, or takes its time."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("how", choices=["fail", "memory", "sleep"])
        parser.add_argument("--seconds", type=float, default=600.0, help="sleep: how long")
        parser.add_argument("--megabytes", type=int, default=1024, help="memory: how much")

    def handle(self, *args: Any, how: str, seconds: float, megabytes: int, **options: Any) -> None:
        if how == "fail":
            self.stdout.write("looking for the supplier's file")
            raise CommandError("the supplier's file is three days old", returncode=3)
        if how == "memory":
            held: list[bytearray] = []
            while len(held) * STEP_MB < megabytes:
                held.append(bytearray(STEP_MB << 20))
                self.stdout.write(f"holding {len(held) * STEP_MB} MB")
                self.stdout.flush()
            raise CommandError(f"{megabytes} MB were there after all")
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.stdout.write(f"{left:.0f} s to go")
            self.stdout.flush()
            time.sleep(min(1.0, left))
