"""The real parts that tests stand on: Docker engines, PostgreSQL, MariaDB, Chromium.

Where a part is missing on a laptop, its tests are skipped with the reason. With CI=true, or
CM_REQUIRE_ALL=1, a missing part is an error.

CM_TEST_DOCKER_URL    an engine to use instead of a private one
CM_TEST_POSTGRES_URL  a PostgreSQL server to use instead of a private one
CM_TEST_MARIADB_URL   a MariaDB server, likewise
CM_TEST_MYSQL_URL     a MySQL server, likewise
CM_KEEP_ENGINE=1      leave what was started running for the next run (`make clean` stops it)
"""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from tools import apt, base_image, engine_http
from tools.engine import Engine, EngineError, refusal
from tools.mariadb import MariaDB, provide_driver
from tools.mysql import MySQL
from tools.parts import ENGINES, PREFIX, Share
from tools.postgres import Cluster
from tools.private_server import ServerError

BASE_IMAGE = "cm-base:test"
PROJECT = Path(__file__).resolve().parent.parent


def required() -> bool:
    """Whether a missing part is an error."""
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"} or bool(os.environ.get("CM_REQUIRE_ALL"))


def database() -> str:
    """The kind of database that the tests work on."""
    return os.environ.get("CM_TEST_DB") or "sqlite"


def missing(part: str, reason: str) -> NoReturn:
    """Say that a part of the machinery is not there: skip on a laptop, fail in CI."""
    text = f"{part} is not there: {reason}"
    if required():
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def keep() -> bool:
    """Whether what was started stays for the next run."""
    return bool(os.environ.get("CM_KEEP_ENGINE"))


SHARE = Share()


def with_base_image(url: str) -> str:
    """The engine's address, once the tests' base image is on it."""
    base_image.ensure(url, [BASE_IMAGE])
    return url


def private_engine(name: str, *, tcp: bool = False, flags: tuple[str, ...] = (), disk_mb: int = 0) -> Engine:
    """A started private engine that holds the base image."""
    engine = Engine(name=f"{PREFIX}-{name}", root=ENGINES, flags=flags, tcp=tcp, disk_mb=disk_mb)
    if reason := refusal():
        missing("a private Docker Engine", reason)
    SHARE.join()
    try:
        with_base_image(engine.start())
    except EngineError as error:
        missing("a private Docker Engine", str(error))
    return engine


@functools.cache
def docker_url() -> str:
    """The engine of the tests: the one that was named, a private one, or the one at hand."""
    if named := os.environ.get("CM_TEST_DOCKER_URL"):
        return with_base_image(named)
    if reason := refusal():
        for url in (os.environ.get("DOCKER_HOST", ""), "unix:///var/run/docker.sock"):
            if url and engine_http.answers(url):
                return with_base_image(url)
        missing("a Docker Engine", f"none answers at DOCKER_HOST or /var/run/docker.sock, and {reason}")
    return private_engine("main").url


@functools.cache
def postgres_url() -> str:
    """The PostgreSQL server of the tests: the one that was named, or a private one."""
    if named := os.environ.get("CM_TEST_POSTGRES_URL"):
        return named
    SHARE.join()
    try:
        return Cluster().start()
    except ServerError as error:
        # Settings are being loaded, there is no test to skip yet.
        raise pytest.UsageError(f"CM_TEST_DB=postgres: {error}") from error


@functools.cache
def mariadb_url() -> str:
    """The MariaDB server of the tests: the one that was named, or a private one. The driver is there, too."""
    return _mysql_or_alike(MariaDB(), os.environ.get("CM_TEST_MARIADB_URL"))


@functools.cache
def mysql_url() -> str:
    """The same for MySQL."""
    return _mysql_or_alike(MySQL(), os.environ.get("CM_TEST_MYSQL_URL"))


def _mysql_or_alike(private: MariaDB, named: str | None) -> str:
    SHARE.join()
    try:
        provide_driver()
        return named or private.start()
    except ServerError as error:
        raise pytest.UsageError(f"CM_TEST_DB={private.kind}: {error}") from error


def chromium_path() -> str:
    """The browser; Debian's is installed where we may."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        try:
            apt.install(["chromium"])
        except apt.CannotInstallError as error:
            missing("Chromium", str(error))
        found = shutil.which("chromium")
    return found or missing("Chromium", "the package installed no `chromium`")
