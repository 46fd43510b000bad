"""A fork server: Django is loaded once, and each worker is a fork that dies by its own seed.

    python -m tests.fault.forks '{"seed": "7", "workers": 2, ...}'

It keeps that many workers alive. For each that ended it prints a line of JSON; when its standard input is
closed it ends those that are left, and itself.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import selectors
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.fault import build
from tests.fault.killing import POINTS, Orders


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the server keeps doing."""

    seed: str
    workers: int
    most: int  # crossings until death, at most
    folder: str  # the logs of workers that did not die as planned stay there
    moments: float = 0.0  # share of the workers that are killed at a moment, from outside
    moment_seconds: float = 3.0  # the latest of these moments
    host: str = ""  # serve this one alone
    #: Let the lease of a worker that is dead run out at once, as if its time had passed.

    def to_json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


@dataclass(slots=True)
class _Worker:
    number: int
    pid: int
    pidfd: int
    log: Path
    dies_at: float | None


class Server:
    """Forks, waits and reports."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._living: dict[int, _Worker] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        self._number = 0

    def run(self) -> None:
        """Until standard input is closed."""
        while True:
            while len(self._living) < self._plan.workers:
                self._fork()
            now = time.monotonic()
            moments = [worker.dies_at for worker in self._living.values() if worker.dies_at is not None]
            events = self._selector.select(max(0.0, min(moments) - now) if moments else None)
            for key, _ in events:
                if key.data is None:
                    if not sys.stdin.readline():
                        self._end()
                        return
                else:
                    self._reap(self._living[key.data])
            self._kill_whose_moment_has_come()

    def _fork(self) -> None:
        from django.db import connections

        self._number += 1
        dice = random.Random(f"{self._plan.seed}:{self._number}")
        at_a_moment = dice.random() < self._plan.moments
        orders = Orders() if at_a_moment else Orders.drawn(dice, self._plan.most)
        log = Path(self._plan.folder) / f"worker-{self._number}.log"
        log.touch()  # a worker may be killed before it does anything
        connections.close_all()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            self._work(orders, log)
        moment = time.monotonic() + dice.uniform(0, self._plan.moment_seconds) if at_a_moment else None
        worker = _Worker(self._number, pid, os.pidfd_open(pid), log, moment)
        self._living[pid] = worker
        self._selector.register(worker.pidfd, selectors.EVENT_READ, pid)

    def _work(self, orders: Orders, log: Path) -> None:
        """The forked process: never returns."""
        from container_manager.management.commands.process_container_jobs import Command

        code = 1
        try:
            for descriptor in [worker.pidfd for worker in self._living.values()]:
                os.close(descriptor)
            os.close(0)
            os.dup2(2, 1)
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
            sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            faulthandler.register(signal.SIGUSR1)  # where is it, if it does nothing?
            POINTS.arm(orders)
            Command().handle(host=[self._plan.host] if self._plan.host else [], log_format="text")
            code = 0
        except BaseException:  # noqa: BLE001 - told by the log, and by the exit code
            traceback.print_exc()
        finally:
            os._exit(code)

    def _reap(self, worker: _Worker) -> None:
        _, status = os.waitpid(worker.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._selector.unregister(worker.pidfd)
        os.close(worker.pidfd)
        del self._living[worker.pid]
        log = worker.log.read_text(errors="replace")
        where = log.rpartition("killed at ")[2].strip() if "killed at " in log else "a moment"
        odd = code != -signal.SIGKILL or "Traceback" in log
        self._say(number=worker.number, code=code, where=where, log=log[-8000:] if odd else "")
        if not odd:
            worker.log.unlink()

    def _kill_whose_moment_has_come(self) -> None:
        now = time.monotonic()
        for worker in self._living.values():
            if worker.dies_at is not None and worker.dies_at <= now:
                worker.dies_at = None
                os.kill(worker.pid, signal.SIGKILL)

    def _end(self) -> None:
        for worker in list(self._living.values()):
            os.kill(worker.pid, signal.SIGKILL)
            self._reap(worker)

    def _say(self, **facts: Any) -> None:
        print(json.dumps(facts), flush=True)


def main() -> None:
    """The command line."""
    build.prepare()
    # What a worker imports late, it would import anew in each fork.
    import tests.fault.remote  # noqa: F401

    Server(Plan(**json.loads(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
