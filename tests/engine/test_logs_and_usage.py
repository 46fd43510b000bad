"""Log bytes come back as they were written, and usage is what the program really used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import docker
import pytest
from pytest_django import Settings

from container_manager.conf import get_settings
from container_manager.models import ContainerJob, ExecutorHost
from tests.acceptance.running import (
    OBEDIENT_PROGRAM,
    drain,
    finished,
    our_containers,
    signal_job,
    stored,
    until,
    worker_thread,
)
from tests.engines import BASE_IMAGE

pytestmark = pytest.mark.engine

LINES = 100_000
COLUMN_CHARACTERS = get_settings().LOG_COLUMN_BYTES + 200  # and the line that marks the gap
ALTERNATING = f"""
import os
for number in range({LINES}):
    os.write(1 + number % 2, b"line %d of stream %d\\n" % (number, 1 + number % 2))
"""


def python(program: str, *arguments: str) -> list[str]:
    return ["python", "-c", program, *arguments]


def fingerprint(pieces: Iterable[bytes]) -> tuple[int, str]:
    """Length and hash, so that a failure does not print megabytes."""
    size, digest = 0, hashlib.sha256()
    for piece in pieces:
        size += len(piece)
        digest.update(piece)
    return size, digest.hexdigest()


def log_of(job: ContainerJob, stream: str) -> tuple[int, str]:
    return fingerprint(job.iter_log(stream))


def test_a_hundred_thousand_alternating_lines_come_back_exactly(host: ExecutorHost) -> None:
    job = finished(ContainerJob.objects.create_job(BASE_IMAGE, python(ALTERNATING)))
    assert job.status == "completed"
    for stream, number in (("stdout", 1), ("stderr", 2)):
        wanted = (b"line %d of stream %d\n" % (n, number) for n in range(number - 1, LINES, 2))
        assert log_of(job, stream) == fingerprint(wanted), stream
    execution = job.latest_execution
    assert execution is not None
    assert execution.logs_complete
    assert not execution.logs_truncated
    # The columns hold the two ends and say how much lies between.
    assert len(job.stdout_log) < COLUMN_CHARACTERS
    assert "line 0 of stream 1\n" in job.stdout_log
    assert f"line {LINES - 2} of stream 1\n" in job.stdout_log
    assert "iter_log" in job.stdout_log


def test_the_two_streams_keep_the_order_of_their_arrival(host: ExecutorHost) -> None:
    program = "import os, time\nfor n in range(20): os.write(1 + n % 2, b'%d\\n' % n); time.sleep(0.02)"
    job = finished(ContainerJob.objects.create_job(BASE_IMAGE, python(program)))
    execution = job.latest_execution
    assert execution is not None
    frames = list(execution.iter_frames())
    assert [frame.payload for frame in frames] == [b"%d\n" % n for n in range(20)]
    assert [frame.stream for frame in frames] == [1, 2] * 10
    assert [frame.timestamp_ns for frame in frames] == sorted(frame.timestamp_ns for frame in frames)


ODD_OUTPUTS = {
    "nothing": b"",
    "one newline": b"\n",
    "no newline at the end": b"first\nlast without an end",
    "NUL": b"a\0b\0\0c\n\0",
    "bad UTF-8": b"\xff\xfe\x80 caf\xc3\xa9 \xc3\n\xe2\x82\n\xf0\x9f",
    "carriage returns and escapes": b"10%\r20%\r\x1b[31mred\x1b[0m\r\n",
    "looks like a frame header": b"\x01\x00\x00\x00\x00\x00\x00\x05hello\x02\x00\x00\x00\x00\x00\x00\x01\n",
    "looks like a timestamp": b"2026-01-01T00:00:00.000000000Z not ours\n",
    "a line of exactly one buffer": b"x" * 16384 + b"\n" + b"y" * 16383 + b"\n" + b"z" * 16384,
}


def test_odd_bytes_come_back_exactly(host: ExecutorHost) -> None:
    program = "import os, sys; os.write(int(sys.argv[1]), bytes.fromhex(sys.argv[2]))"
    jobs = {
        (name, stream): ContainerJob.objects.create_job(
            BASE_IMAGE, python(program, str(number), output.hex()), docker_host=host
        )
        for name, output in ODD_OUTPUTS.items()
        for number, stream in ((1, "stdout"), (2, "stderr"))
    }
    drain()
    for (name, stream), job in jobs.items():
        done = stored(job)
        assert done.status == "completed", (name, done.exit_message, done.docker_log)
        other = "stderr" if stream == "stdout" else "stdout"
        assert b"".join(done.iter_log(stream)) == ODD_OUTPUTS[name], (name, stream)
        assert b"".join(done.iter_log(other)) == b"", (name, other)
        assert "\0" not in done.stdout_log + done.stderr_log


LONG_OUTPUTS = {
    "a line of a megabyte": b"m" * (1 << 20) + b"\n",
    "a line of a megabyte between others": b"before\n" + b"m" * 1_000_000 + b"\nafter",
    "two megabytes without a newline": b"0123456789abcdef" * (2 << 16),
}
WRITE_FROM_ARGUMENT = "import sys; sys.stdout.buffer.write(eval(sys.argv[1]))"


def test_long_lines_come_back_exactly(host: ExecutorHost) -> None:
    programs = {
        "a line of a megabyte": "b'm' * (1 << 20) + b'\\n'",
        "a line of a megabyte between others": "b'before\\n' + b'm' * 1_000_000 + b'\\nafter'",
        "two megabytes without a newline": "b'0123456789abcdef' * (2 << 16)",
    }
    jobs = {
        name: ContainerJob.objects.create_job(BASE_IMAGE, python(WRITE_FROM_ARGUMENT, text))
        for name, text in programs.items()
    }
    drain()
    for name, job in jobs.items():
        done = stored(job)
        assert done.status == "completed", name
        assert log_of(done, "stdout") == fingerprint([LONG_OUTPUTS[name]]), name
        assert len(done.stdout_log) < COLUMN_CHARACTERS


@pytest.mark.parametrize("size", [16_385, 2_000_000])
def test_the_newline_of_a_long_last_line_is_assumed(host: ExecutorHost, size: int) -> None:
    """The known limit of the engine's `local` driver, as docs/explanation/logs.md tells it.

    A last line of more than 16 KiB looks the same with and without its newline. All other bytes are exact.
    """
    for ending in (b"", b"\n"):
        text = f"b'x' * {size} + {ending!r}"
        job = finished(ContainerJob.objects.create_job(BASE_IMAGE, python(WRITE_FROM_ARGUMENT, text)))
        assert log_of(job, "stdout") == fingerprint([b"x" * size + b"\n"]), ending


def test_a_log_that_is_read_live_is_stored_once(host: ExecutorHost, engine: docker.DockerClient) -> None:
    program = (
        "import os, signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
        "for n in range(2000): os.write(1, b'before %d\\n' % n)\n"
        "os.write(1, b'half a li'); os.write(2, b'ready\\n')\n"
        "signal.sigwait([signal.SIGUSR1])\n"
        "os.write(1, b'ne\\n')\n"
        "for n in range(2000): os.write(1, b'after %d\\n' % n)\n"
    )
    job = ContainerJob.objects.create_job(BASE_IMAGE, python(program))
    with worker_thread():
        until(lambda: "ready" in stored(job).stderr_log, "the first half of the log")
        signal_job(engine, job, "SIGUSR1")
    lines = [
        *(b"before %d\n" % n for n in range(2000)),
        b"half a line\n",
        *(b"after %d\n" % n for n in range(2000)),
    ]
    assert log_of(stored(job), "stdout") == fingerprint(lines)


def test_a_peak_of_100_mb_is_reported_as_such(host: ExecutorHost) -> None:
    program = "import time; data = bytearray(b'x') * (100 << 20); time.sleep(3)"
    job = finished(ContainerJob.objects.create_job(BASE_IMAGE, python(program), memory_limit=512))
    assert job.status == "completed"
    assert job.max_memory_usage is not None
    assert 95 <= job.max_memory_usage / 2**20 <= 130
    execution = job.latest_execution
    assert execution is not None
    assert execution.max_memory_usage == job.max_memory_usage
    assert execution.memory_source in {"peak", "sampled"}


# Works until its own CPU time is half of the time that has passed, then rests: how busy the machine is
# otherwise changes how it is spread, not how much it is.
HALF_A_CORE = """
import time
begun = time.monotonic()
while (passed := time.monotonic() - begun) < 6:
    if time.process_time() < passed / 2:
        sum(range(20_000))
    else:
        time.sleep(0.01)
