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
from container_manager.models import ExecutorHost

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
            help="the host's name; an existing one is updated; default: local",
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
        url = options["url"] or (_process_url() if options["process"] else _engine_url())
        existing = ExecutorHost.objects.filter(name=options["name"]).first()
        host = existing or ExecutorHost(name=options["name"])
        if existing is not None and (
            existing.connection_string != url or existing.executor_type != executor_type
        ):
            host.engine_id = ""  # another address on purpose: bind anew
        host.connection_string, host.executor_type, host.is_active = url, executor_type, True
        if options["max_jobs"] is not None:
            host.max_concurrent_jobs = options["max_jobs"]
        try:
            host.clean()
            executor = open_executor(executor_type, host.as_config())
        except ValidationError as error:
            raise CommandError(
                "; ".join(f"{name}: {' '.join(texts)}" for name, texts in error.message_dict.items())
            ) from error
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        try:
            facts = executor.health()
            host.save()
            host.record_up(facts)
        except HostFault as error:
            raise CommandError(f"nothing was registered: {error}") from error
        finally:
            executor.close()
        self.stdout.write(
            f"{'Updated' if existing else 'Registered'} host {host.name!r}: {url}, "
            f"engine {facts.engine_version}, {facts.cpus} CPUs."
        )
        self.stdout.write("Start a worker with: python manage.py process_container_jobs")


def _engine_url() -> str:
    named = os.environ.get("DOCKER_HOST", "")
    if named:
        return named
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
