"""Lay out the demo's input: the package database of this machine, which the image then holds as a file.

On a machine without dpkg the distributions of this Python stand in, written in the same format. Only
standard library, so that it runs before anything is installed.
"""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

SOURCE = Path("/var/lib/dpkg/status")
TARGET = Path(__file__).resolve().parent / "data" / "packages.txt"
FIELDS = ("Package", "Status", "Version", "Architecture", "Section", "Installed-Size", "Maintainer")


def from_dpkg(text: str) -> str:
    """The stanzas with the fields that the import reads; descriptions and dependencies stay behind."""
    kept = []
    for line in text.splitlines():
        if not line:
            kept.append("")
        elif line.partition(":")[0] in FIELDS:
            kept.append(line)
    return "\n".join(kept) + "\n"


def from_python() -> str:
    """One stanza per installed distribution."""
    found = {item.metadata["Name"]: item for item in distributions() if item.metadata["Name"]}
    return "\n".join(_stanza(name, found[name]) for name in sorted(found))


def _stanza(name: str, item: Distribution) -> str:
    sizes = [file.size or 0 for file in item.files or []]
    return (
        f"Package: {name}\nStatus: install ok installed\nVersion: {item.version}\nArchitecture: all\n"
        f"Section: python\nInstalled-Size: {sum(sizes) // 1024}\n"
    )


def export() -> Path:
    """Write the file anew where its content has changed (an unchanged file keeps the image's layer)."""
    text = from_dpkg(SOURCE.read_text(errors="replace")) if SOURCE.is_file() else from_python()
    TARGET.parent.mkdir(exist_ok=True)
    if not TARGET.exists() or TARGET.read_text() != text:
        TARGET.write_text(text)
    return TARGET


if __name__ == "__main__":
    print(f"input of the demo: {export()}", file=sys.stderr)
