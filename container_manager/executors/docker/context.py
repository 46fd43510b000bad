"""The build context: what of a folder goes to the engine, as a tar file that is the same every time."""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, NamedTuple, Self

from container_manager.core.errors import ConfigurationError

IGNORE_FILE = ".dockerignore"
#: Left out by name at any depth, whatever `.dockerignore` says: what is secret, and what is no source.
ALWAYS_IGNORED = (
    ".env", ".env.*", "*.env", ".envrc", "*.pem", "*.key", "*.p12", "*.pfx", "*.kdbx", "id_rsa", "id_dsa",
    "id_ecdsa", "id_ed25519", ".ssh", ".aws", ".azure", ".gnupg", ".kube", ".docker", ".netrc", ".pypirc",
    ".pgpass", ".git-credentials", ".htpasswd",
    "*.sqlite3", "*.sqlite3-*", "*.sqlite", "*.sqlite-*",
    ".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", "*.py[co]", ".tox", ".nox",
    "*.egg-info", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", ".coverage", ".idea",
    ".vscode", ".DS_Store", "*.swp", "*~",
)  # fmt: skip


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    text: str
    negated: bool


@dataclass(frozen=True, slots=True)
class Ignore:
    """What is left out: `ALWAYS_IGNORED`, and the rules of a `.dockerignore`, of which the last one wins.

    A `!` rule without wildcards that names such a file, or a path below such a folder, brings it back
    although it is in `ALWAYS_IGNORED`; a wildcard does not, so that `!src/**` takes no secret along.
    """

    rules: tuple[_Rule, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Ignore:
        """The rules of a `.dockerignore`, by the engine's grammar."""
        rules = []
        for line in text.removeprefix("\ufeff").splitlines():
            words = line.strip()
            if not words or words.startswith("#"):
                continue
            negated = words.startswith("!")
            path = os.path.normpath(words.removeprefix("!").strip()).lstrip("/")
            if path not in {"", "."}:
                rules.append(_Rule(re.compile(_expression(path)), path, negated))
        return cls(tuple(rules))

    @classmethod
    def of(cls, folder: Path) -> Ignore:
        """The rules of the folder's own `.dockerignore`."""
        file = folder / IGNORE_FILE
        return cls.parse(file.read_text(encoding="utf-8")) if file.is_file() else cls()

    def leaves_out(self, path: str) -> bool:
        """Whether a file or folder, given with slashes and relative to the root, stays behind."""
        places = _with_parents(path)
        always = next((place for place in places if _is_always_ignored(place)), "")
        if always and not any(self._names(rule, always, path) for rule in self.rules):
            return True
        left_out = False
        for rule in self.rules:
            if left_out is rule.negated and any(rule.pattern.fullmatch(place) for place in places):
                left_out = not rule.negated
        return left_out

    def may_hold_wanted(self, folder: str) -> bool:
        """Whether something below a folder that is left out may have been brought back."""
        if any(_is_always_ignored(place) for place in _with_parents(folder)):
            return any(rule.negated and rule.text.startswith(f"{folder}/") for rule in self.rules)
        return any(rule.negated and _can_reach(rule.text, folder) for rule in self.rules)

    @staticmethod
    def _names(rule: _Rule, ignored: str, path: str) -> bool:
        """Whether the rule brings `path` back, which is or lies below `ignored`."""
        if not rule.negated or re.search(r"[*?\[]", rule.text):
            return False
        return f"{rule.text}/".startswith(f"{ignored}/") and f"{path}/".startswith(f"{rule.text}/")


def walk(folder: Path, ignore: Ignore) -> Iterator[str]:
    """The files, links and folders below `folder` that are not left out, sorted, with slashes."""
    yield from _walk(folder, "", ignore)


def _walk(root: Path, below: str, ignore: Ignore) -> Iterator[str]:
    for name in sorted(entry.name for entry in (root / below).iterdir()):
        path = f"{below}/{name}" if below else name
        left_out = ignore.leaves_out(path)
        if not left_out:
            yield path
        mode = os.lstat(root / path).st_mode
        if stat.S_ISDIR(mode) and (not left_out or ignore.may_hold_wanted(path)):
            yield from _walk(root, path, ignore)


class Context:
    """A tar file on disk that grows entry by entry. The engine's layer cache hits while the content is equal.

    Owners are root and modes are 644 or 755: what the image holds, its user can read and not change.
    """

    def __init__(self) -> None:
        self.files = 0
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="build-context-")  # noqa: SIM115 - closed in close
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._held: set[str] = set()
        self._size = 0

    def add_tree(self, folder: Path, names: Iterable[str], prefix: str = "") -> None:
        """Add what `walk` found below a folder. Raises ConfigurationError for a file that cannot be read."""
        for name in names:
            self.add(folder / name, f"{prefix}/{name}" if prefix else name)

    def add(self, source: Path, name: str) -> None:
        """Add a file, a link as such, or a folder without its content; passes over sockets and devices."""
        if name in self._held:
            return
        facts = source.lstat()
        entry = _entry(name, facts.st_mtime)
        if stat.S_ISLNK(facts.st_mode):
            entry.type, entry.linkname = tarfile.SYMTYPE, str(source.readlink())
            self._tar.addfile(entry)
        elif stat.S_ISDIR(facts.st_mode):
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            self._tar.addfile(entry)
        elif stat.S_ISREG(facts.st_mode):
            entry.mode = 0o755 if facts.st_mode & 0o100 else 0o644
            try:
                with source.open("rb") as content:
                    entry.size = os.fstat(content.fileno()).st_size
                    self._tar.addfile(entry, content)
            except OSError as error:
                raise ConfigurationError(
                    f"{source} cannot be read for the build context: {error.strerror or error}. "
                    f"Mend it, or leave it out in {IGNORE_FILE}."
                ) from error
            self.files += 1
        else:
            return
        self._held.add(name)

    def replace_text(self, name: str, text: str) -> None:
        """Add a file of ours; of two entries with one name the later counts."""
        content = text.encode()
        entry = _entry(name, 0)
        entry.size = len(content)
        self._tar.addfile(entry, io.BytesIO(content))
        self._held.add(name)

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._size or self._file.tell()

    def finish(self) -> IO[bytes]:
        """The whole file, ready to be read from its beginning."""
        self._tar.close()
        self._size = self._file.tell()
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Remove it from the disk."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _entry(name: str, modified: float) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.mtime, entry.mode = int(max(0, modified)), 0o644
    entry.uname = entry.gname = "root"
    return entry


