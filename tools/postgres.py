"""A private PostgreSQL cluster for the tests: own data, own port, own password, nothing kept.

    python tools/postgres.py start     prints a URL postgresql://user:password@127.0.0.1:port/postgres
    python tools/postgres.py stop

A commit survives the server's death and not the machine's: this is for tests and for nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import apt
from tools.private_server import PLACE, PrivateServer, ServerError
from tools.processes import Process

MINIMUM = 15
QUICK = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "listen_addresses": "'127.0.0.1'",
    "unix_socket_directories": "''",
    "timezone": "'UTC'",
}


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
class Cluster(PrivateServer):
    """One private cluster; another checkout of the project has another.

    One with a `name` is a test's own, to be harmed. `disk_mb`: its tables lie on a file system of that size
    (not the write-ahead log: a server that cannot write that gives up altogether); needs root.
    """

    name: str = ""
    disk_mb: int | None = None

    kind: ClassVar[str] = "pg"
    account: ClassVar[str] = "postgres"

    @property
    def home(self) -> Path:
        """Where data, log and password lie; the server's account owns it."""
        key = hashlib.sha256(str(self.project).encode()).hexdigest()[:8]
        return PLACE / "-".join(filter(None, [f"container-jobs-{self.kind}", key, self.name]))

    @property
    def data(self) -> Path:
        """The server's data directory."""
        return self.home / "data"

    def halt(self) -> None:
        """Stop the server and let clients go; data and address stay for `resume`."""
        self._control("--mode", "fast", "--wait", "stop")

    def resume(self) -> None:
        """Start the server again after `halt` or `kill`. It runs already: no effect."""
        if not self._running():
            self._launch()

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
                raise ServerError(f"the server's process {process.pid} outlived SIGKILL")
        # In a container without an init the dead server stays in the process table, and looks alive.
        pid_file.unlink()

    def _provide(self) -> None:
        if reason := refusal():
            raise ServerError(reason)
        if binaries() is None:
            try:
                apt.install(["postgresql"])
            except apt.CannotInstallError as error:
                raise ServerError(str(error)) from error
        if binaries() is None:
            raise ServerError(f"this machine's packages have no PostgreSQL {MINIMUM} or newer")

    def _create(self, password: str, port: int) -> str:
        secret = self._write("password", password)
        accounts = ["--username", "tests", "--auth", "scram-sha-256", "--pwfile", str(secret)]
        texts = ["--encoding", "UTF8", "--locale", "C.UTF-8"]
        places = ["--pgdata", str(self.data)]
        if self.disk_mb is not None:
            owner = self._owner()
            self.data.mkdir()
            options = f"size={self.disk_mb}m,mode=700,uid={owner.pw_uid},gid={owner.pw_gid}"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.data)], check=True)
            places += ["--waldir", f"{self.home}/wal"]
        self._run([f"{binaries()}/initdb", *places, "--no-sync", *accounts, *texts])
        settings = "".join(f"{name} = {value}\n" for name, value in {**QUICK, "port": str(port)}.items())
        with (self.data / "postgresql.conf").open("a") as configuration:
            configuration.write(settings)
        self._launch()
        return f"postgresql://tests:{password}@127.0.0.1:{port}/postgres"

    def _running(self) -> bool:
        if binaries() is None or not (self.data / "postmaster.pid").exists():
            return False
        command = [f"{binaries()}/pg_ctl", "--pgdata", str(self.data), "status"]
        return (
            subprocess.run(self._as_owner(command), capture_output=True, check=False, cwd="/").returncode == 0
        )

    def _halt(self) -> None:
        self._control("--mode", "immediate", "--wait", "stop")

    def _remove(self) -> None:
        if self.data.is_mount():
            if self._running():
                self._halt()
            subprocess.run(["umount", str(self.data)], check=True)
        super(Cluster, self)._remove()  # without arguments it means the class as it was before `slots`

    def _launch(self) -> None:
        self._control("--log", f"{self.home}/log", "--wait", "--timeout", "60", "start")

    def _control(self, *arguments: str) -> None:
        self._run([f"{binaries()}/pg_ctl", "--pgdata", str(self.data), *arguments])


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
    except (ServerError, OSError) as error:
        print(f"postgres: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
