"""Programs for jobs that get harmed: what they print tells afterwards what became of them.

The log check is here as well: each start of a program writes `begin` and a number of its own, then numbered
lines, and `end` with their count when it is told to (SIGUSR1), so that a second start, a gap and a
repetition cannot hide.
"""

from __future__ import annotations

import re
from typing import Any

from django.db.models import F

from container_manager.core.outcome import ExitReason
from container_manager.core.states import FINAL
from container_manager.models import ContainerJob, ExecutorHost
from tests.acceptance.running import stored
from tests.engines import BASE_IMAGE

_FINAL = [status.value for status in FINAL]
_BEGIN = re.compile(r"begin [0-9a-f]+", re.MULTILINE)
_LINE = re.compile(r"line (\d+)", re.MULTILINE)
_END = re.compile(r"end (\d+)", re.MULTILINE)

_COUNTING = """
import os, signal, sys, time
every, code = float(sys.argv[1]), int(sys.argv[2])
told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
print("begin", os.urandom(6).hex(), flush=True)
count = 0
while not told:
    count += 1
    print("line", count, flush=True)
    time.sleep(every)
print("end", count, flush=True)
sys.exit(code)
"""


def counting(*, every: float = 0.02, code: int = 0) -> list[str]:
    """A command that prints a numbered line every so many seconds, until SIGUSR1, and exits with `code`."""
    return ["python", "-c", _COUNTING, str(every), str(code)]


def python(program: str, *arguments: str) -> list[str]:
    """The command that runs a program."""
    return ["python", "-c", program, *arguments]


def make(host: ExecutorHost | None, command: str | list[str], **wishes: Any) -> ContainerJob:
    """A waiting job in the base image, on this host or on whichever it is placed."""
    further: dict[str, Any] = {"memory_limit": 64, **wishes}
    if host is not None:
        further["docker_host"] = host
    job: ContainerJob = ContainerJob.objects.create_job(BASE_IMAGE, command, **further)
    return job


def ended(job: ContainerJob) -> tuple[str, str, int | None]:
    """How a job ended, as it is stored."""
    job = stored(job)
    return (job.status, job.exit_reason, job.exit_code)


def ended_once(job: ContainerJob) -> None:
    """Exactly one of the job's events led to a final state, and it is the one that is stored."""
    moves = job.events.exclude(from_status=F("to_status"))  # the others only tell what was found
    finals = list(moves.filter(to_status__in=_FINAL).values_list("transition", "to_status"))
    assert len(finals) == 1, f"{len(finals)} final states in the record of {job}: {finals}"
    assert finals[0][1] == stored(job).status


def not_ended(job: ContainerJob) -> None:
    """Nothing has ended the job yet."""
    finals = list(job.events.filter(to_status__in=_FINAL).values_list("transition", "message"))
    assert not finals, f"{job} was ended by {finals}"


def output(job: ContainerJob) -> str:
    """All that is stored of the job's standard output."""
    return b"".join(stored(job).iter_log("stdout")).decode()


def starts(job: ContainerJob) -> int:
    """How often the program has begun, by its own word."""
    return len(_BEGIN.findall(output(job)))


def lines_are_right(job: ContainerJob) -> None:
    """Lines in order, none twice; none missing, or the record says that it is not complete."""
    text = output(job)
    begun = _BEGIN.findall(text)
    numbers = [int(number) for number in _LINE.findall(text)]
    told = _END.findall(text)
    assert len(begun) == 1, f"{job} was started {len(begun)} times, by its own words: {begun}"
    twice = sorted({number for number in numbers if numbers.count(number) > 1}) if _repeats(numbers) else []
    assert not twice, f"{job}: lines are stored twice: {twice[:20]}"
    assert numbers == sorted(numbers), f"{job}: lines are stored out of order"
    last = int(told[-1]) if told else max(numbers, default=0)
    lost = sorted(set(range(1, last + 1)) - set(numbers))
    execution = stored(job).executions.latest("attempt")
    by_itself = execution.exit_reason in {ExitReason.SUCCESS, ExitReason.APPLICATION_ERROR}
    if lost or (by_itself and not told):  # a program that ends by itself says so
        assert not execution.logs_complete, (
            f"{job}: {len(lost)} of {last} lines are missing (as {lost[:5]}), last words: {told}; "
            "and the record says logs_complete"
        )


def lines_are_whole(job: ContainerJob) -> None:
    """As `lines_are_right`, and nothing is missing and the record says so."""
    lines_are_right(job)
    execution = stored(job).executions.latest("attempt")
    assert execution.logs_complete, f"{job}: the record says that its log is not complete"
    assert _END.search(output(job)), f"{job}: the last words are missing"


def _repeats(numbers: list[int]) -> bool:
    return len(set(numbers)) != len(numbers)
