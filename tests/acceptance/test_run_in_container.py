"""`run_in_container` as a user meets it: a process of its own, pipes and a terminal, a real engine."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from container_manager.core.spec import LABEL_JOB
from container_manager.models import ContainerJob, ExecutorHost
from tests import engines
from tools import engine_http

pytestmark = [pytest.mark.engine, pytest.mark.django_db(transaction=True)]

PATIENCE_SECONDS = 60.0
#: Says that it is there, and ends when it is sent SIGTERM.
POLITE = "trap 'echo told; exit 0' TERM; echo ready; while true; do sleep 0.1; done"
#: For Python programs: the first process of a container does not die of a signal that it does not handle.
QUIT_ON_TERM = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))"
#: Says that it is there, and ends by SIGKILL alone.
STUBBORN = "trap 'echo no' TERM; echo ready; while true; do sleep 0.1; done"


@pytest.fixture
def host(transactional_db: None, docker_url: str) -> ExecutorHost:
    return ExecutorHost.objects.create(
        name="real", connection_string=docker_url, auto_pull_images=False, max_concurrent_jobs=4
    )


class Child:
    """The command in a process of its own. What it writes is read as it comes, with a deadline."""

    def __init__(self, environment: dict[str, str], *arguments: str, terminal: bool = False) -> None:
        self.seen = {"out": bytearray(), "err": bytearray()}
        errors, theirs = pty.openpty() if terminal else os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "django", "run_in_container", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=theirs if terminal else subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)
        self._open = {errors: "err"}
        if self.process.stdout is not None:
            self._open[self.process.stdout.fileno()] = "out"
        self._errors = errors

    def until(self, name: str, text: bytes) -> None:
        """Read until `text` was seen on a stream."""
        self._read(lambda: text in self.seen[name], only=name)

    def ends_with(self, code: int) -> None:
        """Read to the end, and look at the exit code."""
        self._read(lambda: not self._open)
        assert self.process.wait(PATIENCE_SECONDS) == code, self.tails()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def close_stdout(self) -> None:
        assert self.process.stdout is not None
        del self._open[self.process.stdout.fileno()]
        self.process.stdout.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._errors)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def tails(self) -> dict[str, bytes]:
        return {name: bytes(data[-500:]) for name, data in self.seen.items()}

    def _read(self, enough: Callable[[], bool], only: str = "") -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not enough():
            wanted = [number for number, name in self._open.items() if not only or name == only]
            assert wanted, f"it ended: {self.tails()}"
            ready = select.select(wanted, [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, f"nothing more within {PATIENCE_SECONDS:g} s: {self.tails()}"
            for number in ready:
                try:
                    block = os.read(number, 65536)
                except OSError:  # a terminal whose other side is closed
                    block = b""
                if block:
                    self.seen[self._open[number]] += block
                else:
                    del self._open[number]


Start = Callable[..., Child]


@pytest.fixture
def start(child_environment: dict[str, str], host: ExecutorHost) -> Iterator[Start]:
    """`start("--option", ..., "--", "sh", "-c", ...)`: whole commands in the tests' base image."""
    children: list[Child] = []

    def begin(*arguments: str, environment: dict[str, str] | None = None, terminal: bool = False) -> Child:
        options = ("--exec", "--image", engines.BASE_IMAGE, *arguments)
        child = Child({**child_environment, **(environment or {})}, *options, terminal=terminal)
        children.append(child)
        return child

    yield begin
    for child in children:
        child.close()


def the_job() -> ContainerJob:
    return ContainerJob.objects.get()


def containers_of(job: ContainerJob, url: str) -> list[Any]:
    filters = json.dumps({"label": [f"{LABEL_JOB}={job.pk}"]})
    answer: list[Any] = engine_http.call_json(
        url, "GET", "/containers/json", query={"all": "1", "filters": filters}
    )
    return answer


