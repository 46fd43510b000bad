"""The project at hand as a build sees it: its root, its Dockerfile, what it depends on, what is sent."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from django.apps import apps
from django.conf import settings
from django.db import connections

from container_manager.core.errors import ConfigurationError, InvalidJob
from container_manager.core.images import parse_image
from container_manager.executors.docker.context import IGNORE_FILE, Context, Ignore, walk
from container_manager.executors.docker.dockerfile import (
    CODE_FOLDER,
    PACKAGES_FOLDER,
    Copied,
    Dependencies,
    Pip,
    Plan,
    Present,
    render,
)
from container_manager.executors.docker.packages import collect

MANAGE = "manage.py"
#: The Dockerfile's name in the context. The engine takes it out before anything is copied.
SENT_DOCKERFILE = ".build-job-image.Dockerfile"
_INCLUDE = re.compile(r"\s*(?:-r|-c|--requirement|--constraint)(?:\s*=\s*|\s*)(\S+)")
_SETTINGS_WITH_PATHS = ("MIDDLEWARE", "AUTHENTICATION_BACKENDS", "EMAIL_BACKEND", "TASKS")
_SETTINGS_WITH_BACKENDS = ("CACHES", "STORAGES", "TEMPLATES", "DATABASES", "TASKS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the image is made. `plan` is None where the project's own Dockerfile says it all."""

    root: Path
    dockerfile: str
    plan: Plan | None
    requirements: tuple[str, ...] = ()  # for packages that are copied: what to take beside what is imported
    notes: tuple[str, ...] = ()  # for the user


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The command line's part. Empty means: find out."""

    context: str = ""
    dockerfile: str = ""
    generate: bool = False
    base_image: str = ""
    dependencies: str = "auto"
    requirements: str = ""


def find_root(context: str) -> Path:
    """The folder with manage.py. Raises ConfigurationError where none is found."""
    if context:
        root = Path(context).resolve()
        if not root.is_dir():
            raise ConfigurationError(f"--context: {context!r} is not a folder.")
        return root
    places = [Path.cwd(), Path(sys.argv[0]).parent]
    if isinstance(base := getattr(settings, "BASE_DIR", None), str | Path):
        places.append(Path(base))
    for place in places:
        if (place / MANAGE).is_file():
            return place.resolve()
    raise ConfigurationError(
        "--context: no manage.py is here, beside the running program or in BASE_DIR; name the project's root."
    )


def make_recipe(wishes: Wishes) -> Recipe:
    """Decide how the image is made. Raises ConfigurationError, which names the option to change."""
    root = find_root(wishes.context)
    own = _own_dockerfile(root, wishes)
    if own is not None:
        return Recipe(root=root, dockerfile=own.read_text(encoding="utf-8"), plan=None)
    dependencies, copied, notes = _dependencies(root, wishes)
    plan = Plan(
        base_image=_base_image(wishes.base_image),
        dependencies=dependencies,
        settings_module=str(settings.SETTINGS_MODULE or ""),
    )
    return Recipe(root=root, dockerfile=render(plan), plan=plan, requirements=copied, notes=notes)


def fill(context: Context, recipe: Recipe) -> None:
    """Put all that the recipe needs into the context. Raises ConfigurationError."""
    dependencies = recipe.plan.dependencies if recipe.plan else None
    prefix = CODE_FOLDER if isinstance(dependencies, Copied) else ""
    context.add_tree(recipe.root, _sources(recipe.root), prefix)
    if isinstance(dependencies, Pip):
        for name in dependencies.files:  # whatever .dockerignore says of them
            context.add(recipe.root / name, name)
    if isinstance(dependencies, Copied):
        for file in collect(_modules(), recipe.requirements, project=recipe.root):
            context.add(file.source, f"{PACKAGES_FOLDER}/{file.target}")
    context.replace_text(SENT_DOCKERFILE, recipe.dockerfile)
    context.replace_text(IGNORE_FILE, f"{SENT_DOCKERFILE}\n{IGNORE_FILE}\n")


def _sources(root: Path) -> Iterator[str]:
    data = [path for path in _data_places() if path.is_relative_to(root) and path != root]
    for name in walk(root, Ignore.of(root)):
        place = root / name
        if name != IGNORE_FILE and not any(place == path or path in place.parents for path in data):
            yield name


def _data_places() -> list[Path]:
    """Uploads and database files: the project's data are not its code."""
    found = [str(settings.MEDIA_ROOT)] if settings.MEDIA_ROOT else []
    for alias in connections:
        name = str(connections[alias].settings_dict["NAME"])
        if connections[alias].vendor == "sqlite" and name != ":memory:" and not name.startswith("file:"):
            found += [name, f"{name}-wal", f"{name}-shm", f"{name}-journal"]
    return [Path(place).resolve() for place in found]


# ---------------------------------------------------------------------------------- the Dockerfile


