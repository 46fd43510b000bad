"""Bad input: the error names the field, the value (never a secret) and the remedy; nothing is stored half."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from container_manager.core.errors import (
    ConfigurationError,
    IllegalTransition,
    InvalidJob,
    NoEligibleHost,
    PolicyViolation,
)
from container_manager.models import ContainerJob, EnvironmentVariableTemplate, ExecutorHost, JobEvent
from tests.db.factories import fake_settings, make_host

SECRET = "hunter2-do-not-print"

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _fake(settings: Any) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = fake_settings(COMMAND_IMAGE="project:1")


@pytest.fixture
def host() -> ExecutorHost:
    """A healthy host with four CPUs."""
    host = make_host()
    ExecutorHost.objects.filter(pk=host.pk).update(cpus=4, health=ExecutorHost.Health.HEALTHY)
    host.refresh_from_db()
    return host


def by_create_job(**fields: Any) -> None:
    image = fields.pop("docker_image", "demo:1")
    ContainerJob.objects.create_job(image, **fields)


def by_create_jobs(**fields: Any) -> None:
    image = fields.pop("docker_image", "demo:1")
    good = {"image": "demo:1", "command": "true"}
    ContainerJob.objects.create_jobs([good, {"image": image, **fields}, good])


def by_create(**fields: Any) -> None:
    fields.setdefault("docker_image", "demo:1")
    ContainerJob.objects.create(**fields)


def by_save(**fields: Any) -> None:
    fields.setdefault("docker_image", "demo:1")
    ContainerJob(**fields).save()


def by_bulk_create(**fields: Any) -> None:
    fields.setdefault("docker_image", "demo:1")
    good = [ContainerJob(docker_image="demo:1"), ContainerJob(docker_image="demo:1")]
    ContainerJob.objects.bulk_create([good[0], ContainerJob(**fields), good[1]])


def by_command_job(**fields: Any) -> None:
    image = fields.pop("docker_image", None)
    ContainerJob.objects.create_command_job("check", image=image, **fields)


Way = Callable[..., None]
EVERY_WAY: list[Way] = [by_create_job, by_create_jobs, by_create, by_save, by_bulk_create]

NOT_A_NUMBER = float("nan")
#: Field, value, what the message has to say besides the field.
BAD: list[tuple[str, Any, list[str]]] = [
    ("docker_image", "", ["no image", "name one"]),
    ("docker_image", "UPPER/Case:1", ["UPPER", "lower case"]),
    ("docker_image", "two words", ["two words", "take it out"]),
    ("docker_image", "https://registry/x", ["URL", "leave out"]),
    ("docker_image", "demo:bad tag", ["take it out"]),
    ("docker_image", "demo@sha256:12", ["digest", "write"]),
    ("command", "echo 'open", ["echo 'open", "quote"]),
    ("command", "echo \0", ["NUL", "take it out"]),
    ("memory_limit", None, ["None", "unlimited", "give a"]),
    ("memory_limit", 0, ["0", "unlimited"]),
    ("memory_limit", -1, ["-1"]),
    ("memory_limit", 12.5, ["12.5", "whole number"]),
    ("memory_limit", "256", ["'256'", "whole number"]),
    ("memory_limit", True, ["True", "whole number"]),
    ("memory_limit", NOT_A_NUMBER, ["nan", "whole number"]),
    ("memory_limit", 1, ["1 MB", "6"]),
    ("memory_limit", 4096, ["4096 MB", "2048 MB", "MAX_MEMORY_LIMIT"]),
    ("cpu_limit", None, ["None", "unlimited", "give a"]),
    ("cpu_limit", 0, ["0"]),
    ("cpu_limit", -0.5, ["-0.5"]),
    ("cpu_limit", NOT_A_NUMBER, ["nan"]),
    ("cpu_limit", float("inf"), ["inf"]),
    ("cpu_limit", 2.5, ["2.5 cores", "MAX_CPU_LIMIT"]),
    ("timeout_seconds", None, ["None", "unlimited", "give a"]),
    ("timeout_seconds", 0, ["0"]),
    ("timeout_seconds", -5, ["-5"]),
    ("timeout_seconds", NOT_A_NUMBER, ["nan"]),
    ("timeout_seconds", 3601, ["3601 s", "3600 s", "MAX_TIMEOUT_SECONDS"]),
    ("working_directory", "app", ["'app'", "absolute"]),
    ("working_directory", "/app/../etc", ["'..'"]),
    ("working_directory", "/app\0", ["NUL"]),
    ("working_directory", 7, ["int", "absolute"]),
    ("environment_vars", {"A=B": SECRET}, ["'A=B'", "take it out"]),
    ("environment_vars", {"A\n": SECRET}, [r"'A\n'", "take it out"]),
    ("environment_vars", {"A": SECRET + "\0"}, ["'A'", "NUL"]),
    ("environment_vars", {"A": [SECRET]}, ["'A'", "list", "give a string"]),
    ("environment_vars", {"": SECRET}, ["''", "name of a variable"]),
    ("environment_vars", [SECRET], ["list", "give a dict"]),
    ("network_configuration", {"network_name": "x"}, ["dict", "network_name"]),
    ("network_configuration", ["backend"], ["entry 0", "str", "network_name"]),
    ("network_configuration", [{"name": "backend"}], ["'name'", "network_name"]),
    ("network_configuration", [{"network_name": "x", "aliases": "db"}], ["aliases", "list"]),
    ("network_configuration", [{"network_name": "host"}], ["'host'", "own"]),
    ("network_configuration", [{"network_name": "container:abc"}], ["'container:abc'"]),
    ("user", "root", ["'root'", "10001:10001"]),
    ("user", "0:0", ["'0:0'", "above"]),
    ("user", 10001, ["10001", "10001:10001"]),
    ("read_only_root", False, ["ALLOW_WRITABLE_ROOT"]),
    ("priority", 40_000, ["40000", "32767"]),
    ("priority", "high", ["'high'"]),
    ("name", "x" * 201, ["201", "200"]),
    ("name", "a\0b", ["NUL", "take it out"]),
    ("name", None, ["NoneType", "give a string"]),
    ("description", "a\0b", ["NUL", "take it out"]),
    ("command_form", "bogus", ["'bogus'", "shell"]),
]


def _nothing_is_stored() -> bool:
    return not ContainerJob.objects.exists() and not JobEvent.objects.exists()


@pytest.mark.parametrize("way", EVERY_WAY, ids=lambda way: way.__name__)
@pytest.mark.parametrize(("name", "value", "told"), BAD, ids=lambda value: repr(value)[:40])
def test_a_bad_field_is_told_and_nothing_is_stored(
    host: ExecutorHost, way: Way, name: str, value: Any, told: list[str]
) -> None:
    with pytest.raises(InvalidJob) as caught:
        way(**{name: value})
    assert caught.value.field == name
    text = str(caught.value)
    assert text.startswith(f"{name}: ")
    for part in told:
        assert part in text
    assert SECRET not in text
    assert text.endswith(".")
    assert _nothing_is_stored()


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, value, _ in BAD if name not in {"command", "command_form"}]
)
def test_a_command_job_is_checked_alike(host: ExecutorHost, name: str, value: Any) -> None:
    if (name, value) == ("docker_image", ""):  # as if none were given: the project's own
        return
    with pytest.raises(InvalidJob) as caught:
        by_command_job(**{name: value})
    assert caught.value.field == name
    assert SECRET not in str(caught.value)
    assert _nothing_is_stored()


def test_a_command_list_with_a_nul_or_no_program_is_refused(host: ExecutorHost) -> None:
    for command in (["echo", "a\0b"], [], [""], ["echo", 5], b"echo", 5):
        with pytest.raises(InvalidJob) as caught:
            by_create_job(command=command)
        assert caught.value.field == "command"
    assert _nothing_is_stored()


def test_a_command_job_needs_a_name_and_an_image(host: ExecutorHost, settings: Any) -> None:
    for name in ("", "--version"):
        with pytest.raises(InvalidJob, match=r"command: .* is not the name of a management command"):
            ContainerJob.objects.create_command_job(name)
    settings.CONTAINER_MANAGER_SETTINGS = fake_settings()
    with pytest.raises(InvalidJob, match=r"docker_image: .*COMMAND_IMAGE.*build_job_image"):
        ContainerJob.objects.create_command_job("check")
    assert _nothing_is_stored()


def test_an_unknown_field_is_told_with_those_that_exist(host: ExecutorHost) -> None:
    with pytest.raises(InvalidJob, match=r"memory: there is no such field\. Known: .*memory_limit"):
        by_create_job(memory=5)
    with pytest.raises(IllegalTransition, match="status: a new job starts as 'pending'"):
        by_create_job(status="completed")
    assert _nothing_is_stored()


def test_more_cpus_than_the_host_has_are_refused(host: ExecutorHost) -> None:
    ExecutorHost.objects.update(cpus=1)
    host.refresh_from_db()
    for way in EVERY_WAY:
        with pytest.raises(PolicyViolation, match=r"cpu_limit: 2 cores are more than the 1 of .*'one'"):
            way(cpu_limit=2.0, docker_host=host)
        with pytest.raises(NoEligibleHost, match=r"docker_host: .*one: has 1 CPUs, the job asks for 2"):
            way(cpu_limit=2.0)
    assert _nothing_is_stored()


def test_the_ceilings_are_the_settings(host: ExecutorHost, settings: Any) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = fake_settings(MAX_MEMORY_LIMIT=8192)
    job = ContainerJob.objects.create_job("demo:1", memory_limit=8000)
    assert job.memory_limit == 8000


def test_defaults_are_the_settings(host: ExecutorHost, settings: Any) -> None:
    job = ContainerJob.objects.create(docker_host=host, docker_image="demo:1", command="true")
    assert (job.memory_limit, job.cpu_limit, job.timeout_seconds) == (256, 1.0, 300)
    settings.CONTAINER_MANAGER_SETTINGS = fake_settings(DEFAULT_MEMORY_LIMIT=64, DEFAULT_TIMEOUT_SECONDS=9)
    job = ContainerJob.objects.create_job("demo:1")
    assert (job.memory_limit, job.cpu_limit, job.timeout_seconds) == (64, 1.0, 9)


# ------------------------------------------------------------------------------------------ templates


def test_an_unknown_template_is_told_with_those_that_exist(host: ExecutorHost) -> None:
    for way in (by_create_job, by_create_jobs, by_command_job):
        with pytest.raises(InvalidJob, match=r"environment_template: .*'staging'\. None exists yet"):
            way(environment_template="staging")
    EnvironmentVariableTemplate.objects.create(name="production", environment_variables_text="A=1")
    for way in (by_create_job, by_create_jobs, by_command_job):
        with pytest.raises(InvalidJob, match=r"environment_template: .*'staging'\. Known: production"):
            way(environment_template="staging")
    with pytest.raises(InvalidJob, match="environment_template: 7 is neither"):
        by_create_job(environment_template=7)
    assert _nothing_is_stored()


@pytest.mark.parametrize(
    "text",
    [f"NO_SIGN\nA={SECRET}", f"A={SECRET}\nB='{SECRET}", f"A={SECRET}\0", f"A B={SECRET}\0"],
    ids=["no-equals", "open-quote", "nul", "nul-and-space"],
)
def test_a_template_that_cannot_be_read_is_not_stored(text: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        EnvironmentVariableTemplate.objects.create(name="bad", environment_variables_text=text)
    assert caught.value.field.startswith("environment_variables_text")
    assert "line" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert not EnvironmentVariableTemplate.objects.exists()
    with pytest.raises(ValidationError) as refused:
        EnvironmentVariableTemplate(name="bad", environment_variables_text=text).full_clean()
    assert list(refused.value.message_dict) == ["environment_variables_text"]


def test_template_and_overrides_are_merged_at_creation(host: ExecutorHost) -> None:
    template = EnvironmentVariableTemplate.objects.create(
        name="t", environment_variables_text='A=1\n# comment\nB="two words"\nC="line\nline"'
    )
    for given in (template, "t"):
        job = ContainerJob.objects.create_job(
            "demo:1", environment_template=given, environment_vars={"A": "9"}
        )
        assert job.environment == {"A": "9", "B": "two words", "C": "line\nline"}
        assert job.environment_vars == {"A": "9"}


# ---------------------------------------------------------------------------------------------- hosts


def test_without_a_host_the_error_has_the_command_that_makes_one() -> None:
    for way in (*EVERY_WAY, by_command_job):
        with pytest.raises(
            NoEligibleHost, match=r"docker_host: no host is registered\..*register_local_host"
        ):
            way()
    assert _nothing_is_stored()


def test_hosts_that_cannot_serve_are_named_with_the_reason() -> None:
    make_host("asleep", is_active=False)
    ExecutorHost.objects.filter(pk=make_host("dead").pk).update(health=ExecutorHost.Health.UNREACHABLE)
    ExecutorHost.objects.filter(pk=make_host("other").pk).update(health=ExecutorHost.Health.MISMATCHED)
    with pytest.raises(NoEligibleHost) as caught:
        by_create_job()
    text = str(caught.value)
    assert "asleep: not active" in text
    assert "dead: unreachable" in text
    assert "other: another engine answers there" in text
    assert _nothing_is_stored()


def test_an_inactive_host_that_the_caller_names_is_refused() -> None:
    make_host("awake")
    asleep = make_host("asleep", is_active=False)
    for way in EVERY_WAY:
        with pytest.raises(NoEligibleHost, match=r"'asleep' is not active\. Activate it"):
            way(docker_host=asleep)
    assert _nothing_is_stored()


def test_a_host_of_another_kind_is_refused(host: ExecutorHost) -> None:
    for way in (by_create_job, by_create_jobs, by_command_job):
        with pytest.raises(InvalidJob, match=r"docker_host: 'one' is a str; give an ExecutorHost\."):
            way(docker_host="one")
    assert _nothing_is_stored()


def test_a_never_checked_host_is_eligible_and_asked_nothing() -> None:
    host = make_host("fresh")
    job = ContainerJob.objects.create_job("demo:1")
    assert job.docker_host == host
    assert not job.host_pinned
    assert ContainerJob.objects.create_job("demo:1", docker_host=host).host_pinned


def test_jobs_are_spread_by_weight() -> None:
    make_host("light", weight=100)
    make_host("heavy", weight=300)
    jobs = ContainerJob.objects.create_jobs([{"image": "demo:1"}] * 8)
    names = [job.docker_host.name for job in jobs]
    assert (names.count("heavy"), names.count("light")) == (6, 2)


BAD_HOSTS: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"connection_string": "nonsense"}, "connection_string", ["'nonsense'", "unix://", "tcp://"]),
    ({"connection_string": ""}, "connection_string", ["''", "unix://"]),
    ({"connection_string": "http://x:1"}, "connection_string", ["http", "tcp://"]),
    ({"connection_string": "ssh://x"}, "connection_string", ["ssh", "tcp://"]),
    ({"connection_string": "unix://relative"}, "connection_string", ["absolute", "unix:///"]),
    ({"connection_string": "unix:///a\0b"}, "connection_string", ["absolute"]),
    ({"connection_string": "tcp://host"}, "connection_string", ["port", "2376"]),
    ({"connection_string": "tcp://host:port"}, "connection_string", ["port"]),
    ({"connection_string": "tcp://host:99999"}, "connection_string", ["port", "65535"]),
    ({"connection_string": "tcp://:2375"}, "connection_string", ["host name"]),
    ({"connection_string": "tcp://h:2375/path"}, "connection_string", ["behind the port"]),
    ({"connection_string": f"tcp://me:{SECRET}@h:2375"}, "connection_string", ["credentials"]),
    ({"executor_type": "podman"}, "executor_type", ["'podman'", "docker", "EXECUTORS"]),
    ({"host_type": "tcp"}, "host_type", ["'tcp'", "leave it empty"]),
    ({"executor_config": ["x"]}, "executor_config", ["JSON object"]),
    ({"executor_config": {"timeout": 0}}, "executor_config", ["timeout is 0", "above 0"]),
    ({"executor_config": {"timeout": "60s"}}, "executor_config", ["timeout is '60s'", "seconds above 0"]),
    ({"executor_config": {"timeout": NOT_A_NUMBER}}, "executor_config", ["timeout is nan", "above 0"]),
    ({"executor_config": {"timeout": True}}, "executor_config", ["timeout is True", "above 0"]),
    ({"executor_config": {"pull_silence_seconds": "2"}}, "executor_config", ["pull_silence", "above 0"]),
    (
        {"executor_config": {"auto_pull_images": "no"}},
        "executor_config",
        ["auto_pull_images is 'no'", "false"],
    ),
    (
        {"executor_config": {"tmeout": 5}},
        "executor_config",
        ["'tmeout' is not known", "timeout", "registry_auth"],
    ),
    ({"executor_config": {"state_dir": "/srv"}}, "executor_config", ["'state_dir' is not known"]),
    (
        {"executor_config": {"registry_auth": SECRET}},
        "executor_config",
        ["registry_auth", "object", "username"],
    ),
    (
        {"executor_config": {"registry_auth": {"pasword": SECRET}}},
        "executor_config",
        ["registry_auth", "'pasword', which is not known", "password"],
    ),
    (
        {"executor_config": {"registry_auth": {"password": [SECRET]}}},
        "executor_config",
        ["registry_auth", "no text for password"],
    ),
    (
        {"executor_config": {"allowed_registries": ["docker.io", "registry.example.com"]}},
        "executor_config",
        ["allowed_registries is not supported yet", "nothing would enforce it"],
    ),
    (
        {"executor_config": {"require_signed_images": True}},
        "executor_config",
        ["require_signed_images is not supported yet", "nothing would enforce it"],
    ),
    ({"max_concurrent_jobs": 0}, "max_concurrent_jobs", ["1 or more"]),
    ({"max_concurrent_jobs": 2**31}, "max_concurrent_jobs", ["at most 2147483647"]),
    ({"name": ""}, "name", ["Give the host a name"]),
    ({"name": " \t"}, "name", ["Give the host a name"]),
    ({"name": "n" * 201}, "name", ["at most 200"]),
    ({"connection_string": f"unix:///{'a' * 500}"}, "connection_string", ["508", "at most 500"]),
]


@pytest.mark.parametrize(("fields", "name", "told"), BAD_HOSTS, ids=lambda value: repr(value)[:50])
def test_a_host_that_cannot_work_is_not_stored(fields: dict[str, Any], name: str, told: list[str]) -> None:
    values = {"name": "h", "connection_string": "unix:///var/run/docker.sock", **fields}
    with pytest.raises(ValidationError) as caught:
        ExecutorHost.objects.create(**values)
    assert list(caught.value.message_dict) == [name]
    text = " ".join(caught.value.message_dict[name])
    for part in told:
        assert part in text
    assert SECRET not in text
    assert not ExecutorHost.objects.exists()


@pytest.mark.parametrize(("fields", "name", "told"), BAD_HOSTS, ids=lambda value: repr(value)[:50])
def test_nor_is_it_stored_where_that_field_alone_is_written(
    fields: dict[str, Any], name: str, told: list[str]
) -> None:
    host = ExecutorHost.objects.create(name="h", connection_string="unix:///var/run/docker.sock")
    stored = ExecutorHost.objects.values().get()
    for field, value in fields.items():
        setattr(host, field, value)
    with pytest.raises(ValidationError) as caught:
        host.save(update_fields=list(fields))
    assert list(caught.value.message_dict) == [name]
    assert ExecutorHost.objects.values().get() == stored


def test_a_new_address_that_is_written_alone_brings_its_type() -> None:
    host = ExecutorHost.objects.create(name="h", connection_string="unix:///var/run/docker.sock")
    host.connection_string = "tcp://[::1]:2375"
    host.save(update_fields=["connection_string"])
    assert ExecutorHost.objects.get().host_type == "tcp"
    again = ExecutorHost.objects.get()
    again.connection_string = "unix:///var/run/docker.sock"
    again.save()
    assert ExecutorHost.objects.get().host_type == "unix"


def test_what_a_driver_reads_may_be_configured() -> None:
    auth = {"username": "u", "password": SECRET, "email": "", "serveraddress": "registry.example.com"}
    docker = {"timeout": 2.5, "auto_pull_images": False, "pull_silence_seconds": 9, "registry_auth": auth}
    process = {"timeout": 2, "state_dir": "/srv/jobs", "working_directory": "/srv"}
    ExecutorHost.objects.create(name="d", connection_string="unix:///d.sock", executor_config=docker)
    ExecutorHost.objects.create(
        name="p", executor_type="process", connection_string="process:///tmp/x", executor_config=process
    )
    for host, config in zip(ExecutorHost.objects.all(), (docker, process), strict=True):
        assert host.as_config().options == config


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"timeout": "60s"}, r"executor_config: timeout is '60s'; use a number of seconds"),
        ({"tmeout": 60}, r"executor_config: 'tmeout' is not known; there are auto_pull_images, "),
        ({"require_signed_images": True}, r"executor_config: .* nothing would enforce it"),
        ([["timeout", 60]], r"executor_config: Make it a JSON object"),
        ("text", r"executor_config: Make it a JSON object"),
    ],
)
def test_what_was_stored_past_the_checks_is_told_by_field(config: Any, told: str) -> None:
    ExecutorHost.objects.create(name="h", connection_string="unix:///var/run/docker.sock")
    ExecutorHost.objects.update(executor_config=config)
    host = ExecutorHost.objects.get()
    with pytest.raises(ConfigurationError, match=told):
        host.as_config()
    host.is_active = False
    host.save(update_fields=["is_active"])  # to rest it needs no mending


def test_the_process_executor_needs_permission(settings: Any) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {}
    with pytest.raises(ValidationError, match="ALLOW_PROCESS_EXECUTOR"):
        ExecutorHost.objects.create(name="p", executor_type="process", connection_string="process:///tmp/x")
    assert not ExecutorHost.objects.exists()


# ------------------------------------------------------------------------------- transactions, batches


@pytest.mark.django_db(transaction=True)
def test_a_rolled_back_creation_leaves_nothing(host: ExecutorHost) -> None:
    for way in (*EVERY_WAY, by_command_job):
        with transaction.atomic():
            way()
            assert ContainerJob.objects.exists()
            transaction.set_rollback(True)
        assert _nothing_is_stored()


@pytest.mark.django_db(transaction=True)
def test_one_bad_job_refuses_the_whole_batch(host: ExecutorHost) -> None:
    with pytest.raises(InvalidJob, match="memory_limit"):
        ContainerJob.objects.create_jobs([{"image": "a"}, {"image": "b", "memory_limit": 0}])
    assert _nothing_is_stored()


def test_a_batch_is_stored_with_its_events(host: ExecutorHost) -> None:
    user = User.objects.create(username="boss")
    jobs = ContainerJob.objects.create_jobs(
        [{"image": "demo:1", "name": f"job {n}", "created_by": user} for n in range(3)]
    )
    assert sorted(ContainerJob.objects.values_list("name", flat=True)) == ["job 0", "job 1", "job 2"]
    for job in jobs:
        assert [(e.transition, e.to_status, e.actor) for e in job.events.all()] == [
            ("create", "pending", f"user:{user.pk}")
        ]


def test_a_batch_takes_no_result_from_its_caller(host: ExecutorHost) -> None:
    with pytest.raises(IllegalTransition, match="starts as 'pending', not 'completed'"):
        ContainerJob.objects.bulk_create([ContainerJob(docker_image="demo:1", status="completed")])
    with pytest.raises(IllegalTransition, match="starts as 'pending', not 'running'"):
        ContainerJob.objects.create(docker_image="demo:1", status="running")
    for options in (
        {"ignore_conflicts": True},
        {"update_conflicts": True, "update_fields": ["status"], "unique_fields": ["id"]},
    ):
        with pytest.raises(InvalidJob, match="conflicts"):
            ContainerJob.objects.bulk_create([ContainerJob(docker_image="demo:1")], **options)
    assert _nothing_is_stored()


@pytest.mark.parametrize("kind", ["create_jobs", "bulk_create"])
def test_a_batch_costs_the_same_number_of_queries_whatever_its_size(host: ExecutorHost, kind: str) -> None:
    make_host("two")
    template = EnvironmentVariableTemplate.objects.create(name="t", environment_variables_text="A=1")

    def store(number: int) -> int:
        if kind == "create_jobs":
            wishes = [
                {"image": "demo:1", "command": f"echo {n}", "environment_template": "t"}
                for n in range(number)
            ]
            with CaptureQueriesContext(connection) as queries:
                ContainerJob.objects.create_jobs(wishes)
        else:
            pk = template.pk
            jobs = [
                ContainerJob(docker_image="demo:1", docker_host_id=host.pk, environment_template_id=pk)
                for n in range(number)
            ]
            with CaptureQueriesContext(connection) as queries:
                ContainerJob.objects.bulk_create(jobs)
        inserts = [query for query in queries if query["sql"].startswith("INSERT")]
        # A database may cap the parameters of one statement (SQLite does); Django then cuts the batch.
        return len(queries) - len(inserts)

    assert store(10) == store(200)
    assert ContainerJob.objects.count() == 210
    assert JobEvent.objects.count() == 210


@pytest.mark.postgres
def test_on_postgres_not_even_the_inserts_grow(host: ExecutorHost) -> None:
    counts = []
    for number in (10, 200):
        with CaptureQueriesContext(connection) as queries:
            ContainerJob.objects.create_jobs([{"image": "demo:1"}] * number)
        counts.append(len(queries))
    assert counts[0] == counts[1]
