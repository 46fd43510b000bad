"""Hosts, workers and waiting, for tests that run whole jobs on a real engine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, TypeVar

import docker
from django.db import connections

from container_manager.core.spec import LABEL_INSTALLATION
from container_manager.management.commands.process_container_jobs import Command
from container_manager.models import ContainerJob, ExecutorHost, Installation

#: Longest wait for anything that should happen at once; generous, as the machine is shared.
PATIENCE_SECONDS = 60.0

_T = TypeVar("_T")

#: A program that says that it runs, and goes on when it is sent SIGUSR1: no test has to guess how long.
WAITING_PROGRAM = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("first words", flush=True)
print("first complaint", file=sys.stderr, flush=True)
signal.sigwait([signal.SIGUSR1])
print("last words", flush=True)
"""

#: A program that says that it runs, and ends when it is asked to. Process 1 has to say so itself: the kernel
#: keeps a signal without a handler from it.
OBEDIENT_PROGRAM = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("first words", flush=True)
signal.pause()
"""


def register(url: str, name: str = "local-docker", **fields: Any) -> ExecutorHost:
    """A host row for an engine, as the guide makes it."""
    return ExecutorHost.objects.create(
        name=name,
        host_type=url.partition("://")[0],
        connection_string=url,
        executor_type="docker",
        is_active=True,
        **fields,
    )


def drain() -> None:
    """Run every waiting job to its end, in this process."""
    Command().handle(once=True)


def finished(job: ContainerJob) -> ContainerJob:
    """Drain the queue, and return the job as it is stored then."""
    drain()
    return stored(job)


def stored(job: ContainerJob) -> ContainerJob:
    """A fresh copy of the job."""
    fresh: ContainerJob = ContainerJob.objects.get(pk=job.pk)
    return fresh


def until(look: Callable[[], _T | None], what: str, *, seconds: float = PATIENCE_SECONDS) -> _T:
    """Look until the answer is true, and return it; fail when it is not within the time."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        answer = look()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {what}"
        pause.wait(0.05)


def until_status(job: ContainerJob, *statuses: str, seconds: float = PATIENCE_SECONDS) -> ContainerJob:
    """Wait until the stored job has one of the statuses."""

    def look() -> ContainerJob | None:
        current = stored(job)
        return current if current.status in statuses else None

    try:
        return until(look, f"{job} to be {' or '.join(statuses)}", seconds=seconds)
    except AssertionError as error:
        current = stored(job)
        raise AssertionError(
            f"{error}; it is {current.status} {current.exit_reason}\n{current.docker_log}"
        ) from error


def until_says(job: ContainerJob, words: str) -> ContainerJob:
    """Wait until the worker has stored these words of the job's stdout, while it runs."""
    until(lambda: words in stored(job).stdout_log, f"{job} to say {words!r}")
    return stored(job)


@contextmanager
def worker_thread() -> Iterator[threading.Thread]:
    """`handle(once=True)` beside the test; it has to be done soon after the block, without an error."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            drain()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            failures.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=work, name="worker-of-a-test")
    thread.start()
    try:
        yield thread
    except BaseException:
        for job in ContainerJob.objects.all():  # else the thread would outlive the test's database
            job.cancel(by="a failed test")
        raise
    finally:
        thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive(), "the worker did not end"
    if failures:
        raise failures[0]


@contextmanager
def worker_process(environment: dict[str, str], *options: str) -> Iterator[subprocess.Popen[str]]:
    """A worker in a process of its own, stopped by SIGTERM at the end of the block."""
    command = [sys.executable, "-m", "django", "process_container_jobs", "--poll-interval", "0.2", *options]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        yield process
    except BaseException:
        process.kill()
        process.wait()
        reader.join(5)
        sys.stderr.write("".join(lines))  # pytest shows it with the failure
        raise
    process.terminate()
    code = process.wait(PATIENCE_SECONDS)
    reader.join(5)
    assert code == 0, f"the worker ended with {code}:\n{''.join(lines)}"


def connect(url: str) -> docker.DockerClient:
    """A plain docker-py client, to see with other eyes than the product's."""
    return docker.DockerClient(base_url=url, version="1.41", timeout=60)


def our_containers(client: docker.DockerClient) -> list[str]:
    """The names of this test's containers that are on the engine, whatever their state."""
    label = f"{LABEL_INSTALLATION}={Installation.current()}"
    return [
        str(found.name)
        for found in client.containers.list(all=True, ignore_removed=True, filters={"label": label})
    ]


def remove(client: docker.DockerClient, names: Iterable[str]) -> None:
    """End and remove containers, and those as well whose removal is under way already."""
    for name in names:
        try:
            client.containers.get(name).remove(force=True)
        except docker.errors.NotFound:
            continue
        except docker.errors.APIError as error:
            if error.status_code != HTTPStatus.CONFLICT:
                raise


def signal_job(client: docker.DockerClient, job: ContainerJob, name: str) -> None:
    """Send the program of a running job a signal, from outside."""
    client.containers.get(stored(job).get_execution_identifier()).kill(signal=name)


def unique(name: str) -> str:
    """A name that no other run on the same engine uses."""
    return f"{name}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
