"""`run_in_container` on plain processes: what it enqueues, refuses, passes on and answers."""

from __future__ import annotations

import io
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connections

from container_manager import lifecycle
from container_manager.core.errors import HostTimeout
from container_manager.core.outcome import ExitReason
from container_manager.executors.registry import open_executor
from container_manager.models import ContainerJob, EngineLease, EnvironmentVariableTemplate, ExecutorHost
from container_manager.testing import FakeEngine, FakeRun
from container_manager.worker.foreground import Detached, Foreground, Progress, exit_code
from tests.db.factories import make_host, make_job
from tests.db.workers import QUICK, until, until_status, working

pytestmark = pytest.mark.django_db(transaction=True)

PROGRAM = "import sys; sys.stdout.buffer.write({out!r}); sys.stderr.buffer.write({err!r}); sys.exit({code})"


@pytest.fixture
def host(transactional_db: None, tmp_path: Path) -> ExecutorHost:
    return ExecutorHost.objects.create(
        name="here", executor_type="process", connection_string=f"process://{tmp_path}/jobs"
    )


def run(*arguments: str) -> int:
    """Run the command in this process and return its exit code; output goes to our own descriptors."""
    try:
        call_command("run_in_container", *arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def run_python(code: str, *options: str) -> int:
    return run("--image", "any:1", "--exec", *options, "--", sys.executable, "-c", code)


def refused(*arguments: str) -> CommandError:
    with pytest.raises(CommandError) as caught:
        call_command("run_in_container", *arguments)
    assert caught.value.returncode == 125
    assert not ContainerJob.objects.exists()
    return caught.value


class Listener:
    """A view that keeps what it is told."""

    def __init__(self, said: list[str]) -> None:
        self._said = said

    def output(self, stream: int, data: bytes, *, meanwhile: Callable[[], None]) -> None:
        raise AssertionError(f"no output was expected: {data!r}")

    def progress(self, progress: Progress) -> None:
        pass

    def say(self, text: str) -> None:
        self._said.append(text)


@pytest.mark.parametrize(
    ("reason", "code", "expected"),
    [
        (ExitReason.SUCCESS, 0, 0),
        (ExitReason.APPLICATION_ERROR, 3, 3),
        (ExitReason.APPLICATION_ERROR, 125, 125),
        (ExitReason.TIMEOUT, 143, 124),
        (ExitReason.CANCELLED, 143, 130),
        (ExitReason.CANCELLED, None, 130),
        (ExitReason.OUT_OF_MEMORY, 137, 137),
        (ExitReason.OUT_OF_MEMORY, 1, 137),
        (ExitReason.KILLED_EXTERNALLY, 143, 143),
        (ExitReason.COMMAND_NOT_FOUND, 127, 127),
        (ExitReason.COMMAND_NOT_EXECUTABLE, None, 126),
        (ExitReason.IMAGE_NOT_FOUND, None, 125),
        (ExitReason.REMOVED_EXTERNALLY, None, 125),
        (ExitReason.HOST_CRASHED, 255, 125),
    ],
)
def test_each_end_has_its_exit_code(reason: ExitReason, code: int | None, expected: int) -> None:
    assert exit_code(ContainerJob(exit_reason=reason, exit_code=code)) == expected


def test_streams_and_exit_code_are_the_programs_own(
    host: ExecutorHost, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    out, err = b"no newline \x00\xff\xfe", b"\xc3\x28 bad\r\n"
    assert run_python(PROGRAM.format(out=out, err=err, code=7), "--quiet") == 7
    seen = capfdbinary.readouterr()
    assert (seen.out, seen.err) == (out, err)


def test_a_failure_is_summed_up_in_one_line_and_a_success_is_silent(
    host: ExecutorHost, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert run_python("raise SystemExit(4)") == 4
    lines = capfdbinary.readouterr().err.decode().splitlines()
    job = ContainerJob.objects.get()
    assert lines == [
        f"run_in_container: failed (application_error): {job.exit_message}",
        f"The whole record: ContainerJob.objects.get(pk='{job.pk}')",
    ]
    assert run_python("print('fine')") == 0
    seen = capfdbinary.readouterr()
    assert (seen.out, seen.err) == (b"fine\n", b"")


def test_output_goes_where_a_caller_redirects_it(host: ExecutorHost) -> None:
    out, err = io.StringIO(), io.StringIO()
    call_command(
        "run_in_container",
        "--image=any:1",
        "--exec",
        "--",
        sys.executable,
        "-c",
        "print('grüße')",
        stdout=out,
        stderr=err,
    )
    assert (out.getvalue(), err.getvalue()) == ("grüße\n", "")


def test_more_output_than_a_chunk_arrives_complete(
    host: ExecutorHost, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    code = "import sys\nfor i in range(60000): print(i, file=sys.stdout if i % 2 else sys.stderr)"
    assert run_python(code) == 0
    seen = capfdbinary.readouterr()
    assert seen.out.split() == [b"%d" % number for number in range(1, 60000, 2)]
    assert seen.err.split() == [b"%d" % number for number in range(0, 60000, 2)]


def test_a_worker_that_serves_the_host_does_the_work(
    host: ExecutorHost, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    executor = open_executor(host.executor_type, host.as_config())
    host.record_up(executor.health())
    executor.close()
    with working(hosts=[host.name]) as worker:
        while not EngineLease.holder(host.engine_id):
            threading.Event().wait(0.05)  # bounded by the test's own time limit
        assert run_python("print('by the worker')") == 0
        assert ContainerJob.objects.get().latest_execution.worker == worker.name
    assert capfdbinary.readouterr().out == b"by the worker\n"


def test_without_a_worker_this_process_does_the_work_and_leaves_no_lease(host: ExecutorHost) -> None:
    assert run_python("pass") == 0
    host.refresh_from_db()
    assert host.engine_id
    assert EngineLease.holder(host.engine_id) == ""
    assert ContainerJob.objects.get().latest_execution.removed_at is not None


def test_other_jobs_of_the_host_are_left_alone(host: ExecutorHost) -> None:
    other = ContainerJob.objects.create_job("any:1", [sys.executable, "-c", "pass"], priority=9)
    assert run_python("pass") == 0
    other.refresh_from_db()
    assert other.status == "pending"


def test_detached_it_prints_the_id_alone(host: ExecutorHost, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_python("pass", "--detach") == 0
    seen = capfd.readouterr()
    job = ContainerJob.objects.get()
    assert seen.out == f"{job.pk}\n"
    assert "process_container_jobs" in seen.err  # nobody works
    assert job.status == "pending"
    assert run_python("pass", "--detach", "--quiet") == 0
    assert capfd.readouterr().err == ""


def test_options_become_the_jobs_fields(host: ExecutorHost, monkeypatch: pytest.MonkeyPatch) -> None:
    EnvironmentVariableTemplate.objects.create(name="base", environment_variables_text="A=1\nB=2")
    monkeypatch.setenv("FROM_HERE", "a=b c")
    options = (
        "--image=registry.example.com/app:2 --name=nightly --memory=300 --cpus=0.5 --timeout=60 --env=B=3 "
        "--env=FROM_HERE --env=EMPTY= --template=base --network=one --network=two:db,cache --workdir=/srv "
        "--host=here --priority=5 --user=20001:20001"
    )
    assert run(*options.split(), "--detach", "--", "import_books", "--file", "x.csv", "--", "-v") == 0
    job = ContainerJob.objects.get()
    assert job.docker_image == "registry.example.com/app:2"
    assert job.command.split() == ["python", "manage.py", "import_books", "--file", "x.csv", "--", "-v"]
    assert (job.name, job.memory_limit, job.cpu_limit, job.timeout_seconds) == ("nightly", 300, 0.5, 60)
    assert job.environment == {"A": "1", "B": "3", "FROM_HERE": "a=b c", "EMPTY": ""}
    assert job.network_configuration == [
        {"network_name": "one", "aliases": []},
        {"network_name": "two", "aliases": ["db", "cache"]},
    ]
    assert (job.working_directory, job.docker_host, job.host_pinned) == ("/srv", host, True)
    assert (job.priority, job.user) == (5, "20001:20001")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--image=x:1", ["nothing to run"]),
        (
            "-- check",
            ["--image: no image", "'COMMAND_IMAGE'] is empty. Set it to the tag that `build_job_image`"],
        ),
        (
            "--exec -- ls",
            ["--image: no image", "'COMMAND_IMAGE'] is empty. Set it to the tag that `build_job_image`"],
        ),
        ("--image=Upper:1 -- check", ["--image", "Upper"]),
        ("--image=x:1 --memory=0 -- check", ["--memory", "0"]),
        ("--image=x:1 --memory=999999 -- check", ["--memory", "999999", "MAX_MEMORY_LIMIT"]),
        ("--image=x:1 --cpus=nan -- check", ["--cpus", "nan"]),
        ("--image=x:1 --timeout=-5 -- check", ["--timeout", "-5"]),
        ("--image=x:1 --env=CM_TEST_NOT_SET -- check", ["--env", "CM_TEST_NOT_SET", "not set"]),
        ("--image=x:1 --env==secret -- check", ["--env"]),
        ("--image=x:1 --template=none -- check", ["--template", "none"]),
        ("--image=x:1 --network=host -- check", ["--network", "host"]),
        ("--image=x:1 --workdir=srv -- check", ["--workdir", "srv"]),
        ("--image=x:1 --host=nowhere -- check", ["--host", "nowhere", "here"]),
        ("--image=x:1 --priority=99999 -- check", ["--priority", "99999"]),
        ("--image=x:1 --user=root -- check", ["--user", "root"]),
        ("--image=x:1 --writable-root -- check", ["--writable-root"]),
    ],
)
def test_a_refusal_names_the_option_and_stores_nothing(
    host: ExecutorHost, arguments: str, says: list[str]
) -> None:
    text = str(refused(*arguments.split()))
    for word in says:
        assert word in text
    assert "secret" not in text


def test_no_host_at_all_is_told_with_the_command_that_registers_one(transactional_db: None) -> None:
    assert "register_local_host" in str(refused("--image=x:1", "--", "check"))


def test_a_third_ctrl_c_does_not_wait_for_the_end(host: ExecutorHost) -> None:
    # A worker that holds the lease, has claimed the job, and does nothing more.
    host.engine_id = "an-engine"
    host.save(update_fields=["engine_id"])
    lease = EngineLease.acquire(host.engine_id, "stuck", 600)
    assert lease is not None
    job = ContainerJob.objects.create_job("any:1", [sys.executable, "-c", "pass"])
    lifecycle.claim(lease, host, limit=1, worker="stuck")
    said: list[str] = []
    run = Foreground(job, Listener(said))
    for _ in range(3):
        run.interrupt()
    with pytest.raises(Detached, match=str(job.pk)):
        run.run()
    job.refresh_from_db()
    assert job.status == "launching"
    assert job.cancel_requested_by == "run_in_container"
    assert [text.partition(":")[0] for text in said] == ["asked the job to stop", "killing the job"]


def test_a_third_ctrl_c_waits_for_no_engine_that_hangs(engine: FakeEngine, settings: Any) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {**QUICK, "STOP_GRACE_SECONDS": 60.0}
    host = make_host("one")
    engine.default = FakeRun(hold=threading.Event(), term_exit_code=None)
    engine.fail("stop", HostTimeout("no answer in 60 s"), times=None)
    job = make_job()
    run = Foreground(job, Listener([]))
    pressed: list[float] = []

    def press() -> None:
        try:
            until_status(job, "running")
            for _ in range(3):
                run.interrupt()
            pressed.append(time.monotonic())
        finally:
            connections.close_all()

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(Detached, match=str(job.pk)):
        run.run()
    assert time.monotonic() - pressed[0] < 3.0
    thread.join()
    host.refresh_from_db()
    until(lambda: not EngineLease.holder(host.engine_id), "its worker to leave, while nobody waits")
    assert engine.containers[job.container_name].alive  # its cancel is the next worker's


def test_a_job_that_somebody_deletes_ends_the_command(
    host: ExecutorHost, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    seen: list[Any] = []

    def delete_when_it_runs() -> None:
        try:
            while not (tmp_path / "runs").exists():
                threading.Event().wait(0.05)
            seen.extend(ContainerJob.objects.values_list("pk", flat=True))
            ContainerJob.objects.all().delete()
        finally:
            connections.close_all()

    thread = threading.Thread(target=delete_when_it_runs)
    thread.start()
    code = (
        f"import pathlib, time; pathlib.Path({str(tmp_path / 'runs')!r}).touch()\n"
        "while True: print('alive', flush=True); time.sleep(0.1)"  # whereupon the worker sees the row gone
    )
    assert run_python(code) == 125
    thread.join(30)
    assert isinstance(seen[0], uuid.UUID)
    assert f"the job {seen[0]} was deleted" in capfd.readouterr().err
