"""Fixtures for the real parts, and the rule that nothing is skipped in CI."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from tests import engines
from tools.engine import Engine


@pytest.fixture(scope="session")
def docker_url() -> str:
    """Address of an engine that holds `engines.BASE_IMAGE`; shared by all tests, so do it no harm."""
    return engines.docker_url()


@pytest.fixture(scope="session")
def second_engine() -> Engine:
    """Another engine with the base image, on a unix socket (`.url`) and plain TCP (`.tcp_url`)."""
    return engines.private_engine("second", tcp=True)


@pytest.fixture(scope="session")
def tcp_engine_url(second_engine: Engine) -> str:
    """Address of an engine over plain TCP; the base image is on it."""
    return second_engine.tcp_url


@pytest.fixture
def engine_of_my_own() -> Iterator[Callable[..., Engine]]:
    """Start engines that a test may kill, stop and resume: `make(flags=("--live-restore",), tcp=True)`."""
    started: list[Engine] = []
    number = itertools.count(1)

    def make(*, flags: tuple[str, ...] = (), tcp: bool = False) -> Engine:
        name = f"own-{os.getpid()}-{next(number)}"
        engine = engines.private_engine(name, flags=flags, tcp=tcp)
        started.append(engine)
        return engine

    yield make
    for engine in started:
        engine.stop()


@pytest.fixture(scope="session")
def postgres() -> str:
    """URL of a PostgreSQL server on which a test may create databases."""
    return engines.postgres_url()


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser, for Playwright's `executable_path`."""
    return engines.chromium_path()


@pytest.fixture
def child_environment(transactional_db: None) -> dict[str, str]:
    """The environment for a child process that works on this test's database."""
    from django.db import connection

    database = engines.database()
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": os.environ.get("DJANGO_SETTINGS_MODULE", "tests.settings"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(engines.PROJECT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "CM_TEST_DB_NAME": str(connection.settings_dict["NAME"]),
        **({"CM_TEST_POSTGRES_URL": engines.postgres_url()} if database == "postgres" else {}),
        **({"CM_TEST_MARIADB_URL": engines.mariadb_url()} if database == "mariadb" else {}),
        **({"CM_TEST_MYSQL_URL": engines.mysql_url()} if database == "mysql" else {}),
    }


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of what some databases have belong to the runs on those, and not to the others."""
    database = engines.database()
    lacking = {"postgres": [], "sqlite": ["postgres", "server"]}.get(database, ["postgres"])
    other = [item for item in items if any(item.get_closest_marker(name) for name in lacking)]
    if other:
        config.hook.pytest_deselected(items=other)
        items[:] = [item for item in items if item not in other]


@pytest.hookimpl(trylast=True)  # after the databases of the tests are gone
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Switch off what was started; in CI a skipped test makes the run red."""
    engines.SHARE.leave(keep=engines.keep())
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if reporter and skipped and engines.required() and exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"{len(skipped)} skipped tests: with CI=true nothing may be skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
