"""The Dockerfile of a project that has none: pure text from a plan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

HOME = "/app"
PACKAGES = "/opt/packages"
REQUIREMENTS = "/opt/requirements"
USER = "10001:10001"
#: Where the parts lie in the build context when packages are copied: side by side, so that `COPY` of the
#: code does not take the packages with it.
CODE_FOLDER = "code"
PACKAGES_FOLDER = "packages"

# Unchecked: the image does not change, so no import has to look at the source.
_COMPILE = (
    "import {also}compileall, py_compile; compileall.compile_dir({place!r}, quiet=2, "
    "invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)"
)
_SAME_PYTHON = (
    "import sys; have = sys.version_info[:2]; sys.exit(0 if have == {wanted!r} else "
    "'the packages are for Python %d.%d, the base image has %d.%d' % ({wanted!r} + have))"
)
_PIP = ("python", "-m", "pip", "install", "--no-cache-dir", "--disable-pip-version-check")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pip:
    """Dependencies are installed from an index, by files in the context or by requirements as such."""

    files: tuple[str, ...] = ()  # relative to the context; the first is the one to install
    requirements: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """Dependencies are copied from the environment that builds, for an interpreter of the same version."""

    python: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """The base image holds them already."""


Dependencies = Pip | Copied | Present


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the image is made of."""

    base_image: str
    dependencies: Dependencies
    settings_module: str = ""  # empty: not set


def render(plan: Plan) -> str:
    """The Dockerfile. What changes seldom stands first, so that a change of the code is one cheap layer.

    Each command is in exec form: the base image needs Python and no shell. Everything belongs to root and
    the job's user may only read it.
    """
    environment = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    code = "."
    if isinstance(plan.dependencies, Copied):
        environment["PYTHONPATH"] = PACKAGES
        code = CODE_FOLDER
    lines = [
        "# Written by build_job_image. Save it as Dockerfile in the project's root to make it your own.",
        f"FROM {plan.base_image}",
        "",
        _env(environment),
        f"WORKDIR {HOME}",
        "",
        "# Dependencies come before the code: a change of the code does not touch this layer.",
        *_dependency_lines(plan.dependencies),
        "",
        f"COPY {_words([code, './'])}",
        "# Compiled once here, not at each job's start; fails where Django or this package is missing.",
        _run("python", "-c", _compile(HOME, also="django, container_manager, ")),
        "",
    ]
    if plan.settings_module:
        lines.append(_env({"DJANGO_SETTINGS_MODULE": plan.settings_module}))
    lines += [f"USER {USER}", f"CMD {_words(['python', 'manage.py', 'check'])}", ""]
    return "\n".join(lines)


def _dependency_lines(dependencies: Dependencies) -> list[str]:
    match dependencies:
        case Present():
            return ["# They are in the base image."]
        case Copied():
            return [
                "# Copied from the environment that ran build_job_image; not in the project's folder.",
                _run("python", "-c", _SAME_PYTHON.format(wanted=dependencies.python)),
                f"COPY {_words([PACKAGES_FOLDER, PACKAGES + '/'])}",
                _run("python", "-c", _compile(PACKAGES)),
            ]
        case Pip():
            copies = [
                f"COPY {_words([name, f'{PurePosixPath(REQUIREMENTS, name).parent}/'])}"
                for name in dependencies.files
            ]
            wanted = [*dependencies.requirements]
            if dependencies.files:
                wanted += ["-r", f"{REQUIREMENTS}/{dependencies.files[0]}"]
            return [*copies, _run(*_PIP, *wanted)]


def _compile(place: str, also: str = "") -> str:
    return _COMPILE.format(place=place, also=also)


def _run(*words: str) -> str:
    return f"RUN {_words(words)}"


def _words(words: Sequence[str]) -> str:
    return json.dumps(list(words), ensure_ascii=False)


def _env(variables: dict[str, str]) -> str:
    return "ENV " + " ".join(f"{name}={json.dumps(value)}" for name, value in variables.items())
