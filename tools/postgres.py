"""A private PostgreSQL cluster for the tests: own data, own port, own password, nothing kept.

    python tools/postgres.py start     prints a URL postgresql://user:password@127.0.0.1:port/postgres
    python tools/postgres.py stop

A commit survives the server's death and not the machine's: this is for tests and for nothing else.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import apt
from tools.processes import Process

PROJECT = Path(__file__).resolve().parent.parent
# The server's account must be able to reach its data; a checkout often lies in somebody's private home.
PLACE = Path("/var/tmp")  # noqa: S108 - below it only a directory that belongs to us is used
MINIMUM = 15
QUICK = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "listen_addresses": "'127.0.0.1'",
    "unix_socket_directories": "''",
    "timezone": "'UTC'",
}


class PostgresError(RuntimeError):
    """PostgreSQL cannot be had here; the text says why and what would help."""


def binaries() -> Path | None:
    """The directory of the newest server's programs that is new enough; None where there is none."""
    folders = sorted(
        (path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()),
        key=lambda path: int(path.parent.name),
    )
    if folders and int(folders[-1].parent.name) >= MINIMUM:
        return folders[-1]
    elsewhere = shutil.which("initdb")
    return Path(elsewhere).resolve().parent if elsewhere else None


def refusal() -> str:
    """Why there can be no cluster on this machine; empty where there can (maybe after an install)."""
    if binaries() is None and (reason := apt.may_install()):
        return f"PostgreSQL {MINIMUM} or newer is missing, and {reason}"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """One private cluster; another checkout of the project has another.

    One with a `name` is a test's own, to be harmed. `disk_mb`: its tables lie on a file system of that size
    (not the write-ahead log: a server that cannot write that gives up altogether); needs root.
    """

    project: Path = PROJECT
    name: str = ""
    disk_mb: int | None = None

    @property
    def home(self) -> Path:
        """Where data, log and password lie; the server's account owns it."""
        key = hashlib.sha256(str(self.project).encode()).hexdigest()[:8]
        return PLACE / "-".join(filter(None, ["container-jobs-pg", key, self.name]))

    @property
    def data(self) -> Path:
        """The server's data directory."""
        return self.home / "data"

    def start(self) -> str:
        """Start it, or find it running; returns its URL. Raises `PostgresError`."""
        programs = self._programs()
        with self._locked():
            url = self.home / "url"
            if url.exists() and self._running(programs):
                return url.read_text()
            self._remove(programs)
            return self._create(programs)

    def stop(self) -> None:
        """Stop it and remove everything of it. No cluster: no effect."""
        programs = binaries()
        if programs is not None and self.home.exists():
            with self._locked():
                self._remove(programs)

    def halt(self) -> None:
        """Stop the server and let clients go; data and address stay for `resume`."""
        self._control("--mode", "fast", "--wait", "stop")

    def resume(self) -> None:
        """Start the server again after `halt` or `kill`. It runs already: no effect."""
        programs = self._programs()
        if not self._running(programs):
            self._launch(programs)

    def restart(self) -> None:
        """Stop and start it in one go, as an administrator does."""
        self._control("--log", f"{self.home}/log", "--mode", "fast", "--wait", "restart")

    def kill(self) -> None:
        """SIGKILL for the server and all its processes, as when the machine's memory runs out."""
        pid_file = self.data / "postmaster.pid"
        server = Process.of(int(pid_file.read_text().split()[0]))
        family = [server, *_children(server.pid)]
        for process in family:
            process.signal(signal.SIGKILL)
        for process in family:
            if not process.wait(30):
                raise PostgresError(f"the server's process {process.pid} outlived SIGKILL")
        # In a container without an init the dead server stays in the process table, and looks alive.
        pid_file.unlink()

    def _control(self, *arguments: str) -> None:
        self._run([f"{self._programs()}/pg_ctl", "--pgdata", str(self.data), *arguments])

    def _launch(self, programs: Path) -> None:
        waiting = ["--log", f"{self.home}/log", "--wait", "--timeout", "60"]
        self._run([f"{programs}/pg_ctl", "--pgdata", str(self.data), *waiting, "start"])

    def _create(self, programs: Path) -> str:
        owner = _account()
        self.home.mkdir(mode=0o700)
        os.chown(self.home, owner.pw_uid, owner.pw_gid)
        password, port = secrets.token_urlsafe(18), _free_port()
        secret = self.home / "password"
        secret.touch(mode=0o600)
        secret.write_text(password)
        os.chown(secret, owner.pw_uid, owner.pw_gid)
        accounts = ["--username", "tests", "--auth", "scram-sha-256", "--pwfile", str(secret)]
        texts = ["--encoding", "UTF8", "--locale", "C.UTF-8"]
        places = ["--pgdata", str(self.data)]
        if self.disk_mb is not None:
            self.data.mkdir()
            options = f"size={self.disk_mb}m,mode=700,uid={owner.pw_uid},gid={owner.pw_gid}"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.data)], check=True)
            places += ["--waldir", f"{self.home}/wal"]
        self._run([f"{programs}/initdb", *places, "--no-sync", *accounts, *texts])
        settings = "".join(f"{name} = {value}\n" for name, value in {**QUICK, "port": str(port)}.items())
        with (self.data / "postgresql.conf").open("a") as configuration:
            configuration.write(settings)
        self._launch(programs)
        url = f"postgresql://tests:{password}@127.0.0.1:{port}/postgres"
        draft = self.home / "url"
        draft.touch(mode=0o600)
        draft.write_text(url)
        return url

    def _remove(self, programs: Path) -> None:
        if not self.home.exists():
            return
        if self.home.is_symlink() or self.home.stat().st_uid != _account().pw_uid:
            raise PostgresError(f"{self.home} belongs to somebody else: remove it, it is in the way")
        if self._running(programs):
            self._control("--mode", "immediate", "--wait", "stop")
        if self.data.is_mount():
            subprocess.run(["umount", str(self.data)], check=True)
        shutil.rmtree(self.home)
        if self.name:
            self.home.with_suffix(".lock").unlink(missing_ok=True)

    def _running(self, programs: Path) -> bool:
        if not (self.data / "postmaster.pid").exists():
            return False
        command = [f"{programs}/pg_ctl", "--pgdata", str(self.data), "status"]
        return subprocess.run(_as_owner(command), capture_output=True, check=False, cwd="/").returncode == 0

    def _run(self, command: list[str]) -> None:
        # The server keeps whatever it inherits open: a pipe of ours would never end.
        log = self.home / "tool.log"
        with log.open("w") as out:
            code = subprocess.run(
                _as_owner(command), stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", check=False
            ).returncode
        if code:
            server = self.home / "log"
            text = log.read_text() + (server.read_text() if server.exists() else "")
            raise PostgresError(f"{Path(command[0]).name} failed with exit code {code}:\n{text[-2000:]}")

    def _programs(self) -> Path:
        if reason := refusal():
            raise PostgresError(reason)
        if binaries() is None:
            try:
                apt.install(["postgresql"])
            except apt.CannotInstallError as error:
                raise PostgresError(str(error)) from error
        programs = binaries()
        if programs is None:
            raise PostgresError(f"this machine's packages have no PostgreSQL {MINIMUM} or newer")
        return programs

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock_file = self.home.with_suffix(".lock")
        with os.fdopen(os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _children(pid: int) -> list[Process]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                found.append(Process.of(int(folder.name)))
        except (OSError, ProcessLookupError):
            continue  # it ended while we looked
    return found


def _account() -> pwd.struct_passwd:
    """Whom the server runs as: it refuses to be root."""
    return pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


def _as_owner(command: list[str]) -> list[str]:
    return ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else command


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="A private PostgreSQL for the tests.")
    parser.add_argument("act", choices=["start", "stop"])
    options = parser.parse_args()
    try:
        if options.act == "start":
            print(Cluster().start())
        else:
            Cluster().stop()
    except (PostgresError, OSError) as error:
        print(f"postgres: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
