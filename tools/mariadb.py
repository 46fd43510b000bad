"""A private MariaDB server for the tests: own data, own port, own password, nothing kept; and its driver.

    python tools/mariadb.py start     prints a URL mysql://user:password@127.0.0.1:port/
    python tools/mariadb.py stop

Durability is switched off: this is for tests and for nothing else.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import apt, bootstrap
from tools.private_server import PROJECT, PrivateServer, ServerError
from tools.processes import Process, launch, search_path, with_argument

MINIMUM = (10, 11)
READY_SECONDS = 60
DRIVER = "mysqlclient"
HEADERS = ["gcc", "libc6-dev", "libmariadb-dev", "pkg-config"]  # the driver comes as source only
QUICK = {
    "bind-address": "127.0.0.1",
    "skip-name-resolve": "1",
    "max-connections": "200",
    "skip-log-bin": "1",
    "innodb-flush-log-at-trx-commit": "0",
    "innodb-flush-method": "nosync",
    "innodb-doublewrite": "0",
    "innodb-buffer-pool-size": "64M",
    "character-set-server": "utf8mb4",
    "collation-server": "utf8mb4_unicode_ci",
    # Django leaves a session in the server's zone, and a server often stands in another one than UTC: code
    # that compares the server's local time with ours has to fail here.
    "default-time-zone": "-05:00",
}


def server() -> str | None:
    """The server's program, if it is here and new enough."""
    program = shutil.which("mariadbd", path=search_path())
    if program is None:
        return None
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"Ver (\d+)\.(\d+)\.\d+-MariaDB", answer)
    return program if version and (int(version[1]), int(version[2])) >= MINIMUM else None


def refusal() -> str:
    """Why there can be no server on this machine; empty where there can (maybe after an install)."""
    if server() is None and (reason := apt.may_install()):
        return f"MariaDB {MINIMUM[0]}.{MINIMUM[1]} or newer is missing, and {reason}"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MariaDB(PrivateServer):
    """One private server; another checkout of the project has another."""

    kind: ClassVar[str] = "mariadb"
    account: ClassVar[str] = "mysql"

    def _provide(self) -> None:
        if reason := refusal():
            raise ServerError(reason)
        if server() is None:
            try:
                apt.install(["mariadb-server"])
            except apt.CannotInstallError as error:
                raise ServerError(str(error)) from error
        if server() is None:
            raise ServerError(f"this machine's packages have no MariaDB {MINIMUM[0]}.{MINIMUM[1]} or newer")

    def _create(self, password: str, port: int) -> str:
        self._make_data()
        first_words = self._write(
            "accounts.sql",
            f"CREATE USER tests@'127.0.0.1' IDENTIFIED BY '{password}';\n"
            "GRANT ALL ON *.* TO tests@'127.0.0.1';\n",
        )
        command = [*self._program(), f"--port={port}", f"--init-file={first_words}"]
        command += [f"--socket={self.home}/socket", f"--pid-file={self.home}/pid"]
        command += [f"--{name}={value}" for name, value in QUICK.items()]
        command += [f"--user={self.account}"] if os.geteuid() == 0 else []
        self._await(launch(command, log=self.home / "log"), port)
        return f"mysql://tests:{password}@127.0.0.1:{port}/"

    def _make_data(self) -> None:
        # Its root may come in from the server's own account alone, by the socket; nobody else exists.
        accounts = ["--auth-root-authentication-method=socket", "--skip-test-db"]
        self._run(["mariadb-install-db", "--no-defaults", self._data, "--skip-name-resolve", *accounts])

    def _program(self) -> list[str]:
        """The server, told where its data lies."""
        return [f"{server()}", "--no-defaults", self._data]

    def _running(self) -> bool:
        return bool(self._processes())

    def _halt(self) -> None:
        for process in self._processes():
            process.signal(signal.SIGKILL)  # there is nothing that it should write down first
            process.wait(10)

    @property
    def _data(self) -> str:
        return f"--datadir={self.home}/data"

    def _processes(self) -> list[Process]:
        """The server, and what makes its data: each is told where that lies."""
        return with_argument(self._data)

    def _await(self, process: Process, port: int) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not _greets(port) or not process.alive:
            if not process.alive or time.monotonic() > deadline:
                state = "did not get ready" if process.alive else "ended"
                self._halt()
                raise ServerError(f"the server {state}:\n{self._said()[-2000:]}")
            time.sleep(0.02)


def provide_driver() -> None:
    """See that this interpreter has the driver, in the version of uv.lock. Raises `ServerError`.

    Not part of every environment, since it is compiled against the client library of the machine.
    """
    if importlib.util.find_spec("MySQLdb"):
        return
    if sys.prefix == sys.base_prefix:
        raise ServerError(f"{DRIVER} is missing, and {sys.executable} is in no virtual environment")
    locked = tomllib.loads((PROJECT / "uv.lock").read_text())["package"]
    version = next(package["version"] for package in locked if package["name"] == DRIVER)
    try:
        if not _has_headers():
            apt.install(HEADERS)
        program = str(bootstrap.uv())
    except (apt.CannotInstallError, bootstrap.BootstrapError) as error:
        raise ServerError(f"{DRIVER} cannot be built: {error}") from error
    command = [program, "pip", "install", "--quiet", "--python", sys.executable, f"{DRIVER}=={version}"]
    answer = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if answer.returncode:
        raise ServerError(f"{DRIVER} {version} cannot be installed:\n{answer.stderr[-2000:]}")
    importlib.invalidate_caches()


def _has_headers() -> bool:
    if not shutil.which("gcc") or not shutil.which("pkg-config"):
        return False
    libraries = [["pkg-config", "--exists", name] for name in ("mysqlclient", "libmariadb")]
    return any(subprocess.run(command, check=False).returncode == 0 for command in libraries)


def _greets(port: int) -> bool:
    """Whether a server speaks first, as this one does once its accounts are made."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as wire:
            return bool(wire.recv(1))
    except OSError:
        return False


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="A private MariaDB for the tests.")
    parser.add_argument("act", choices=["start", "stop"])
    options = parser.parse_args()
    try:
        if options.act == "start":
            print(MariaDB().start())
        else:
            MariaDB().stop()
    except (ServerError, OSError) as error:
        print(f"mariadb: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
