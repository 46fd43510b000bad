"""What the private database servers of the tests have in common: one per checkout, with its own data, port
and password; found again by a later run, and taken away without a trace.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

PROJECT = Path(__file__).resolve().parent.parent
# The server's account must be able to reach its data; a checkout often lies in somebody's private home.
PLACE = Path("/var/tmp")  # noqa: S108 - below it only a directory that belongs to us is used


class ServerError(RuntimeError):
    """A server cannot be had here; the text says why and what would help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateServer(ABC):
    """One private server; another checkout of the project has another."""

    project: Path = PROJECT

    kind: ClassVar[str]  # in the name of its directory
    account: ClassVar[str]  # whom it runs as where we are root, which servers refuse to be

    @property
    def home(self) -> Path:
        """Where data, log and password lie; the server's account owns it."""
        digest = hashlib.sha256(str(self.project).encode()).hexdigest()[:8]
        return PLACE / f"container-jobs-{self.kind}-{digest}"

    def start(self) -> str:
        """Start it, or find it running; returns its URL. Raises `ServerError`."""
        self._provide()
        with self._locked():
            known = self.home / "url"
            if known.exists() and self._running():
                return known.read_text()
            self._remove()
            owner = self._owner()
            self.home.mkdir(mode=0o700)
            os.chown(self.home, owner.pw_uid, owner.pw_gid)
            url = self._create(secrets.token_urlsafe(18), _free_port())
            # It is there whole or not at all, whenever this run is killed.
            self._write("url.new", url).rename(known)
            return url

    def stop(self) -> None:
        """Stop it and remove everything of it. No server: no effect."""
        if self.home.exists():
            with self._locked():
                self._remove()

    @abstractmethod
    def _provide(self) -> None:
        """See that the server's programs are there, and install them where we may. Raises `ServerError`."""

    @abstractmethod
    def _create(self, password: str, port: int) -> str:
        """Make its data in `home`, and start it; returns its URL. Raises `ServerError`."""

    @abstractmethod
    def _running(self) -> bool:
        """Whether a server works on the data in `home`."""

    @abstractmethod
    def _halt(self) -> None:
        """Stop that server, without care for its data."""

    def _remove(self) -> None:
        if not self.home.exists():
            return
        if self.home.is_symlink() or self.home.stat().st_uid != self._owner().pw_uid:
            raise ServerError(f"{self.home} belongs to somebody else: remove it, it is in the way")
        if self._running():
            self._halt()
        shutil.rmtree(self.home)

    def _write(self, name: str, text: str) -> Path:
        """A file in `home` that only the server's account can read."""
        owner, path = self._owner(), self.home / name
        path.touch(mode=0o600)
        path.write_text(text)
        os.chown(path, owner.pw_uid, owner.pw_gid)
        return path

    def _run(self, command: list[str]) -> None:
        """Run one of the server's programs as its account. Raises `ServerError` with what was said."""
        # A server keeps whatever it inherits open: a pipe of ours would never end.
        log = self.home / "tool.log"
        with log.open("w") as out:
            code = subprocess.run(
                self._as_owner(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd="/",
                check=False,
            ).returncode
        if code:
            text = log.read_text() + self._said()
            raise ServerError(f"{Path(command[0]).name} failed with exit code {code}:\n{text[-2000:]}")

    def _said(self) -> str:
        """What the server itself wrote into its log."""
        log = self.home / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    def _owner(self) -> pwd.struct_passwd:
        return pwd.getpwnam(self.account) if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())

    def _as_owner(self, command: list[str]) -> list[str]:
        return ["runuser", "-u", self.account, "--", *command] if os.geteuid() == 0 else command

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with this server: runs that start and stop it wait for each other."""
        path = self.home.with_suffix(".lock")
        while True:
            with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                # Whoever held it before may have removed the file: then the lock we got guards nothing.
                if not path.exists() or path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
                    continue
                yield
                if not self.home.exists():
                    path.unlink()
                return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