def _is_always_ignored(path: str) -> bool:
    name = path.rpartition("/")[2]
    return any(fnmatchcase(name, pattern) for pattern in ALWAYS_IGNORED)


def _with_parents(path: str) -> list[str]:
    """The path's parents from the top, and itself."""
    parts = path.split("/")
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _can_reach(pattern: str, folder: str) -> bool:
    """Whether a pattern can match something below a folder; True where that is hard to say."""
    for wanted, there in zip(pattern.split("/"), folder.split("/"), strict=False):
        if "**" in wanted:
            return True
        if not re.fullmatch(_expression(wanted), there):
            return False
    return len(pattern.split("/")) > len(folder.split("/"))


def _expression(pattern: str) -> str:
    """A path pattern of `.dockerignore` as a regular expression: `**` crosses folders, `*` and `?` do not."""
    parts: list[str] = []
    position = 0
    while position < len(pattern):
        if pattern.startswith("**/", position):
            parts.append("(?:.*/)?")
            position += 3
        elif pattern.startswith("**", position):
            parts.append(".*")
            position += 2
        elif pattern[position] == "[" and (end := pattern.find("]", position + 2)) > 0:
            content = pattern[position + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            parts.append(f"[{content}]")
            position = end + 1
        else:
            character = pattern[position]
            if character == "\\" and position + 1 < len(pattern):
                position += 1
                character = re.escape(pattern[position])
            else:
                character = {"*": "[^/]*", "?": "[^/]"}.get(character) or re.escape(character)
            parts.append(character)
            position += 1
    return "".join(parts)
