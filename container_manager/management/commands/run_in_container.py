"""One job in the foreground."""

from __future__ import annotations

import logging
import os
import signal
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, TextIO, cast

from django.core.management.base import CommandError
from django.db import DatabaseError

from container_manager.conf import get_settings
from container_manager.core.errors import ConfigurationError, InvalidJob
from container_manager.core.observation import STDOUT
from container_manager.core.states import Status
from container_manager.management.command import JobCommand, tables_problem
from container_manager.management.console import Console
from container_manager.models import ContainerJob, EngineLease, ExecutorHost
from container_manager.worker.foreground import (
    EXIT_CANCELLED,
    EXIT_NOT_RUN,
    Detached,
    Foreground,
    NotRun,
    Progress,
    exit_code,
)

EXIT_READER_GONE = 141  # as a local command that dies of SIGPIPE

_OPTIONS = {
    "docker_image": "--image",
    "name": "--name",
    "memory_limit": "--memory",
    "cpu_limit": "--cpus",
    "timeout_seconds": "--timeout",
    "environment": "--env",
    "environment_vars": "--env",
    "environment_template": "--template",
    "network_configuration": "--network",
    "working_directory": "--workdir",
    "docker_host": "--host",
    "priority": "--priority",
    "user": "--user",
    "read_only_root": "--writable-root",
    "command": "the words after --",
}


class Command(JobCommand):
    """`manage.py run_in_container [options] -- <command> [args]`."""

    help = (
        "Run one of the project's management commands in a container, in the foreground: its output arrives "
        "live on the same streams. The exit code is the command's; ours are 124 timeout, 125 could not run, "
        "126 not executable, 127 not found, 130 cancelled, 137 out of memory. Ctrl-C asks the job to stop, "
        "twice kills it."
    )
    returncode_without_tables = EXIT_NOT_RUN
    _parsed = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The options; what is left out comes from settings."""
        add = parser.add_argument
        add("words", nargs="*", metavar="-- command [args]", help="the command and its arguments")
        add("--exec", action="store_true", help="the words are a whole command, not a management command")
        add(
            "--image",
            metavar="IMAGE",
            help="default: COMMAND_IMAGE of the settings, which build_job_image makes",
        )
        add("--name", metavar="NAME", help="name of the job; default: the command's")
        add("--memory", type=int, metavar="MB", help="default: DEFAULT_MEMORY_LIMIT of the settings")
        add("--cpus", type=float, metavar="CORES", help="default: DEFAULT_CPU_LIMIT")
        add("--timeout", type=int, metavar="SECONDS", help="default: DEFAULT_TIMEOUT_SECONDS")
        add("--env", action="append", metavar="KEY[=VALUE]", help="repeatable; KEY alone: value from here")
        add("--template", metavar="NAME", help="environment template, whose variables --env overrides")
        add("--network", action="append", metavar="NAME[:ALIAS,...]", help="network to join; repeatable")
        add("--workdir", metavar="PATH", help="working directory in the container; default: the image's")
        add("--host", metavar="NAME", help="the host to run on; default: placed by weight and free slots")
        add("--priority", type=int, metavar="N", help="higher goes first; default: 0")
        add("--user", metavar="UID:GID", help="numeric ids above 1000; default: DEFAULT_USER")
        add("--writable-root", action="store_true", help="writable root filesystem, where policy allows it")
        add("--detach", action="store_true", help="enqueue only, and print the job's id alone")
        add("--quiet", action="store_true", help="the job's output alone; errors of our own still show")

    def run_from_argv(self, argv: list[str]) -> None:
        """As Django's, but whatever fails before the job exists is 125: 1 and 2 are the job's to use."""
        try:
            super().run_from_argv(argv)
        except SystemExit as end:
            if not self._parsed and end.code not in (None, 0):
                raise SystemExit(EXIT_NOT_RUN) from end
            raise

    def handle(self, *args: Any, words: Sequence[str] = (), **options: Any) -> None:
        """Enqueue, follow, exit as the job did. Raises SystemExit with any code but 0."""
        self._parsed = True
        job = _enqueued(words, options)
        quiet = bool(options["quiet"])
        if options["detach"]:
            self.stdout.write(str(job.pk))
            if not quiet and not EngineLease.holder(job.docker_host.engine_id):
                self.stderr.write(
                    f"No worker serves the host {job.docker_host.name!r} now; the job waits. "
                    "Start one with: python manage.py process_container_jobs",
                    style_func=str,
                )
            return
        # Django's wrappers hand unknown attributes on to the stream below.
        console = Console(cast("TextIO", self.stdout), cast("TextIO", self.stderr), quiet=quiet)
        code = _follow(job, console)
        if code:
            raise SystemExit(code)


def _follow(job: ContainerJob, console: Console) -> int:
    run = Foreground(job, _View(job, console))
    with _Warnings(console), _Interrupts(run.interrupt):
        try:
            ended = run.run()
        except NotRun as error:
            console.say(f"run_in_container: {error}")
            return EXIT_NOT_RUN
        except Detached as error:
            console.say(f"run_in_container: {error}")
            return EXIT_CANCELLED
        finally:
            console.clear()
    if not console.quiet:
        _sum_up(ended, console)
    return EXIT_READER_GONE if run.reader_gone else exit_code(ended)


def _sum_up(job: ContainerJob, console: Console) -> None:
    execution = job.latest_execution
    if execution is not None and execution.logs_truncated:
        console.say("run_in_container: the output went beyond LOG_MAX_BYTES; the rest was not kept.")
    elif execution is not None and execution.container_id and not execution.logs_complete:
        console.say("run_in_container: the end of the output could not be read from the engine.")
    if job.status != Status.COMPLETED:
        console.say(f"run_in_container: {job.status} ({job.exit_reason}): {job.exit_message}")
        console.say(f"The whole record: ContainerJob.objects.get(pk='{job.pk}')")
    elif job.exit_message:
        console.say(f"run_in_container: {job.exit_message}")


class _View:
    """The user's terminal, or whatever stands in its place."""

    def __init__(self, job: ContainerJob, console: Console) -> None:
        self._console = console
        self._what = f"{job.name or 'job'} on {job.docker_host.name}, job {str(job.pk)[:8]}"

    def output(self, stream: int, data: bytes, *, meanwhile: Callable[[], None]) -> None:
        """The job's bytes, on the stream they were written to."""
        write = self._console.write_out if stream == STDOUT else self._console.write_err
        write(data, meanwhile=meanwhile)

    def progress(self, progress: Progress) -> None:
        """One line: the state in a word, since when, of what."""
        tail = f": {progress.note}" if progress.note else ""
        self._console.draw(f"{progress.status} {int(progress.seconds)} s  {self._what}{tail}")

    def say(self, text: str) -> None:
        """A sentence on stderr."""
        self._console.say(f"run_in_container: {text}")


