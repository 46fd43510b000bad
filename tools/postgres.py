"""A private PostgreSQL cluster for the tests: own data, own port, own password, nothing kept.

    python tools/postgres.py start     prints a URL postgresql://user:password@127.0.0.1:port/postgres
    python tools/postgres.py stop

Durability is switched off: this is for tests and for nothing else.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import apt
from tools.private_server import PrivateServer, ServerError

MINIMUM = 15
QUICK = {
    "fsync": "off",
    "synchronous_commit": "off",
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
    """One private cluster; another checkout of the project has another."""

    kind: ClassVar[str] = "pg"
    account: ClassVar[str] = "postgres"

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
        self._run([f"{binaries()}/initdb", "--pgdata", f"{self.home}/data", "--no-sync", *accounts, *texts])
        settings = "".join(f"{name} = {value}\n" for name, value in {**QUICK, "port": str(port)}.items())
        with (self.home / "data" / "postgresql.conf").open("a") as configuration:
            configuration.write(settings)
        self._control("--log", f"{self.home}/log", "--wait", "--timeout", "60", "start")
        return f"postgresql://tests:{password}@127.0.0.1:{port}/postgres"

    def _running(self) -> bool:
        if binaries() is None or not (self.home / "data" / "postmaster.pid").exists():
            return False
        command = [f"{binaries()}/pg_ctl", "--pgdata", f"{self.home}/data", "status"]
        return (
            subprocess.run(self._as_owner(command), capture_output=True, check=False, cwd="/").returncode == 0
        )

    def _halt(self) -> None:
        self._control("--mode", "immediate", "--wait", "stop")

    def _control(self, *arguments: str) -> None:
        self._run([f"{binaries()}/pg_ctl", "--pgdata", f"{self.home}/data", *arguments])


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
