"""Check the links of the Markdown files: the file must exist, and so must the heading."""

from __future__ import annotations

import re
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.MULTILINE)
CODE = re.compile(r"^(```|~~~).*?^\1\s*$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def documents() -> list[Path]:
    """What is written for people: the files at the top, and docs/."""
    return sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"), *PROJECT.glob("demo/**/*.md")])


def anchors(text: str) -> set[str]:
    """The names that headings have in links, as GitHub and most renderers make them."""
    names: set[str] = set()
    fences = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
    for heading in HEADING.findall(fences.sub("", text)):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number, unique = 0, name
        while unique in names:
            number += 1
            unique = f"{name}-{number}"
        names.add(unique)
    return names


def broken(document: Path) -> list[str]:
    """The links of one document that lead nowhere, each with its line. The web is not called."""
    text = document.read_text()
    # Same length, so that positions stay true.
    prose = CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    problems = []
    for found in LINK.finditer(prose):
        target = found[1]
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (document.parent / name).resolve() if name else document
        line = prose.count("\n", 0, found.start()) + 1
        where = f"{document.relative_to(PROJECT)}:{line}"
        if not place.exists():
            problems.append(f"{where}: {target} does not exist")
        elif anchor and place.suffix == ".md" and anchor not in anchors(place.read_text()):
            problems.append(f"{where}: {target} names no heading")
    return problems


def main() -> int:
    """Print what is broken; returns the exit code."""
    found = documents()
    problems = [problem for document in found for problem in broken(document)]
    print("\n".join(problems) or f"links: {len(found)} documents, all links lead somewhere")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
