"""The project's own image, for its management commands in containers."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from container_manager.conf import get_settings
from container_manager.core.errors import ConfigurationError, ExecutorError, HostFault, InvalidJob
from container_manager.core.images import parse_image
from container_manager.executors.docker.build import BuildFailed, BuiltImage, build_image
from container_manager.executors.docker.context import Context
from container_manager.executors.docker.executor import DockerExecutor
from container_manager.executors.registry import open_executor
from container_manager.management.command import JobCommand
from container_manager.management.project import SENT_DOCKERFILE, Recipe, Wishes, fill, make_recipe
from container_manager.models import ExecutorHost
from container_manager.models.admission import REGISTER_HINT

EXIT_INTERRUPTED = 130
LARGE_CONTEXT_MB = 200
_MB = 1024 * 1024


class Command(JobCommand):
    """`manage.py build_job_image`."""

    help = (
        "Build the project's image on a registered host, by the project's own Dockerfile or a generated one. "
        "The generated one installs what requirements.txt or pyproject.toml asks for; where neither does, it "
        "copies the packages of this environment. .dockerignore holds, and secrets (.env, keys), databases, "
        "uploads, .git and virtual environments are left out in any case, unless a `!` line names them."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The options; each has a default."""
        add = parser.add_argument
        add(
            "--tag",
            default="",
            metavar="TAG",
            help="default: COMMAND_IMAGE of the settings, else <project>-jobs:latest",
        )
        add("--host", default="", metavar="NAME", help="host that builds; needed where there are several")
        add("--context", default="", metavar="DIR", help="the project's root; default: where manage.py is")
        add(
            "--dockerfile", default="", metavar="PATH", help="default: Dockerfile in the root, if it is there"
        )
        add("--generate", action="store_true", help="use the generated Dockerfile all the same")
        add("--base-image", dest="base", default="", metavar="IMAGE", help="default: python:<ours>-slim")
        add(
            "--dependencies",
            choices=["auto", "pip", "copy", "none"],
            default="auto",
            help="pip: installed in the image; copy: taken from this environment, which needs no index but "
            "the same Python version; none: the base image has them; default: auto, which is pip where "
            "requirements are written down, else copy",
        )
        add(
            "--requirements",
            default="",
            metavar="FILE",
            help="default: requirements.txt in the root, if it is there",
        )
        add("--build-arg", action="append", metavar="KEY=VALUE", help="for the Dockerfile's ARG; repeatable")
        add("--no-cache", action="store_true", help="do every step anew")
        add("--print-dockerfile", action="store_true", help="print the Dockerfile, build nothing")
        add("--quiet", action="store_true", help="print the image's id alone")

    def handle(self, *args: Any, **options: Any) -> None:
        """Gather, send, report."""
        try:
            self._handle(options)
        except BuildFailed as failure:
            raise CommandError(_account(failure)) from failure
        except HostFault as error:
            raise CommandError(error.explained()) from error
        except ExecutorError as error:  # what is left: the base image cannot be had
            raise CommandError(f"--base-image: {error.explained()}") from error
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt as interrupt:
            raise CommandError("stopped; nothing was tagged.", returncode=EXIT_INTERRUPTED) from interrupt

    def _handle(self, options: Mapping[str, Any]) -> None:
        recipe = make_recipe(
            Wishes(
                context=options["context"],
                dockerfile=options["dockerfile"],
                generate=options["generate"],
                base_image=options["base"],
                dependencies=options["dependencies"],
                requirements=options["requirements"],
            )
        )
        if options["print_dockerfile"]:
            self.stdout.write(recipe.dockerfile, ending="")
            return
        tag = _tag(options["tag"], recipe.root)
        build_args = _build_args(options["build_arg"] or ())
        host = _host(options["host"])
        say = _silence if options["quiet"] else self._say
        for note in recipe.notes:
            say(f"Note: {note}")
        built = _build(host, recipe, tag, build_args, use_cache=not options["no_cache"], say=say)
        if options["quiet"]:
            self.stdout.write(built.image_id)
        else:
            self._report(built, host)

    def _say(self, line: str) -> None:
        self.stderr.write(line, style_func=str)
        self.stderr.flush()

    def _report(self, built: BuiltImage, host: ExecutorHost) -> None:
        for label, text in (
            ("Image", f"{built.tag} on {host.name}"),
            ("Id", built.image_id),
            ("Size", f"{built.size / _MB:.0f} MB with its base"),
            ("Time", f"{built.seconds:.1f} s; {built.cached_steps} of {built.steps} steps from the cache"),
        ):
            self.stdout.write(f"{label:<8}{text}")
        if built.tag != get_settings().COMMAND_IMAGE:
            self.stdout.write(f'Setting CONTAINER_MANAGER_SETTINGS["COMMAND_IMAGE"] = "{built.tag}"')


def _build(
    host: ExecutorHost,
    recipe: Recipe,
    tag: str,
    build_args: Mapping[str, str],
    *,
    use_cache: bool,
    say: Callable[[str], None],
) -> BuiltImage:
    executor = open_executor(host.executor_type, host.as_config())
    try:
        if not isinstance(executor, DockerExecutor):
            raise ConfigurationError(
                f"--host: {host.name!r} is of type {host.executor_type!r}; its jobs need no image."
            )
        host.record_up(executor.health())
        if recipe.plan is not None:
            executor.pull(recipe.plan.base_image, progress=say)
        with Context() as context:
            fill(context, recipe)
            sent = context.finish()
            say(f"Sending {context.files} files of {recipe.root}, {context.size / _MB:.1f} MB")
            if context.size > LARGE_CONTEXT_MB * _MB:
                say("Note: that is much; what the jobs do not need can be named in .dockerignore")
            return build_image(
                executor,
                sent,
                tag=tag,
                dockerfile=SENT_DOCKERFILE,
                build_args=build_args,
                use_cache=use_cache,
                progress=say,
            )
    finally:
        executor.close()


def _silence(line: str) -> None:
    """Nobody wants to hear it."""


def _account(failure: BuildFailed) -> str:
    lines = ["the build failed; nothing was tagged."]
    if failure.step:
        lines.append(failure.step)
        lines += [f"    {line}" for line in failure.tail]
    return "\n".join([*lines, str(failure)])


def _tag(wish: str, root: Path) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", root.name.lower()).strip("-") or "project"
    tag = wish or get_settings().COMMAND_IMAGE or f"{name}-jobs:latest"
    try:
        reference = parse_image(tag)
    except InvalidJob as error:
        raise ConfigurationError(f"--tag: {error.message}") from error
    if reference.digest:
        raise ConfigurationError(f"--tag: {tag!r} holds a digest, which a new image cannot be given.")
    return tag


def _build_args(pairs: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise ConfigurationError(f"--build-arg: {key!r} is not KEY=VALUE.")
        found[key] = value
    return found


def _host(name: str) -> ExecutorHost:
    hosts = list(ExecutorHost.objects.filter(is_active=True, executor_type="docker").order_by("name"))
    if name:
        host = ExecutorHost.objects.filter(name=name).first()
        if host is not None:
            return host
        problem = f"there is no host named {name!r}"
    elif len(hosts) == 1:
        return hosts[0]
    else:
        problem = "several hosts could build" if hosts else "no active Docker host is registered"
    remedy = f"Known: {', '.join(host.name for host in hosts)}." if hosts else f"{REGISTER_HINT}."
    raise ConfigurationError(f"--host: {problem}. {remedy}")