class _Interrupts:
    """Ctrl-C, SIGTERM and a closed terminal end the job; handlers can only be set in the main thread."""

    def __init__(self, interrupt: Callable[[], None]) -> None:
        self._interrupt = interrupt
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._previous[number] = signal.signal(number, self._heard)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self._interrupt()


class _Warnings(logging.Handler):
    """While a worker runs in this process, of all it logs only warnings show, on lines of their own."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console
        self._logger = logging.getLogger("container_manager")

    def __enter__(self) -> None:
        log = self._logger
        self._previous = log.handlers, log.propagate, log.level
        log.handlers, log.propagate = [self], False
        log.setLevel(logging.WARNING)

    def __exit__(self, *exc: object) -> None:
        self._logger.handlers, self._logger.propagate, level = self._previous
        self._logger.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        """The record as one line."""
        self._console.say(f"{record.levelname.lower()}: {self.format(record)}")


# ------------------------------------------------------------------------------------ what to run


def _enqueued(words: Sequence[str], options: Mapping[str, Any]) -> ContainerJob:
    if not words:
        raise _refusal("nothing to run. For example: run_in_container -- check --deploy")
    try:
        fields = _fields(options)
        if options["exec"]:
            fields.setdefault("name", words[0][:200])
            return ContainerJob.objects.create_job(
                options["image"] or _project_image(), list(words), **fields
            )
        return ContainerJob.objects.create_command_job(*words, image=options["image"], **fields)
    except InvalidJob as error:
        raise _refusal(f"{_OPTIONS.get(error.field, error.field)}: {error.message}") from error
    except ConfigurationError as error:
        raise _refusal(str(error)) from error
    except DatabaseError as error:
        if tables_problem():
            raise  # which is said in one place
        raise _refusal(f"the database refused the job: {str(error).strip()}") from error


def _fields(options: Mapping[str, Any]) -> dict[str, Any]:
    wishes = {
        "name": options["name"],
        "memory_limit": options["memory"],
        "cpu_limit": options["cpus"],
        "timeout_seconds": options["timeout"],
        "environment_vars": _environment(options["env"] or ()),
        "environment_template": options["template"],
        "network_configuration": [_network(text) for text in options["network"] or ()] or None,
        "working_directory": options["workdir"],
        "docker_host": None if options["host"] is None else _host(options["host"]),
        "priority": options["priority"],
        "user": options["user"],
        "read_only_root": False if options["writable_root"] else None,
    }
    return {name: value for name, value in wishes.items() if value is not None}


def _project_image() -> str:
    image = get_settings().COMMAND_IMAGE
    if not image:
        raise InvalidJob(
            "docker_image",
            "no image is given and CONTAINER_MANAGER_SETTINGS['COMMAND_IMAGE'] is empty. "
            "Set it to the tag that `build_job_image` printed, or build the image first.",
        )
    return image


def _environment(pairs: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            if key not in os.environ:
                raise InvalidJob(
                    "environment_vars", f"{key} is not set here. Export it, or write --env {key}=VALUE."
                )
            value = os.environ[key]
        found[key] = value
    return found


def _network(text: str) -> dict[str, Any]:
    name, _, aliases = text.partition(":")
    return {"network_name": name, "aliases": [alias for alias in aliases.split(",") if alias]}


def _host(name: str) -> ExecutorHost:
    host = ExecutorHost.objects.filter(name=name).first()
    if host is None:
        known = ", ".join(ExecutorHost.objects.order_by("name").values_list("name", flat=True)) or "none"
        raise InvalidJob("docker_host", f"there is no host named {name!r}. Known: {known}.")
    return host


def _refusal(text: str) -> CommandError:
    return CommandError(text, returncode=EXIT_NOT_RUN)