def test_both_streams_arrive_byte_for_byte_and_the_exit_code_is_the_programs(
    start: Start, docker_url: str
) -> None:
    out = b"plain\n\x00\x01\xff\xfe\xc3\x28\r\n\x1b[31mred" + b"x" * 70_000 + b"\nno newline at the end"
    program = (
        "import sys; out = b'plain\\n\\x00\\x01\\xff\\xfe\\xc3\\x28\\r\\n\\x1b[31mred' + b'x' * 70_000 "
        "+ b'\\nno newline at the end'; sys.stdout.buffer.write(out); "
        "sys.stderr.buffer.write(out[::-1]); sys.exit(42)"
    )
    child = start("--quiet", "--", "python", "-c", program)
    child.ends_with(42)
    assert child.seen["out"] == out
    assert child.seen["err"] == out[::-1]
    assert the_job().exit_code == 42
    assert containers_of(the_job(), docker_url) == []


def test_output_arrives_while_the_job_runs(start: Start, docker_url: str) -> None:
    child = start("--", "sh", "-c", "trap 'echo last; exit 0' USR1; echo first; while :; do sleep 0.1; done")
    child.until("out", b"first\n")
    job = the_job()
    assert job.status == "running"
    engine_http.call(docker_url, "POST", f"/containers/{job.container_name}/kill", query={"signal": "USR1"})
    child.ends_with(0)
    assert child.seen == {"out": b"first\nlast\n", "err": b""}


def test_ctrl_c_ends_the_job_politely_and_removes_its_container(start: Start, docker_url: str) -> None:
    child = start("--", "sh", "-c", POLITE)
    child.until("out", b"ready\n")
    child.signal(signal.SIGINT)
    child.ends_with(130)
    job = the_job()
    assert (job.status, job.exit_reason, job.exit_code) == ("cancelled", "cancelled", 0)
    assert child.seen["out"] == b"ready\ntold\n"
    assert b"asked the job to stop: SIGTERM" in child.seen["err"]
    assert containers_of(job, docker_url) == []


def test_a_second_ctrl_c_kills_at_once(start: Start, docker_url: str) -> None:
    child = start("--", "sh", "-c", STUBBORN)
    child.until("out", b"ready\n")
    child.signal(signal.SIGINT)
    child.until("out", b"no\n")
    child.signal(signal.SIGINT)
    child.ends_with(130)
    job = the_job()
    assert (job.status, job.exit_code) == ("cancelled", 137)
    assert b"killing the job" in child.seen["err"]
    assert "SIGKILL\n" not in job.docker_log  # which the worker would have sent after the grace period
    assert containers_of(job, docker_url) == []


def test_sigterm_cancels_as_well(start: Start, docker_url: str) -> None:
    child = start("--", "sh", "-c", POLITE)
    child.until("out", b"ready\n")
    child.signal(signal.SIGTERM)
    child.ends_with(130)
    assert the_job().status == "cancelled"
    assert containers_of(the_job(), docker_url) == []


def test_time_and_memory_limits_have_exit_codes_of_their_own(start: Start) -> None:
    late = start("--timeout", "1", "--", "sleep", "60")
    late.ends_with(124)
    assert b"timeout (timeout): The job ran over its time limit of 1 s." in late.seen["err"]
    greedy = start("--memory", "64", "--", "python", "-c", "x = b'x' * 2**29")
    greedy.ends_with(137)
    assert b"failed (out_of_memory)" in greedy.seen["err"]


def test_what_cannot_run_is_told_with_its_remedy(start: Start) -> None:
    child = start("--image", "r-no-such-image:1", "--", "true")
    child.ends_with(125)
    assert b"image_not_found" in child.seen["err"]
    assert b"Check the spelling of the image" in child.seen["err"]
    child = start("--", "no-such-program")
    child.ends_with(127)
    assert b"command_not_found" in child.seen["err"]
    child = start("--", "/etc/passwd")
    child.ends_with(126)
    assert b"command_not_executable" in child.seen["err"]


def test_bad_usage_is_not_taken_for_the_commands_own_exit_code(start: Start) -> None:
    child = start("--memory", "much", "--", "true")
    child.ends_with(125)
    assert b"--memory" in child.seen["err"]
    child = start("--memory", "0", "--", "true")
    child.ends_with(125)
    assert b"--memory: 0 is not above 0" in child.seen["err"]
    assert not ContainerJob.objects.exists()


