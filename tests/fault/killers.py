"""The pytest end of a fork server: starts it, hears what died and where, and ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fault.forks import Plan


def seed(default: str) -> str:
    """The seed of this run: `CM_SEED`, or a new one each time; it is printed with the results."""
    return os.environ.get("CM_SEED") or f"{default}-{time.time_ns() % 1_000_000}"


class Killer:
    """A running fork server."""

    def __init__(self, plan: Plan, environment: dict[str, str]) -> None:
        self.plan = plan
        self.dead = 0
        self.places: Counter[str] = Counter()
        self.odd: list[str] = []  # workers that ended otherwise, or said something about a bug before
        command = [sys.executable, "-m", "tests.fault.forks", plan.to_json()]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told: dict[str, Any] = json.loads(line)
            self.dead += 1
            self.places[told["where"].partition(":")[0] if told["code"] == -9 else "ended otherwise"] += 1
            if told["log"]:
                self.odd.append(
                    f"worker {told['number']} of seed {self.plan.seed} ended with {told['code']} at "
                    f"{told['where']}:\n{told['log']}"
                )

    def close(self) -> None:
        """End it and its workers."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
        self._reader.join(10)


@contextmanager
def killing(plan: Plan, environment: dict[str, str]) -> Iterator[Killer]:
    """A fork server for the length of the block."""
    Path(plan.folder).mkdir(exist_ok=True)
    killer = Killer(plan, environment)
    try:
        yield killer
    finally:
        killer.close()
