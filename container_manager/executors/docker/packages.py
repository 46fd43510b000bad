"""The installed packages that a project needs, as files: for images that are built without an index.

Where they come from is the environment that asks. Nothing is imported from them, only their metadata is read.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import (
    Distribution,
    PackageNotFoundError,
    distribution,
    distributions,
    packages_distributions,
)
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from container_manager.core.errors import ConfigurationError
from container_manager.executors.docker.context import Ignore, walk

#: What an installer notes about this machine.
_LOCAL_NOTES = {"direct_url.json", "uv_cache.json", "uv_build.json", "REQUESTED", "INSTALLER"}
#: Compiled anew in the image; paths of this machine; sources of translations, which are a third of Django.
_UNWANTED = {".pyc", ".pth", ".po"}
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


@dataclass(frozen=True, slots=True, order=True)
class PackageFile:
    """A file and its place below the folder of packages."""

    target: str
    source: Path


def collect(modules: Iterable[str], requirements: Iterable[str], *, project: Path) -> list[PackageFile]:
    """The files of everything that provides the modules or satisfies the requirements, with what that needs.

    `modules` are top-level import names. One that lies in the project's folder, or that Python brings along,
    is passed over; one that belongs to no installed distribution is taken from its own place. Raises
    ConfigurationError for a requirement that is not installed here.
    """
    owners = packages_distributions()
    wanted = list(requirements)
    files: set[PackageFile] = set()
    for module in sorted(set(modules)):
        if module in sys.stdlib_module_names:
            continue
        if module in owners:
            wanted += owners[module]
        else:
            loose = list(_loose_files(module, project))
            files.update(loose)
            wanted += _editable_owners(loose)
    for found in _with_requirements(wanted):
        files.update(_installed_files(found))
    return sorted(files)


def _with_requirements(wanted: Iterable[str]) -> list[Distribution]:
    found: dict[str, Distribution] = {}
    done: set[tuple[str, str]] = set()
    waiting = [(*_parsed(text), True) for text in wanted]
    while waiting:
        name, extras, must = waiting.pop()
        if must or name in found or _is_installed(name):
            found.setdefault(name, _distribution(name))
        else:
            continue  # for another platform or Python version, else the installer had brought it
        for extra in ("", *extras):
            if (name, extra) in done:
                continue
            done.add((name, extra))
            for requirement in found[name].requires or ():
                text, _, marker = requirement.partition(";")
                asked = _EXTRA.search(marker)
                if (asked.group(1) if asked else "") == extra:
                    waiting.append((*_parsed(text), False))
    return list(found.values())


def _parsed(requirement: str) -> tuple[str, tuple[str, ...]]:
    match = _REQUIREMENT.match(requirement)
    if match is None:
        raise ConfigurationError(f"the requirement {requirement!r} does not begin with a package's name.")
    name = re.sub(r"[-_.]+", "-", match.group(1)).lower()
    return name, tuple(extra.strip() for extra in (match.group(2) or "").split(",") if extra.strip())


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _distribution(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError as error:
        raise ConfigurationError(
            f"the package {name!r} is not installed here, so it cannot be copied. Install it, or let pip do "
            "that in the image: --dependencies pip."
        ) from error


def _installed_files(found: Distribution) -> Iterator[PackageFile]:
    if found.files is None:
        raise ConfigurationError(
            f"the package {found.name!r} came without a list of its files, so it cannot be copied. "
            "Let pip install it in the image: --dependencies pip."
        )
    editable = _editable_place(found) is not None
    for file in found.files:
        folder = file.parts[0]
        unwanted = ".." in file.parts or "__pycache__" in file.parts or file.suffix in _UNWANTED
        if unwanted or file.name in _LOCAL_NOTES or (editable and not folder.endswith(".dist-info")):
            continue
        source = Path(str(found.locate_file(file)))
        if source.is_file():
            yield PackageFile(file.as_posix(), source)


def _editable_place(found: Distribution) -> Path | None:
    """Where the sources of a distribution lie that was installed to be edited; None for any other."""
    note = json.loads(found.read_text("direct_url.json") or "{}")
    if not note.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlsplit(note["url"]).path)).resolve()


def _editable_owners(files: Iterable[PackageFile]) -> list[str]:
    """The editable distributions whose sources these files are: what they require is needed too."""
    owners = []
    for found in distributions():
        place = _editable_place(found)
        if place is not None and any(file.source.is_relative_to(place) for file in files):
            owners.append(found.name)
    return owners


def _loose_files(module: str, project: Path) -> Iterator[PackageFile]:
    """A module that no distribution owns: on the path by itself, or installed to be edited in its place."""
    spec = find_spec(module)
    if spec is None:
        raise ConfigurationError(f"the module {module!r} cannot be found, so it cannot be copied.")
    for place in spec.submodule_search_locations or ():
        folder = Path(place).resolve()
        if not folder.is_relative_to(project):
            for name in walk(folder, Ignore()):
                if (folder / name).is_file():
                    yield PackageFile(f"{module}/{name}", folder / name)
    if spec.submodule_search_locations is None and spec.origin and Path(spec.origin).is_file():
        source = Path(spec.origin).resolve()
        if not source.is_relative_to(project):
            yield PackageFile(source.name, source)
