"""Where a benchmark runs: an engine and databases of its own, and the environment of child processes."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from tools import base_image, engine_http
from tools.engine import Engine, refusal
from tools.parts import ENGINES, PREFIX, Share
from tools.postgres import Cluster
from tools.private_server import ServerError

PROJECT = Path(__file__).resolve().parents[2]
IMAGE = "cm-base:test"
SQLITE, POSTGRES = "sqlite", "postgres"
#: An idle engine of our own; `make stop` switches it off if a killed run left it.
ENGINE = Engine(name=f"{PREFIX}-bench", root=ENGINES)


class NotHere(RuntimeError):
    """A part is missing on this machine; the text says which, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The parts that all measurements of a run share."""

    engine_url: str
    postgres_url: str  # empty: there is none
    no_postgres: str  # why not
    folder: Path

    @contextmanager
    def database(self, kind: str) -> Iterator[dict[str, str]]:
        """The environment of a process that works on a fresh, empty database."""
        name = f"bench_{uuid.uuid4().hex[:12]}"
        common = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.benchmarks.settings",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
            "CM_TEST_DB": kind,
        }
        if kind == SQLITE:
            path = self.folder / f"{name}.sqlite3"
            yield {**common, "CM_TEST_DB_NAME": str(path)}
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            return
        if not self.postgres_url:
            raise NotHere(f"PostgreSQL is not there: {self.no_postgres}")
        with psycopg.connect(self.postgres_url, autocommit=True) as server:
            server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            try:
                url = urlunsplit(urlsplit(self.postgres_url)._replace(path=f"/{name}"))
                yield {**common, "CM_TEST_DB_NAME": name, "CM_TEST_POSTGRES_URL": url}
            finally:
                server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def prepared() -> Iterator[Place]:
    """Start what is needed, or use what CM_TEST_DOCKER_URL and CM_TEST_POSTGRES_URL name; stop it after."""
    share = Share()
    share.join()
    folder = Path(tempfile.mkdtemp(prefix="container-jobs-bench-"))
    started: Engine | None = None
    try:
        url = os.environ.get("CM_TEST_DOCKER_URL", "")
        if not url:
            if reason := refusal():
                url = _engine_at_hand(reason)
            else:
                url, started = ENGINE.start(), ENGINE
        base_image.ensure(url, [IMAGE])
        postgres, reason = os.environ.get("CM_TEST_POSTGRES_URL", ""), ""
        if not postgres:
            try:
                postgres = Cluster().start()
            except ServerError as error:
                reason = str(error)
        yield Place(engine_url=url, postgres_url=postgres, no_postgres=reason, folder=folder)
    finally:
        keep = bool(os.environ.get("CM_KEEP_ENGINE"))
        if started is not None and not keep:
            started.stop()
        share.leave(keep=keep)
        shutil.rmtree(folder)


def _engine_at_hand(reason: str) -> str:
    for url in (os.environ.get("DOCKER_HOST", ""), "unix:///var/run/docker.sock"):
        if url and engine_http.answers(url):
            print(f"bench: on the engine at {url}, as {reason}", file=sys.stderr)
            return url
    raise NotHere(f"no Docker Engine answers at DOCKER_HOST or /var/run/docker.sock, and {reason}")
