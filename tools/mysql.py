"""A private MySQL server for the tests, like MariaDB's (`tools/mariadb.py`): it comes from Debian unstable.

    python tools/mysql.py start     prints a URL mysql://user:password@127.0.0.1:port/
    python tools/mysql.py stop

No stable release of Debian has MySQL. Its packages are unpacked with the libraries that they need, the C
library among them, and run beside what is installed here. What is fetched stays below .state/mysql until
`make clean`. Unstable changes every day, so no check that has to pass stands on it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import apt
from tools.mariadb import MariaDB
from tools.private_server import PROJECT, ServerError

PACKAGE, SUITE = "mysql-server-core", "sid"
FETCHED = PROJECT / ".state" / "mysql"
#: What a server does not read, and half of what the packages hold.
NOT_NEEDED = ["./usr/bin", "./usr/share/doc", "./usr/share/locale", "./usr/share/perl*", "./usr/lib/*/perl*"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MySQL(MariaDB):
    """One private server; another checkout of the project has another."""

    kind: ClassVar[str] = "mysql"
    account: ClassVar[str] = "nobody"  # the packages that would make another are not installed

    def _provide(self) -> None:
        if not any((FETCHED / "archives").glob(f"{PACKAGE}_*.deb")):
            try:
                apt.download(PACKAGE, suite=SUITE, folder=FETCHED)
            except apt.CannotInstallError as error:
                raise ServerError(str(error)) from error

    def _make_data(self) -> None:
        # In the server's own place, since its account may have no way into the project's.
        self._root.mkdir()
        for package in sorted((FETCHED / "archives").glob("*.deb")):
            self._unpack(package)
        # Its root has no password, and comes in by the socket alone, which only this account can reach.
        self._run([*self._program(), "--initialize-insecure", "--innodb-flush-method=nosync"])

    def _program(self) -> list[str]:
        loader = next((self._root / "usr" / "lib").glob("*/ld-linux-*.so.*"))
        libraries = f"{loader.parent}:{self._root}/usr/lib/mysql/private"
        return [
            *(str(loader), "--library-path", libraries, f"{self._root}/usr/sbin/mysqld"),
            *("--no-defaults", self._data, f"--basedir={self._root}/usr"),
            *(f"--lc-messages-dir={self._root}/usr/share/mysql", "--secure-file-priv=NULL", "--mysqlx=OFF"),
        ]

    @property
    def _root(self) -> Path:
        return self.home / "root"

    def _unpack(self, package: Path) -> None:
        unpack = ["tar", "--extract", "--directory", str(self._root), "--no-same-owner"]
        unpack += [f"--exclude={pattern}" for pattern in NOT_NEEDED]
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as archive:
            code = subprocess.run(unpack, stdin=archive.stdout, check=False).returncode
        if code or archive.returncode:
            raise ServerError(f"{package} cannot be unpacked; remove {FETCHED}, and it is fetched again")


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="A private MySQL for the tests.")
    parser.add_argument("act", choices=["start", "stop"])
    options = parser.parse_args()
    try:
        if options.act == "start":
            print(MySQL().start())
        else:
            MySQL().stop()
    except (ServerError, OSError) as error:
        print(f"mysql: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
