"""Who outlives whom: the worker, the shim, the program, its children."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from container_manager.core.observation import STDOUT, ContainerState, EventAction, LogCursor
from container_manager.executors.process.executor import ProcessExecutor
from tests.unit.process.conftest import INSTALLATION, config, output, run, spec

PROJECT = Path(__file__).resolve().parents[3]


def state_file(state: Path, container_id: str, name: str) -> dict[str, Any]:
    value = json.loads(((state / "ids" / container_id).readlink() / name).read_text())
    assert isinstance(value, dict)
    return value


def wait_gone(pid: int, seconds: float = 10) -> None:
    """Wait for the end of a process that is not our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], seconds)[0], f"process {pid} still lives"
    finally:
        os.close(descriptor)


WORKER = """
import os, signal, sys
from pathlib import Path
from tests.unit.process.conftest import config, spec
from container_manager.executors.process.executor import ProcessExecutor
executor = ProcessExecutor(config(Path(sys.argv[1])))
container_id = executor.create(spec("sh", "-c", "echo one; read line < $0; echo two; exit 5", sys.argv[2]))
executor.start(container_id)
print(container_id, flush=True)
signal.pause()
"""


def test_a_job_outlives_a_killed_worker_and_another_one_takes_it_over(
    executor: ProcessExecutor, state: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(state), str(gate)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    container_id = worker.stdout.readline().strip()
    frames = executor.logs(container_id, follow=True)
    first = next(frames)
    assert first.payload == b"one\n"
    worker.kill()
    worker.wait()
    worker.stdout.close()
    assert executor.inspect(container_id).state is ContainerState.RUNNING
    gate.write_text("go\n")
    assert [frame.payload for frame in frames] == [b"two\n"]
    rest = executor.logs(container_id, since=LogCursor(first.timestamp_ns, 1))
    assert [frame.payload for frame in rest] == [b"two\n"]
    seen = executor.inspect(container_id)
    assert (seen.state, seen.exit_code) == (ContainerState.EXITED, 5)
    assert executor.remove(container_id)


def test_ctrl_c_in_the_workers_terminal_is_not_for_the_jobs(executor: ProcessExecutor) -> None:
    job = spec("sh", "-c", "ps -o pgid=,sid= -p $$; exec sleep 100")
    container_id = executor.create(job)
    executor.start(container_id)
    group, session = map(int, next(executor.logs(container_id, follow=True)).payload.split())
    assert group != os.getpgrp()
    assert session != os.getsid(0)


def test_a_killed_shim_takes_the_program_along_and_the_job_says_so(
    executor: ProcessExecutor, state: Path
) -> None:
    container_id = executor.create(spec("sh", "-c", "sleep 1000 & echo $!; wait"))
    stop = threading.Event()
    events = executor.watch(INSTALLATION, stop)
    assert next(events).action is EventAction.CONNECTED
    executor.start(container_id)
    assert next(events).action is EventAction.START
    frames = executor.logs(container_id, follow=True)
    grandchild = int(next(frames).payload)
    pids = state_file(state, container_id, "run.json")
    os.kill(pids["pid"], signal.SIGKILL)
    assert list(frames) == []
    wait_gone(pids["program"])
    seen = executor.inspect(container_id)
    assert (seen.state, seen.exit_code, seen.finished_at) == (ContainerState.EXITED, 255, None)
    assert "not known" in seen.error
    assert executor.usage(container_id) is None
    die = next(events)
    assert (die.action, die.container_id, die.exit_code) == (EventAction.DIE, container_id, 255)
    stop.set()
    executor.start(container_id)
    assert executor.inspect(container_id) == seen, "it is not started a second time"
    assert Path(f"/proc/{grandchild}").exists(), "the test is about a child that was left behind"
    assert executor.remove(container_id)
    wait_gone(grandchild)


def test_children_end_with_the_program_wherever_they_went(executor: ProcessExecutor) -> None:
    script = """
        sleep 1000 & echo $!
        (sleep 1000 & echo $!)
        setsid sh -c 'sleep 1000 & echo $!' | cat
        exit 4
    """
    # The pipe to `cat` would stay open as long as the last of them lives.
    container_id = run(executor, spec("sh", "-c", script.replace("sleep 1000 &", "sleep 1000 >/dev/null &")))
    pids = [int(word) for word in output(executor, container_id).split()]
    assert len(pids) == 3
    for pid in pids:
        wait_gone(pid)
    assert executor.inspect(container_id).exit_code == 4


def test_a_program_that_closes_its_output_is_still_waited_for(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    job = spec("sh", "-c", "echo last; exec >&- 2>&-; read line < $0; exit 6", str(gate))
    container_id = executor.create(job)
    executor.start(container_id)
    frames = executor.logs(container_id, follow=True)
    assert next(frames).payload == b"last\n"
    assert executor.inspect(container_id).state is ContainerState.RUNNING
    gate.write_text("go\n")
    assert list(frames) == []
    assert executor.inspect(container_id).exit_code == 6


def test_stop_reaches_the_whole_group(executor: ProcessExecutor) -> None:
    script = """
        trap 'wait; echo parent; exit 7' TERM
        sh -c 'trap "echo child; exit" TERM; echo up; while :; do sleep 0.05; done' &
        wait
    """
    container_id = executor.create(spec("sh", "-c", script))
    executor.start(container_id)
    frames = executor.logs(container_id, follow=True)
    assert next(frames).payload == b"up\n"
    executor.stop(container_id)
    stdout = [frame.payload for frame in frames if frame.stream == STDOUT]
    assert stdout == [b"child\n", b"parent\n"]
    assert executor.inspect(container_id).exit_code == 7


def test_the_program_hears_of_each_stop_once(executor: ProcessExecutor) -> None:
    code = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'heard\\n'))
