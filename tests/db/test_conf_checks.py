"""Settings and system checks: a mistake is told before the first job, with what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import CheckMessage, run_checks
from django.core.management import CommandError, call_command
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.sqlite3.base import DatabaseWrapper

from container_manager import checks
from container_manager.conf import BOUNDS, Settings, get_settings, out_of_bounds, problems
from container_manager.core.errors import ConfigurationError
from container_manager.executors.base import Executor
from container_manager.executors.registry import executor_class, known_types
from container_manager.testing import FakeExecutor

FAKE = "container_manager.testing.FakeExecutor"


def told(settings: Any, value: object) -> list[tuple[str, str, str]]:
    settings.CONTAINER_MANAGER_SETTINGS = value
    return [
        (str(message.id), message.msg, message.hint or "")
        for message in run_checks(tags=["container_manager"])
        if str(message.id).startswith("container_manager.E")
    ]


def test_without_a_word_everything_has_a_default(settings: Any) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {}  # a change is heard of, which a deletion is not
    del settings.CONTAINER_MANAGER_SETTINGS
    assert problems({}) == []
    assert get_settings() == Settings()
    assert told(settings, {}) == []


def test_the_guides_keys_exist() -> None:
    known = {item.name for item in fields(Settings)}
    assert known >= {"DOCKER_TIMEOUT", "AUTO_PULL_IMAGES", "IMMEDIATE_CLEANUP", "MAX_CONCURRENT_JOBS"}


@pytest.mark.parametrize(
    ("value", "what", "remedy"),
    [
        ({"DOCKER_TIMEUOT": 5}, "unknown key 'DOCKER_TIMEUOT'", "Did you mean 'DOCKER_TIMEOUT'?"),
        ({"zzz": 5}, "unknown key 'zzz'", "Known keys: ALLOW_PROCESS_EXECUTOR, "),
        ({5: 5}, "unknown key 5", "Known keys"),
        ([], "is a list", "Make it a dict"),
        (None, "is a NoneType", "Make it a dict"),
        ({"DOCKER_TIMEOUT": "60"}, "['DOCKER_TIMEOUT'] is a str, not a number", "For example: 60.0"),
        ({"DOCKER_TIMEOUT": True}, "is a bool, not a number", "For example: 60.0"),
        ({"DOCKER_TIMEOUT": 0}, "is 0", "from 0.1 to 86400; it is 60.0 by default"),
        ({"DOCKER_TIMEOUT": -1}, "is -1", "from 0.1 to 86400"),
        ({"DOCKER_TIMEOUT": float("nan")}, "is nan", "from 0.1 to 86400"),
        ({"DOCKER_TIMEOUT": float("inf")}, "is inf", "from 0.1 to 86400"),
        ({"AUTO_PULL_IMAGES": "yes"}, "is a str, not True or False", "For example: True"),
        ({"AUTO_PULL_IMAGES": 1}, "is an int, not True or False", "For example: True"),
        ({"MAX_CONCURRENT_JOBS": 2.5}, "is a float, not a whole number", "For example: 50"),
        ({"MAX_CONCURRENT_JOBS": 10**400}, "is a number of 1329 bits", "Use a whole number from 1 to 10000"),
        ({"STOP_GRACE_SECONDS": -1}, "is -1", "Use a number from 0 to 86400"),
        ({"KEEP_LOGS_DAYS": -1}, "is -1", "Use a number from 0 to 36500; it is 0.0 by default"),
        ({"KEEP_COMPLETED_DAYS": 1e12}, "is 1000000000000.0", "Use a number from 0 to 36500"),
        ({"POLL_INTERVAL": 1e-7}, "is 1e-07", "Use a number from 0.01 to 3600"),
        ({"LEASE_SECONDS": 0.001}, "is 0.001", "Use a number from 1 to 3600"),
        ({"DEFAULT_MEMORY_LIMIT": 1}, "is 1", "Use a whole number from 6 to"),
        ({"COMMAND_PREFIX": "python manage.py"}, "is a str, not a list of strings", "'python', 'manage.py'"),
        ({"COMMAND_PREFIX": []}, "['COMMAND_PREFIX'] is empty", "For example: ('python', 'manage.py')"),
        ({"COMMAND_PREFIX": ["python", None]}, "holds a NoneType, where only strings may be", "For example"),
        ({"EXECUTORS": ["x"]}, "is a list, not a dict of strings", "{'mine': 'my_project.executors."),
        ({"EXECUTORS": {"x": 5}}, "holds an int, where only strings may be", "For example: {'mine'"),
        ({"COMMAND_IMAGE": None}, "is a NoneType, not a string", "For example: 'my-project-jobs:latest'"),
        ({"COMMAND_IMAGE": "Bad Image"}, "['COMMAND_IMAGE']: 'Bad Image' has a space", "build_job_image"),
        ({"INSTALLATION_ID": 5}, "is an int, not a string", "For example: 'staging'"),
        ({"DEFAULT_MEMORY_LIMIT": 4096}, "['DEFAULT_MEMORY_LIMIT'] is above 'MAX_MEMORY_LIMIT'", "Lower"),
        ({"MAX_CPU_LIMIT": 0.5}, "['DEFAULT_CPU_LIMIT'] is above 'MAX_CPU_LIMIT' (0.5)", "Lower"),
        ({"MAX_TIMEOUT_SECONDS": 10}, "['DEFAULT_TIMEOUT_SECONDS'] is above", "raise MAX_TIMEOUT_SECONDS"),
        ({"DEFAULT_USER": "root"}, "['DEFAULT_USER']: 'root'", "10001:10001"),
        ({"DEFAULT_USER": "0:0"}, "['DEFAULT_USER']: '0:0'", "10001:10001"),
        ({"DEFAULT_USER": "1000:1000"}, "'1000:1000'", "10001:10001"),
    ],
    ids=repr,
)
def test_a_mistake_is_a_system_check_error_with_the_remedy(
    settings: Any, value: object, what: str, remedy: str
) -> None:
    ((check, message, hint),) = told(settings, value)
    assert check == "container_manager.E001"
    assert what in message
    assert remedy in message + hint
    with pytest.raises(ConfigurationError) as caught:
        get_settings()
    assert what in str(caught.value)
    assert remedy in str(caught.value)


def test_every_mistake_is_told_at_once(settings: Any) -> None:
    assert len(told(settings, {"A": 1, "DOCKER_TIMEOUT": "x", "MAX_CONCURRENT_JOBS": 0})) == 3


def test_no_value_of_a_string_is_printed(settings: Any) -> None:
    secret = "hunter2"
    for value in ({"DOCKER_TIMEOUT": secret}, {"EXECUTORS": secret}, {"AUTO_PULL_IMAGES": secret}):
        assert secret not in str(told(settings, value))


def test_zero_is_fine_where_it_means_at_once(settings: Any) -> None:
    for key in ("STOP_GRACE_SECONDS", "SHUTDOWN_GRACE_SECONDS", "CONTAINER_RETENTION_SECONDS"):
        assert told(settings, {key: 0}) == []


def test_each_number_has_bounds_and_its_default_lies_within() -> None:
    defaults = Settings()
    numbers = {
        item.name
        for item in fields(Settings)
        if isinstance(getattr(defaults, item.name), int | float)
        and not isinstance(getattr(defaults, item.name), bool)
    }
    assert set(BOUNDS) == numbers
    for name, (least, most) in BOUNDS.items():
        assert least <= getattr(defaults, name) <= most
        kind = type(getattr(defaults, name))
        assert problems({name: kind(least)}) == [] or name.startswith("MAX_")  # its default is above it then
        assert out_of_bounds(name, least - 1)
        assert out_of_bounds(name, most * 2)


@pytest.mark.parametrize(
    ("command", "option", "key"),
    [
        ("process_container_jobs", "concurrency", "MAX_CONCURRENT_JOBS"),
        ("process_container_jobs", "poll_interval", "POLL_INTERVAL"),
        ("prune_container_jobs", "completed_days", "KEEP_COMPLETED_DAYS"),
        ("prune_container_jobs", "failed_days", "KEEP_FAILED_DAYS"),
        ("prune_container_jobs", "log_days", "KEEP_LOGS_DAYS"),
    ],
)
@pytest.mark.django_db
def test_an_option_has_the_bounds_of_its_setting(command: str, option: str, key: str) -> None:
    least, most = BOUNDS[key]
    for value in (least - 1, most + 1):
        with pytest.raises(
            CommandError, match=rf"--{option.replace('_', '-')}: .*from {least} to {most:.12g}"
        ):
            call_command(command, **{option: value})


def test_lists_become_tuples(settings: Any) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {"COMMAND_PREFIX": ["python3", "manage.py"]}
    assert get_settings().COMMAND_PREFIX == ("python3", "manage.py")


def test_a_changed_setting_holds_at_once(settings: Any) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {"DOCKER_TIMEOUT": 5}
    assert get_settings().DOCKER_TIMEOUT == 5
    settings.CONTAINER_MANAGER_SETTINGS = {"DOCKER_TIMEOUT": 6}
    assert get_settings().DOCKER_TIMEOUT == 6


def test_settings_become_the_policy() -> None:
    policy = Settings(MAX_MEMORY_LIMIT=1, PIDS_LIMIT=2, ALLOW_WRITABLE_ROOT=True, LOG_MAX_BYTES=3).policy()
    assert (policy.max_memory_mb, policy.pids_limit, policy.log_max_bytes) == (1, 2, 3)
    assert policy.allow_writable_root


# ------------------------------------------------------------------------------------------ executors


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("nowhere.Executor", "cannot be imported"),
        ("container_manager.testing.NoSuch", "cannot be imported"),
        ("container_manager.testing.FakeRun", "is not a subclass of"),
        ("container_manager.testing.fake_engine", "is not a subclass of"),
    ],
)
def test_an_executor_that_is_none_is_told(settings: Any, path: str, what: str) -> None:
    ((check, message, hint),) = told(settings, {"EXECUTORS": {"mine": path}})
    assert check == "container_manager.E002"
    assert "['EXECUTORS']['mine']" in message
    assert what in message
    assert "dotted path" in hint


def test_executors_are_found_by_name(settings: Any) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {"EXECUTORS": {"fake": FAKE}}
    assert {"docker", "process", "fake"} <= known_types().keys()
    assert executor_class("fake") is FakeExecutor
    assert issubclass(executor_class("docker"), Executor)
    with pytest.raises(
        ConfigurationError, match=r"executor_type: 'podman' .*docker, fake, process.*EXECUTORS"
    ):
        executor_class("podman")
    with pytest.raises(ConfigurationError, match=r"'process' .*isolation.*ALLOW_PROCESS_EXECUTOR"):
        executor_class("process")
    settings.CONTAINER_MANAGER_SETTINGS = {"EXECUTORS": {"odd": "container_manager.testing.FakeRun"}}
    with pytest.raises(ConfigurationError, match="not an Executor class"):
        executor_class("odd")


# -------------------------------------------------------------------------------------------- warnings


def _deployment(settings: Any, value: Mapping[str, Any]) -> list[str]:
    settings.CONTAINER_MANAGER_SETTINGS = value
    found = run_checks(tags=["container_manager"], include_deployment_checks=True)
    return [str(message.id) for message in found]


def test_the_process_executor_is_a_warning_of_a_deployment(settings: Any) -> None:
    assert _deployment(settings, {"ALLOW_PROCESS_EXECUTOR": True}) == ["container_manager.W001"]
    assert _deployment(settings, {"ALLOW_PROCESS_EXECUTOR": False}) == []
    assert _deployment(settings, {}) == []
    assert _deployment(settings, {"ALLOW_PROCESS_EXECUTOR": "yes"}) == ["container_manager.E001"]
    assert run_checks(tags=["container_manager"]) != []  # E001 still, W001 not without --deploy


def test_sqlite_with_deferred_transactions_is_a_warning(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(**options: Any) -> list[str]:
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": "x", "OPTIONS": options}
        monkeypatch.setitem(settings.DATABASES, "default", database)
        return [str(message.id) for message in checks.check_sqlite(None, databases=["default"])]

    assert found() == ["container_manager.W002"]
    assert found(transaction_mode="DEFERRED") == ["container_manager.W002"]
    assert found(transaction_mode="IMMEDIATE") == []
    assert found(transaction_mode="EXCLUSIVE") == []
    assert checks.check_sqlite(None) == []


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[CheckMessage]]]:
    """Open an SQLite database of this name as "default", and ask the check about it."""
    opened: list[BaseDatabaseWrapper] = []

    def ask(name: object, **options: str) -> list[CheckMessage]:
        values = {**connections["default"].settings_dict, "NAME": str(name), "OPTIONS": options}
        opened.append(DatabaseWrapper(values, alias="default"))
        monkeypatch.setattr(checks, "connections", {"default": opened[-1]})
        return checks.check_sqlite_journal(None, databases=["default"])

    yield ask
    for connection in opened:
        connection.close()


@pytest.mark.django_db
def test_an_sqlite_file_without_a_write_ahead_log_is_a_warning(
    journal: Callable[..., list[CheckMessage]], tmp_path: Path
) -> None:
    (message,) = journal(tmp_path / "old.sqlite3")
    assert message.id == "container_manager.W003"
    assert "'default'" in message.msg
    assert "'delete'" in message.msg
    assert "PRAGMA journal_mode=WAL" in (message.hint or "")
    assert journal(tmp_path / "new.sqlite3", init_command="PRAGMA journal_mode=WAL") == []
    # The mode is the file's: whoever made it so, the settings need not say it again.
    assert journal(tmp_path / "new.sqlite3") == []


@pytest.mark.django_db
def test_only_files_that_can_be_read_are_asked_for_their_journal(
    journal: Callable[..., list[CheckMessage]], tmp_path: Path
) -> None:
    assert journal(":memory:") == []
    assert journal("file:shared?mode=memory&cache=shared") == []
    assert journal(tmp_path / "no" / "such" / "folder" / "x.sqlite3") == []
    assert checks.check_sqlite_journal(None) == []


@pytest.mark.django_db(transaction=True)
def test_a_character_set_that_lacks_characters_is_a_warning_on_mysql() -> None:
    connection = connections["default"]
    if connection.vendor != "mysql":
        assert checks.check_mysql_charset(None, databases=["default"]) == []
        return
    with connection.cursor() as cursor:
        cursor.execute("SET NAMES latin1")
    try:
        (message,) = checks.check_mysql_charset(None, databases=["default"])
    finally:
        connection.close()  # the next one says what the settings want
    assert message.id == "container_manager.W004"
    assert "connection to the database 'default' uses the character set 'latin1'" in message.msg
    assert "'charset': 'utf8mb4'" in (message.hint or "")
    assert checks.check_mysql_charset(None) == []


@pytest.mark.django_db
def test_the_tests_own_database_is_as_it_should_be() -> None:
    found = run_checks(tags=["database"], databases=["default"])
    assert [message for message in found if str(message.id).startswith("container_manager.")] == []
