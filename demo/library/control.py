"""Read the control format of Debian's package database: stanzas of `Field: value`, one per package."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]*")
_DOMAIN = re.compile(r"@([A-Za-z0-9.-]+)>?\s*$")


class MalformedStanza(ValueError):
    """A stanza that does not describe a package; the text says where and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A package, checked."""

    name: str
    version: str
    architecture: str
    section: str
    installed_kib: int | None
    maintainer_domain: str


def stanzas(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The stanzas with the number of their first line; continuation lines are left out."""
    fields: dict[str, str] = {}
    first = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            if fields:
                yield first, fields
            fields = {}
        elif not line[0].isspace():
            first = first if fields else number
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
    if fields:
        yield first, fields


def is_installed(fields: dict[str, str]) -> bool:
    """A removed package keeps its stanza for as long as its configuration files stay."""
    return fields.get("Status", "install ok installed").split()[-1] == "installed"


def entry(line: int, fields: dict[str, str]) -> Entry:
    """The package of a stanza that starts at `line`. Raises MalformedStanza."""
    name, version = fields.get("Package", ""), fields.get("Version", "")
    if not _NAME.fullmatch(name):
        raise MalformedStanza(f"line {line}: Package is {name!r}, which is not a package's name")
    if not version:
        raise MalformedStanza(f"line {line}: {name} has no Version")
    size = fields.get("Installed-Size")
    if size is not None and not size.isdecimal():
        raise MalformedStanza(f"line {line}: {name} has an Installed-Size of {size!r}, which is no number")
    domain = _DOMAIN.search(fields.get("Maintainer", ""))
    return Entry(
        name=name,
        version=version,
        architecture=fields.get("Architecture", ""),
        section=fields.get("Section", ""),
        installed_kib=int(size) if size is not None else None,
        maintainer_domain=domain[1].lower() if domain else "",
    )