os.write(1, b'up\\n')
while True: time.sleep(1)
"""
    container_id = executor.create(spec("python", "-c", code))
    executor.start(container_id)
    frames = executor.logs(container_id, follow=True)
    assert next(frames).payload == b"up\n"
    for _ in range(2):
        executor.stop(container_id)
        assert next(frames).payload == b"heard\n"
    executor.stop(container_id, force=True)
    assert list(frames) == []


def test_a_child_out_of_memory_is_told_beside_the_parents_success(executor: ProcessExecutor) -> None:
    hog = "hoard = []\nwhile True: hoard.append(b'x' * 1048576)"
    container_id = run(executor, spec("sh", "-c", 'python3 -c "$0"; exit 0', hog))
    seen = executor.inspect(container_id)
    assert (seen.exit_code, seen.oom_killed) == (0, True)


def test_what_asks_for_far_too_much_at_once_is_refused_by_the_kernel(executor: ProcessExecutor) -> None:
    container_id = run(executor, spec("python", "-c", "bytearray(3 << 30)"))
    seen = executor.inspect(container_id)
    assert (seen.exit_code, seen.oom_killed) == (1, False)
    assert b"MemoryError" in output(executor, container_id, 2)


def test_usage_counts_the_memory_and_the_time_of_all_processes(executor: ProcessExecutor) -> None:
    burn = """
import time
hoard = b'x' * 40_000_000
while time.process_time() < 0.4: pass
print('up', flush=True)
time.sleep(100)
"""
    job = spec("sh", "-c", 'python3 -c "$0" & wait', burn, memory_bytes=256 * 1024 * 1024)
    container_id = executor.create(job)
    executor.start(container_id)
    assert next(executor.logs(container_id, follow=True)).payload == b"up\n"
    sample = executor.usage(container_id)
    assert sample is not None
    assert sample.cpu_ns is not None
    assert 350_000_000 < sample.cpu_ns < 2_000_000_000
    assert sample.memory_bytes is not None
    assert 40_000_000 < sample.memory_bytes < 70_000_000
    assert sample.memory_peak_bytes is not None
    assert sample.memory_bytes <= sample.memory_peak_bytes < 80_000_000


def test_the_end_is_recorded_with_what_the_kernel_counted(executor: ProcessExecutor, state: Path) -> None:
    code = "import time\nhoard = b'x' * 30_000_000\nwhile time.process_time() < 0.2: pass"
    container_id = run(executor, spec("python", "-c", code))
    end = state_file(state, container_id, "exit.json")
    assert 0.2 <= end["cpu_seconds"] < 2
    assert 30_000_000 < end["peak_bytes"] < 64_000_000


def test_nothing_is_lost_between_the_last_write_and_the_end(executor: ProcessExecutor) -> None:
    for _ in range(5):
        assert output(executor, run(executor, spec("seq", "1000"))).count(b"\n") == 1000


def test_a_state_directory_with_a_long_path(tmp_path: Path) -> None:
    state = tmp_path / ("long" * 40) / "state"
    executor = ProcessExecutor(config(state))
    container_id = run(executor, spec("echo", "hello"))
    assert output(executor, container_id) == b"hello\n"
    assert executor.remove(container_id)