def test_a_host_that_does_not_answer_leaves_no_job_behind(start: Start, host: ExecutorHost) -> None:
    host.connection_string = "unix:///nonexistent/docker.sock"
    host.save()
    child = start("--", "true")
    child.ends_with(125)
    assert b"/nonexistent/docker.sock" in child.seen["err"]
    assert the_job().status == "cancelled"


def test_detached_it_prints_the_id_and_nothing_else(start: Start) -> None:
    child = start("--detach", "--quiet", "--", "true")
    child.ends_with(0)
    assert child.seen == {"out": f"{the_job().pk}\n".encode(), "err": b""}
    assert uuid.UUID(child.seen["out"].decode().strip()) == the_job().pk
    assert the_job().status == "pending"


def test_a_reader_that_left_ends_the_job(start: Start, docker_url: str) -> None:
    child = start("--", "sh", "-c", "trap 'exit 0' TERM; while true; do echo more; sleep 0.1; done")
    child.until("out", b"more\n")
    child.close_stdout()
    child.ends_with(141)
    assert b"nobody reads the output any more" in child.seen["err"]
    assert the_job().status == "cancelled"
    assert containers_of(the_job(), docker_url) == []


def test_a_reader_that_stalls_does_not_make_it_deaf(start: Start) -> None:
    # More than pipes and buffers hold, then nothing.
    program = (
        "import sys, signal; sys.stdout.write(('x' * 999 + '\\n') * 3000); sys.stdout.flush(); signal.pause()"
    )
    child = start("--", "python", "-c", f"{QUIT_ON_TERM}; {program}")
    child.until("out", b"x\n")
    child.signal(signal.SIGINT)
    child.until("err", b"asked the job to stop")  # nobody reads stdout meanwhile
    child.ends_with(130)
    assert the_job().status == "cancelled"


def test_a_terminal_shows_the_progress_and_a_pipe_never_does(start: Start) -> None:
    piped = start("--name", "walk", "--", "sh", "-c", "sleep 1.5; echo done")
    terminal = start("--name", "walk", "--", "sh", "-c", "sleep 1.5; echo done", terminal=True)
    piped.ends_with(0)
    assert piped.seen == {"out": b"done\n", "err": b""}
    terminal.ends_with(0)
    shown = terminal.seen["err"].decode()
    assert re.search(r"running 1 s  walk on real, job [0-9a-f]{8}", shown)
    assert "\x1b[2m" in shown
    assert visible(shown) == ["done"]
    assert max(len(line) for line in re.split(r"[\r\n]", re.sub(r"\x1b\[\d*m", "", shown))) <= 80


def test_a_terminal_without_colours_gets_none(start: Start) -> None:
    child = start("--", "sh", "-c", POLITE, environment={"NO_COLOR": "1"}, terminal=True)
    child.until("err", b"running 0 s")
    child.signal(signal.SIGINT)
    child.ends_with(130)
    shown = child.seen["err"].decode()
    assert "\x1b" not in shown
    lines = visible(shown)
    assert "ready" in lines
    assert any("Ctrl-C again kills it" in line for line in lines)


def test_the_environment_of_the_caller_is_not_the_jobs(start: Start) -> None:
    child = start(
        "--env", "TAKEN", "--env", "GIVEN=a b", "--", "env", environment={"TAKEN": "here", "LEFT": "secret"}
    )
    child.ends_with(0)
    variables = child.seen["out"].decode().splitlines()
    assert "TAKEN=here" in variables
    assert "GIVEN=a b" in variables
    assert not any("secret" in line for line in variables)


def visible(shown: str) -> list[str]:
    """The lines that remain on a terminal: what a carriage return went back over was overwritten."""
    lines = []
    for line in re.sub(r"\x1b\[\d*m", "", shown).replace("\r\n", "\n").split("\n"):
        screen: list[str] = []
        for part in line.split("\r"):
            screen[: len(part)] = part
        lines.append("".join(screen).rstrip())
    return [line for line in lines if line]
