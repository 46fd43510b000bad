"""After each case: what the database says, what the engine holds and what really ran must agree."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker

from container_manager.core.observation import STDERR, STDOUT
from container_manager.core.outcome import ExitReason
from container_manager.core.spec import LABEL_INSTALLATION
from container_manager.core.states import FINAL, MOVES, Status, Transition
from container_manager.models import ContainerJob, ExecutionMetadata, Installation, JobEvent, LogChunk

WHOLE_COLUMN = 100_000  # characters: a column that is longer may leave out its middle
REPORTED = 5  # jobs that a failure tells everything about
_FINAL = {status.value for status in FINAL}
_NOT_MOVES = {"adopt", "cancel_requested", "container_removed", "started_again"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a job would write if it ran to its end, and how it may end."""

    stdout: Sequence[bytes] = ()
    stderr: Sequence[bytes] = ()
    statuses: frozenset[str] = frozenset({"completed"})
    exit_code: int | None = 0  # of a job that ran to its end


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the engine and the programs themselves say. Keys are container names."""

    starts: Mapping[str, int]
    containers: Mapping[str, str]  # name -> the engine's word for its state
    most_at_once: int | None = None
    slots: int | None = None
    context: str = ""  # how to repeat the case: seeds


@dataclass(slots=True)
class _Case:
    """Everything about one job."""

    job: ContainerJob
    expected: Expected
    events: list[JobEvent] = field(default_factory=list)
    executions: list[ExecutionMetadata] = field(default_factory=list)
    chunks: dict[int, list[LogChunk]] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def must(self, holds: bool, finding: str) -> None:
        if not holds:
            self.findings.append(finding)


@dataclass(slots=True)
class Report:
    """What was looked at, and what is wrong with it."""

    jobs: int
    by_status: Counter[str]
    starts: int
    attempts: int
    incomplete_logs: int
    findings: list[str]
    kinds: Counter[str]

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {status}" for status, count in sorted(self.by_status.items()))
        return (
            f"{self.jobs} jobs ({ends}), {self.attempts} attempts, {self.starts} starts, "
            f"{self.incomplete_logs} logs marked incomplete"
        )


def check(expected: Mapping[Any, Expected], evidence: Evidence) -> Report:
    """Raise AssertionError with everything about the first few jobs that broke a law."""
    report = examine(expected, evidence)
    if report.findings:
        more = len(report.findings) - REPORTED
        shown = report.findings[:REPORTED] + ([f"... and {more} more"] if more > 0 else [])
        kinds = "\n".join(f"{count} x {kind}" for kind, count in report.kinds.most_common())
        raise AssertionError("\n\n".join([evidence.context, str(report), kinds, *shown]))
    return report


def examine(expected: Mapping[Any, Expected], evidence: Evidence) -> Report:
    """Look at every job. One finding is one text about one job, or about the engine."""
    cases = _load(expected, evidence)
    findings = _of_the_engine(cases, evidence)
    kinds: Counter[str] = Counter()
    incomplete = 0
    for case in cases:
        _chain(case)
        _attempts(case)
        if case.job.status in _FINAL:
            _end(case)
            incomplete += _logs(case)
        if case.findings:
            findings.append(describe(case))
            kinds.update(re.sub(r"\d+", "N", finding) for finding in case.findings)
    return Report(
        jobs=len(cases),
        by_status=Counter(case.job.status for case in cases),
        starts=sum(sum(case.starts.values()) for case in cases),
        attempts=sum(len(case.executions) for case in cases),
        incomplete_logs=incomplete,
        findings=findings,
        kinds=kinds,
    )


def _load(expected: Mapping[Any, Expected], evidence: Evidence) -> list[_Case]:
    jobs = {job.pk: job for job in ContainerJob.objects.all() if job.pk in expected}
    cases = {pk: _Case(job=jobs[pk], expected=wish) for pk, wish in expected.items() if pk in jobs}
    assert len(cases) == len(expected), f"jobs vanished: {sorted(set(expected) - set(cases))}"
    for event in JobEvent.objects.order_by("id"):
        if event.job_id in cases:
            cases[event.job_id].events.append(event)
    chunks = defaultdict(list)
    for chunk in LogChunk.objects.order_by("execution", "sequence"):
        chunks[chunk.execution_id].append(chunk)
    for execution in ExecutionMetadata.objects.order_by("job", "attempt"):
        case = cases.get(execution.job_id)
        if case is not None:
            case.executions.append(execution)
            case.chunks[execution.pk] = chunks[execution.pk]
            case.starts[execution.container_name] = evidence.starts.get(execution.container_name, 0)
    return list(cases.values())


# -------------------------------------------------------------------------------------- the laws


def _of_the_engine(cases: Iterable[_Case], evidence: Evidence) -> list[str]:
    findings = []
    names = {name for case in cases for name in case.starts}
    unknown = set(evidence.starts) - names
    if unknown:
        findings.append(f"programs ran that no attempt knows: {sorted(unknown)}")
    active = {
        case.job.container_name for case in cases if case.job.status in (Status.LAUNCHING, Status.RUNNING)
    }
    stray = {name: state for name, state in evidence.containers.items() if name not in active}
    if stray:
        about = [describe(case) for case in cases if stray.keys() & case.starts.keys()][:REPORTED]
        findings.append("\n".join([f"containers without a live attempt: {stray}", *about]))
    slots, most = evidence.slots, evidence.most_at_once
    if slots is not None and most is not None and most > slots:
        findings.append(f"{most} containers ran at the same time in {slots} slots")
    return findings


def slots_agree(evidence: Evidence) -> bool:
    """Whether what runs on the engine is what the database says is running."""
    running = {name for name, state in evidence.containers.items() if state == "running"}
    return running == {job.container_name for job in ContainerJob.objects.filter(status=Status.RUNNING)}


def _chain(case: _Case) -> None:
    """The events are a legal walk from the creation to exactly one end, which is what the row says."""
    status = ""
    finals = 0
    for event in case.events:
        finals += event.to_status in _FINAL and event.transition not in _NOT_MOVES
        case.must(event.from_status == status, f"event {event.pk}: {event} does not follow {status!r}")
        if event.transition == "create":
            case.must(status == "", "the job was created twice")
        elif event.transition in _NOT_MOVES:
            case.must(event.to_status == status, f"event {event.pk}: {event} moves the job")
        else:
            move = MOVES[Transition(event.transition)]
            case.must(
                status in {*move.sources} and event.to_status in {*move.targets},
                f"event {event.pk}: {event} is no legal move",
            )
        status = event.to_status
    case.must(finals == 1, f"{finals} final transitions instead of one")
    case.must(status == case.job.status, f"the events end at {status!r}, the row says {case.job.status!r}")
    case.must(case.job.status in _FINAL, "the job has not ended")


def _attempts(case: _Case) -> None:
    """No attempt starts twice, and one that was given back never started."""
    numbers = [execution.attempt for execution in case.executions]
    case.must(numbers == list(range(1, case.job.attempt + 1)), f"attempts {numbers}, at {case.job.attempt}")
    claims = sum(event.transition == Transition.CLAIM for event in case.events)
    case.must(claims == len(numbers), f"{claims} claims, {len(numbers)} attempts")
    retried = {event.attempt for event in case.events if event.transition == Transition.RETRY}
    for execution in case.executions:
        starts = case.starts[execution.container_name]
        case.must(starts <= 1, f"attempt {execution.attempt} really started {starts} times")
        superseded = execution.attempt < case.job.attempt and execution.attempt not in retried
        case.must(
            not (superseded and starts), f"attempt {execution.attempt} really started and was given back"
        )


def _end(case: _Case) -> None:
    job, expected = case.job, case.expected
    case.must(
        job.status in expected.statuses, f"ended as {job.status!r}, expected {sorted(expected.statuses)}"
    )
    last = case.executions[-1] if case.executions else None
    if job.status == Status.COMPLETED:
        ran = last is not None and case.starts[last.container_name] == 1
        case.must(ran, "completed, and its last attempt never started")
    if job.exit_reason in (ExitReason.SUCCESS, ExitReason.APPLICATION_ERROR):
        case.must(job.exit_code == expected.exit_code, f"exit code {job.exit_code}, not {expected.exit_code}")
    if last is not None and last.exit_reason:
        case.must(
            job.status == Status.CANCELLED or last.exit_reason == job.exit_reason,
            f"the attempt says {last.exit_reason!r}, the job {job.exit_reason!r}",
        )
    case.must(job.completed_at is not None, "ended without a time")
    if job.started_at is not None and job.completed_at is not None:
        case.must(job.started_at <= job.completed_at, "ended before it began")


def _logs(case: _Case) -> bool:
    """Every line once and in order. Returns whether the log of an attempt that ran says it is incomplete."""
    incomplete = False
    for execution in case.executions:
        chunks = case.chunks[execution.pk]
        numbers = [chunk.sequence for chunk in chunks]
        case.must(
            numbers == list(range(execution.log_chunk_count)),
            f"chunks {numbers}, of {execution.log_chunk_count}",
        )
        frames = [frame for chunk in chunks for frame in chunk.frames()]
        ran = case.starts[execution.container_name] > 0
        case.must(ran or not frames, f"attempt {execution.attempt} wrote and never started")
        if not ran:
            continue
        incomplete |= not execution.logs_complete
        for stream, name, wanted in (
            (STDOUT, "stdout", case.expected.stdout),
            (STDERR, "stderr", case.expected.stderr),
        ):
            data = b"".join(frame.payload for frame in frames if frame.stream == stream)
            _stream(case, execution, name, data, list(wanted))
            stored = getattr(execution, f"{name}_bytes")
            case.must(stored == len(data), f"{name}: {len(data)} bytes stored, {stored} counted")
        if execution is case.executions[-1] and len(case.job.stdout_log) < WHOLE_COLUMN:
            data = b"".join(frame.payload for frame in frames if frame.stream == STDOUT)
            case.must(case.job.clean_output.encode() == data, "the stdout column is not what was stored")
    return incomplete


def _stream(case: _Case, execution: ExecutionMetadata, name: str, data: bytes, wanted: list[bytes]) -> None:
    lines = data.splitlines(keepends=True)
    to_its_end = execution.exit_reason in (ExitReason.SUCCESS, ExitReason.APPLICATION_ERROR)
    if execution.logs_complete and to_its_end:
        holds = lines == wanted
    elif execution.logs_complete:
        holds = lines == wanted[: len(lines)]
    else:
        left = iter(wanted)
        holds = all(line in left for line in lines)  # in order, none twice
    if not holds:
        place = next(
            (n for n, (got, want) in enumerate(zip(lines, wanted, strict=False)) if got != want), len(lines)
        )
        got, want = lines[place : place + 3], wanted[place : place + 3]
        case.findings.append(
            f"{name} of attempt {execution.attempt} (complete: {execution.logs_complete}): "
            f"{len(lines)} lines of {len(wanted)}; at line {place} there is {got}, not {want}"
        )


# ------------------------------------------------------------------------------------ as a bug report


def describe(case: _Case) -> str:
    """One job, with all that a person needs to understand what went wrong."""
    job = case.job
    lines = [
        f"JOB {job.pk}: {'; '.join(case.findings) or 'see above'}",
        f"  {job.status} ({job.exit_reason}), exit code {job.exit_code}: {job.exit_message}",
        f"  command: {job.command}",
    ]
    lines += [
        f"  attempt {execution.attempt} by {execution.worker}: {execution.exit_reason or '-'} "
        f"{execution.exit_message} started_at={execution.started_at} finished_at={execution.finished_at} "
        f"starts={case.starts[execution.container_name]} chunks={execution.log_chunk_count} "
        f"complete={execution.logs_complete}"
        for execution in case.executions
    ]
    lines += [
        f"  event {event.pk} {event.at:%H:%M:%S.%f} attempt {event.attempt} {event} by {event.actor} "
        f"{event.reason} {event.message}"
        for event in case.events
    ]
    lines += [f"  engine: {line}" for line in job.docker_log.splitlines()]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------ a real engine


def real_starts(markers: Path) -> Counter[str]:
    """How often the program of each container really began, by the files that it left."""
    return Counter(path.name.partition(".")[0] for path in markers.iterdir())


def real_containers(client: docker.DockerClient) -> dict[str, str]:
    """Our containers on the engine, by name, with their states."""
    label = f"{LABEL_INSTALLATION}={Installation.current()}"
    answer = client.api.containers(all=True, filters={"label": label})
    return {str(found["Names"][0]).removeprefix("/"): str(found["State"]) for found in answer}