def _own_dockerfile(root: Path, wishes: Wishes) -> Path | None:
    if wishes.generate and wishes.dockerfile:
        raise ConfigurationError("--generate: cannot go with --dockerfile; leave one of them out.")
    if wishes.generate:
        return None
    path = Path(wishes.dockerfile) if wishes.dockerfile else root / "Dockerfile"
    if not path.is_file():
        if wishes.dockerfile:
            raise ConfigurationError(f"--dockerfile: there is no file {wishes.dockerfile!r}.")
        return None
    for option, is_given in (
        ("--base-image", wishes.base_image),
        ("--dependencies", wishes.dependencies != "auto"),
        ("--requirements", wishes.requirements),
    ):
        if is_given:
            raise ConfigurationError(
                f"{option}: {path} decides that itself. Leave the option out, or use --generate."
            )
    return path


def _base_image(wish: str) -> str:
    image = wish or f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
    try:
        parse_image(image)
    except InvalidJob as error:
        raise ConfigurationError(f"--base-image: {error.message}") from error
    return image


# ------------------------------------------------------------------------------------ dependencies


def _dependencies(root: Path, wishes: Wishes) -> tuple[Dependencies, tuple[str, ...], tuple[str, ...]]:
    """How they come into the image, what to copy beside what is imported, and notes for the user."""
    file = _requirements_file(root, wishes.requirements)
    declared = _declared(root) if file is None else None
    choice = wishes.dependencies
    notes: list[str] = []
    if choice == "auto":
        choice = "pip" if file or declared else "copy"
        if choice == "copy":
            notes.append(
                "neither requirements.txt nor dependencies in pyproject.toml: taking the packages that this "
                "environment has and the project uses. Name others with --requirements."
            )
    if choice == "none":
        return Present(), (), ()
    if choice == "copy":
        wanted = _names_in(root, file) if file else declared or ()
        return Copied(python=sys.version_info[:2]), tuple(wanted), tuple(notes)
    if file is not None:
        return Pip(files=_with_includes(root, file)), (), ()
    if not declared:
        raise ConfigurationError(
            "--dependencies: nothing says what pip is to install. Write requirements.txt, or name one with "
            "--requirements."
        )
    if (root / "uv.lock").exists() or (root / "poetry.lock").exists():
        notes.append(
            "lock files are not read: pip chooses by pyproject.toml. For the locked versions, export them to "
            "requirements.txt."
        )
    return Pip(requirements=declared), (), tuple(notes)


def _requirements_file(root: Path, wish: str) -> str | None:
    """Its path below the root; None where there is none."""
    if not wish:
        return "requirements.txt" if (root / "requirements.txt").is_file() else None
    path = next((place for place in (root / wish, Path(wish)) if place.is_file()), None)
    if path is None:
        raise ConfigurationError(f"--requirements: there is no file {wish!r} below {root}.")
    return _below(root, path)


def _below(root: Path, path: Path) -> str:
    resolved = path.resolve()
    if not resolved.is_relative_to(root):
        raise ConfigurationError(
            f"--requirements: {path} lies outside {root}, and only what is below it reaches the engine."
        )
    return resolved.relative_to(root).as_posix()


def _with_includes(root: Path, name: str) -> tuple[str, ...]:
    """The file and all that it includes by -r or -c."""
    found = [name]
    for each in found:
        for line in (root / each).read_text(encoding="utf-8").splitlines():
            match = _INCLUDE.match(line)
            if match is None or "://" in match.group(1):
                continue
            path = (root / each).parent / match.group(1)
            if not path.is_file():
                raise ConfigurationError(
                    f"--requirements: {each} includes {match.group(1)}, which is not there."
                )
            included = _below(root, path)
            if included not in found:
                found.append(included)
    return tuple(found)


def _names_in(root: Path, name: str) -> list[str]:
    """The requirements that a file and its includes name; options and addresses are passed over."""
    found = []
    for each in _with_includes(root, name):
        for line in (root / each).read_text(encoding="utf-8").splitlines():
            text = line.partition("#")[0].strip()
            if text and not text.startswith(("-", ".", "/")) and "://" not in text.partition("@")[0]:
                found.append(text)
    return found


def _declared(root: Path) -> tuple[str, ...] | None:
    """The dependencies in pyproject.toml; None where it says nothing of them."""
    file = root / "pyproject.toml"
    if not file.is_file():
        return None
    try:
        project: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}.") from error
    if "dependencies" in project.get("dynamic", ()):
        raise ConfigurationError(
            f"--requirements: {file} leaves its dependencies to the build; name a requirements file."
        )
    return tuple(project.get("dependencies", ())) or None


def _modules() -> set[str]:
    """Top-level modules that the project uses: its apps, what its settings name, and what is imported now.

    The last brings the database's driver, and whatever the apps' models import.
    """
    found = {"django", "container_manager"}
    found.update(_top(config.module.__name__) for config in apps.get_app_configs() if config.module)
    owned = packages_distributions().keys()
    named = {_top(text) for text in _paths_in_settings()}
    return found | ((named | {_top(name) for name in sys.modules}) & owned)


def _paths_in_settings() -> Iterator[str]:
    for name in _SETTINGS_WITH_PATHS:
        value = getattr(settings, name, ())
        yield from [value] if isinstance(value, str) else (text for text in value if isinstance(text, str))
    for name in _SETTINGS_WITH_BACKENDS:
        value = getattr(settings, name, ())
        for entry in value.values() if isinstance(value, dict) else value:
            if isinstance(entry, dict):
                yield from (str(entry[key]) for key in ("BACKEND", "ENGINE") if entry.get(key))


def _top(module: str) -> str:
    return module.partition(".")[0]
