"""Register the engine of this machine as a host, in one command."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError

from container_manager.core.errors import ConfigurationError, HostFault
from container_manager.executors.registry import PROCESS, open_executor
from container_manager.management.command import JobCommand
from container_manager.models import ContainerJob, ExecutorHost

_SOCKETS = ("/var/run/docker.sock", "{runtime}/docker.sock", "{home}/.docker/run/docker.sock")


class Command(JobCommand):
    """`manage.py register_local_host`."""

    help = "Register the Docker Engine of this machine as a host for jobs, and check that it answers."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The options; without any, the engine is found by DOCKER_HOST or the usual sockets."""
        parser.add_argument(
            "--name",
            default="local",
            metavar="NAME",
            help="the host's name; an existing one gets this address, and new jobs even if it was inactive; "
            "default: local",
        )
        parser.add_argument(
            "--url", default="", metavar="URL", help="unix:///path or tcp://host:port instead of looking"
        )
        parser.add_argument(
            "--max-jobs",
            type=int,
            default=None,
            metavar="N",
            help="jobs at the same time on this host; default: 10, or what an existing host has",
        )
        parser.add_argument(
            "--process",
            action="store_true",
            help="no engine: plain processes without isolation (development)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Find, check, store."""
        executor_type = PROCESS if options["process"] else "docker"
        url, origin = _address(options["url"], executor_type)
        existing = ExecutorHost.objects.filter(name=options["name"]).first()
        host = existing or ExecutorHost(name=options["name"])
        moved = (host.connection_string, host.executor_type) != (url, executor_type)
        was_resting = not host.is_active
        host.connection_string, host.executor_type, host.is_active = url, executor_type, True
        if options["max_jobs"] is not None:
            host.max_concurrent_jobs = options["max_jobs"]
        said_by = {**_OPTIONS, "connection_string": origin}
        try:
            host.clean()
            executor = open_executor(executor_type, host.as_config())
        except ValidationError as error:
            problems = error.message_dict.items()
            raise CommandError(
                "; ".join(f"{said_by.get(name, name)}: {' '.join(texts)}" for name, texts in problems)
            ) from error
        except ConfigurationError as error:
            name, separator, text = str(error).partition(": ")
            raise CommandError(f"{said_by.get(name, name)}{separator}{text}") from error
        try:
            facts = executor.health()
            written = _WRITTEN
            if moved:
                _unbind(host, facts.engine_id)
                written = [*_WRITTEN, "engine_id"]
            else:
                host.bind(facts)
            host.save(update_fields=written if existing else None)
            host.record_up(facts)
        except HostFault as error:
            raise CommandError(f"nothing was registered: {error}") from error
        finally:
            executor.close()
        self.stdout.write(
            f"{'Updated' if existing else 'Registered'} host {host.name!r}: {url}, "
            f"engine {facts.engine_version}, {facts.cpus} CPUs."
        )
        if was_resting:
            self.stdout.write("It was inactive and gets new jobs again.")
        self.stdout.write("Start a worker with: python manage.py process_container_jobs")


#: Where the user said what a column holds.
_OPTIONS = {"name": "--name", "max_concurrent_jobs": "--max-jobs", "executor_type": "--process"}
#: What is written of a host that is there; the rest may be changed by others while its engine is asked.
_WRITTEN = ["connection_string", "executor_type", "is_active", "max_concurrent_jobs"]


def _unbind(host: ExecutorHost, engine_id: str) -> None:
    """Let a host with a new address be bound anew, unless its jobs are on the engine that it has."""
    if host.engine_id in ("", engine_id):
        return
    jobs = ContainerJob.objects.active().filter(docker_host=host).count()
    if jobs:
        raise CommandError(
            f"nothing was registered: on the engine that the host {host.name!r} has now, {jobs} of its jobs "
            "are under way. Wait for their end, or register the other engine with a --name of its own."
        )
    host.engine_id = ""


def _address(url: str, executor_type: str) -> tuple[str, str]:
    """Where the engine is, and who says so."""
    if url:
        return url, "--url"
    if executor_type == PROCESS:
        return _process_url(), "--process"
    if named := os.environ.get("DOCKER_HOST", ""):
        return named, "DOCKER_HOST"
    return _engine_url(), "the engine's socket"


def _engine_url() -> str:
    places = [
        Path(template.format(runtime=os.environ.get("XDG_RUNTIME_DIR", "/run/user/0"), home=Path.home()))
        for template in _SOCKETS
    ]
    for path in places:
        if path.exists():
            return f"unix://{path}"
    looked = ", ".join(str(path) for path in places)
    raise CommandError(
        f"no Docker Engine was found: DOCKER_HOST is not set and none of {looked} exists. "
        "Start the engine, or give its address with --url, or use --process for development without Docker."
    )


def _process_url() -> str:
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return f"process://{base / 'container-jobs'}"