print(time.process_time() / (time.monotonic() - begun))
"""


def test_half_a_core_is_reported_as_such(host: ExecutorHost) -> None:
    job = finished(ContainerJob.objects.create_job(BASE_IMAGE, python(HALF_A_CORE), cpu_limit=1.0))
    assert job.status == "completed"
    # The program says what share of a core it had in truth: on a busy machine that is less than its half.
    share = float(job.clean_output) * 100
    assert 0 < share < 60
    assert job.cpu_usage_percent is not None
    assert abs(job.cpu_usage_percent - share) <= 10


def test_usage_that_could_not_be_measured_is_unknown_and_not_zero(host: ExecutorHost) -> None:
    job = finished(ContainerJob.objects.create_job(BASE_IMAGE, "true"))
    execution = job.latest_execution
    assert execution is not None
    assert job.max_memory_usage is None or job.max_memory_usage > 0
    assert job.cpu_usage_percent is None or job.cpu_usage_percent > 0
    assert (execution.usage_samples == 0) == (job.max_memory_usage is None)


def test_containers_go_at_once_by_default(host: ExecutorHost, engine: docker.DockerClient) -> None:
    jobs = [ContainerJob.objects.create_job(BASE_IMAGE, f"sh -c 'exit {code}'") for code in (0, 1, 2)]
    jobs.append(ContainerJob.objects.create_job(BASE_IMAGE, "no-such-program"))
    jobs.append(ContainerJob.objects.create_job(BASE_IMAGE, python(OBEDIENT_PROGRAM), timeout_seconds=1))
    drain()
    assert our_containers(engine) == []
    assert all(stored(job).executions.get().removed_at for job in jobs)


def test_containers_stay_for_their_retention_time_if_asked(
    host: ExecutorHost, engine: docker.DockerClient, settings: Settings
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {"IMMEDIATE_CLEANUP": False, "CONTAINER_RETENTION_SECONDS": 3600}
    job = finished(ContainerJob.objects.create_job(BASE_IMAGE, "echo kept"))
    assert our_containers(engine) == [job.get_execution_identifier()]
    assert job.executions.get().removed_at is None
    drain()
    assert our_containers(engine) == [job.get_execution_identifier()]
    engine.containers.get(job.get_execution_identifier()).remove()


def test_a_failed_start_leaves_no_container(host: ExecutorHost, engine: docker.DockerClient) -> None:
    assert finished(ContainerJob.objects.create_job(BASE_IMAGE, "/etc/passwd")).status == "failed"
    assert our_containers(engine) == []
