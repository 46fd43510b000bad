"""The admin over real rows: what it shows, what it hides, what it lets whom do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from container_manager.admin.secrets import mask, unmask
from container_manager.core.environment import REDACTED
from container_manager.core.inert import inert, inert_line
from container_manager.core.outcome import Intent
from container_manager.models import (
    ContainerJob,
    EnvironmentVariableTemplate,
    ExecutionMetadata,
    ExecutorHost,
    Installation,
    JobEvent,
    LogChunk,
)
from container_manager.records import Usage
from container_manager.testing import fake_engine, forget_fake_engines
from tests.db.factories import fake_settings, finish_job, hold, make_host, make_job, start_job

pytestmark = pytest.mark.django_db

SECRET = "hunter2-do-not-show"
MODELS = [
    "containerjob",
    "executorhost",
    "environmentvariabletemplate",
    "executionmetadata",
    "jobevent",
    "enginelease",
    "installation",
]


@pytest.fixture(autouse=True)
def fake(settings: Any) -> Any:
    settings.CONTAINER_MANAGER_SETTINGS = fake_settings()
    yield
    forget_fake_engines()


@pytest.fixture
def host() -> ExecutorHost:
    return make_host()


@pytest.fixture
def as_staff(client: Client) -> Callable[..., Client]:
    """Log in somebody with these permissions on our models: `as_staff("view", "change")`."""

    def login(*kinds: str) -> Client:
        person = User.objects.create_user("staff", password="x", is_staff=True)
        mine = Permission.objects.filter(content_type__app_label="container_manager")
        for kind in kinds:
            person.user_permissions.add(*mine.filter(codename__startswith=f"{kind}_"))
        client.force_login(person)
        return client

    return login


def url(model: str, view: str, *args: Any) -> str:
    return reverse(f"admin:container_manager_{model}_{view}", args=args)


def body(answer: Any) -> str:
    return str(answer.content.decode())


def said(answer: Any) -> str:
    """The messages that the page after an act shows."""
    return " | ".join(str(message) for message in answer.context["messages"])


def act(client: Client, model: str, action: str, *objects: Any) -> Any:
    data = {"action": action, "_selected_action": [str(item.pk) for item in objects]}
    return client.post(url(model, "changelist"), data, follow=True)


def job_data(**changed: Any) -> dict[str, Any]:
    """What the form of a job sends."""
    fields = {
        "name": "report",
        "description": "",
        "priority": "0",
        "docker_image": "demo:1",
        "command": "echo hello",
        "command_form": "",
        "working_directory": "",
        "docker_host": "",
        "networks_text": "",
        "memory_limit": "256",
        "cpu_limit": "1.0",
        "timeout_seconds": "300",
        "environment_template": "",
        "environment_text": "",
        "user": "",
        "read_only_root": "on",
    }
    return {**fields, **changed}


def host_data(**changed: Any) -> dict[str, Any]:
    fields = {
        "name": "two",
        "executor_type": "fake",
        "connection_string": "fake://two",
        "is_active": "on",
        "max_concurrent_jobs": "10",
        "weight": "100",
        "auto_pull_images": "",
        "configuration": "{}",
        "tls_verify": "on",
    }
    return {**fields, **changed}


# ------------------------------------------------------------------------------------------- lists


def test_the_list_costs_few_queries_and_reads_no_log(admin_client: Client, host: ExecutorHost) -> None:
    for number in range(12):
        finish_job(make_job(name=f"job {number}", docker_host=host), stdout=b"x" * 1000)
    with CaptureQueriesContext(
        connection,
    ) as seen:
        answer = admin_client.get(url("containerjob", "changelist"))
    assert answer.status_code == 200
    assert len(seen) <= 8, [query["sql"] for query in seen]
    rows = [query["sql"] for query in seen if "LIMIT 50" in query["sql"] or "docker_image" in query["sql"]]
    assert rows
    for column in ("stdout_log", "stderr_log", "docker_log", '"environment"', '"environment_vars"'):
        assert not any(column in sql for sql in rows), column


def test_the_list_says_the_status_in_words(admin_client: Client, host: ExecutorHost) -> None:
    usage = Usage(max_memory_bytes=100 * 1024 * 1024, memory_source="peak", cpu_percent=47.3, samples=9)
    finish_job(make_job(name="burst", docker_host=host), exit_code=137, oom_killed=True, usage=usage)
    make_job(name="next", docker_host=host)
    text = body(admin_client.get(url("containerjob", "changelist")))
    assert '<span class="cm-badge cm-bad">failed</span>' in text
    assert '<span class="cm-badge cm-quiet">pending</span>' in text
    for part in ("Out of memory", "137 (SIGKILL)", "100.0 MB", "47 % CPU"):
        assert part in text


@pytest.mark.parametrize("cut", [8, 6, 13, 36])
def test_a_job_is_found_by_the_beginning_of_its_id(
    admin_client: Client, host: ExecutorHost, cut: int
) -> None:
    job, other = make_job(name="wanted", docker_host=host), make_job(name="other", docker_host=host)
    for term in (str(job.pk)[:cut], str(job.pk).replace("-", "")[:cut]):
        found = admin_client.get(url("containerjob", "changelist"), {"q": term}).context["cl"].result_list
        assert [item.pk for item in found] == [job.pk], term
    assert other.pk != job.pk


@pytest.mark.parametrize("term", ["nightly", "python:3.12", "import_books"])
def test_a_job_is_found_by_name_image_and_command(
    admin_client: Client, host: ExecutorHost, term: str
) -> None:
    make_job(name="other", docker_host=host)
    make_job(docker_image="python:3.12", name="nightly", command="manage.py import_books", docker_host=host)
    found = admin_client.get(url("containerjob", "changelist"), {"q": term}).context["cl"].result_list
    assert [item.name for item in found] == ["nightly"]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"exit_reason": "out_of_memory"}, ["burst"]),
        ({"status__exact": "completed"}, ["fine"]),
        ({"docker_host__id__exact": "0"}, []),
    ],
)
def test_the_list_is_filtered(
    admin_client: Client, host: ExecutorHost, query: dict[str, str], names: list[str]
) -> None:
    make_host("two")  # with one host there is nothing to choose, and no filter
    finish_job(make_job(name="burst", docker_host=host), exit_code=137, oom_killed=True)
    finish_job(make_job(name="fine", docker_host=host))
    found = admin_client.get(url("containerjob", "changelist"), query).context["cl"].result_list
    assert [item.name for item in found] == names


@pytest.mark.parametrize("model", MODELS)
def test_every_column_sorts(admin_client: Client, host: ExecutorHost, model: str) -> None:
    finish_job(make_job(docker_host=host))
    page = admin_client.get(url(model, "changelist"))
    for number in range(len(page.context["cl"].list_display) + 1):
        assert admin_client.get(url(model, "changelist"), {"o": f"-{number}"}).status_code == 200


# ------------------------------------------------------------------------------------ one job's page


def test_the_failure_comes_first(admin_client: Client, host: ExecutorHost) -> None:
    job = make_job(name="load", docker_host=host)
    lines = b"".join(b"line %d\n" % number for number in range(40)) + b"ValueError: 4 columns, not 5\n"
    finish_job(job, exit_code=3, stdout=b"half way\n", stderr=lines)
    answer = admin_client.get(url("containerjob", "change", job.pk))
    text = body(answer)
    verdict = answer.context["panel"].verdict
    assert (verdict.headline, verdict.exit_code) == ("Application error", "3")
    assert verdict.sentence == "The program ended with exit code 3."
    assert verdict.next_step.startswith("Read the end of stderr")
    assert verdict.tail.splitlines()[-1] == "ValueError: 4 columns, not 5"
    assert "line 5\n" not in verdict.tail
    order = [
        text.index(part) for part in ("cm-verdict", "cm-stderr-heading", "cm-stdout-heading", "Timeline")
    ]
    assert order == sorted(order)


def test_the_page_shows_who_did_what_and_the_attempt(admin_client: Client, host: ExecutorHost) -> None:
    ada = User.objects.create_user("ada")
    job = make_job(name="load", docker_host=host, created_by=ada)
    usage = Usage(max_memory_bytes=128 * 1024 * 1024, memory_source="peak", cpu_percent=50.0, samples=9)
    finish_job(job, usage=usage, docker_log="pulled demo:1")
    panel = admin_client.get(url("containerjob", "change", job.pk)).context["panel"]
    assert [(event.what, event.who) for event in panel.events] == [
        ("create", "ada"),
        ("claim", "worker:test"),
        ("start", "worker:test"),
        ("finish", "worker:test"),
    ]
    (attempt,) = panel.attempts
    assert (attempt.memory, attempt.cpu, attempt.log_note) == (
        "128.0 MB of 256 MB",
        "50 % of 100 %",
        "complete",
    )
    assert panel.engine_log == "pulled demo:1"


@pytest.mark.parametrize("actor", ["user:999", "user:", "user:not-a-number", "cron", "user:1:2"])
def test_an_actor_of_any_shape_is_shown(admin_client: Client, host: ExecutorHost, actor: str) -> None:
    job = make_job(docker_host=host)
    job.cancel(by=actor)
    panel = admin_client.get(url("containerjob", "change", job.pk)).context["panel"]
    assert panel.events[-1].who == actor


def test_the_page_costs_the_same_for_many_events_and_attempts(
    admin_client: Client, host: ExecutorHost
) -> None:
    def cost(job: ContainerJob) -> int:
        with CaptureQueriesContext(connection) as seen:
            assert admin_client.get(url("containerjob", "change", job.pk)).status_code == 200
        return len(seen)

    few, many = make_job(docker_host=host), make_job(docker_host=host)
    finish_job(few)
    finish_job(many)
    JobEvent.objects.bulk_create(
        [
            JobEvent(job=many, transition="adopt", to_status="running", actor=f"user:{n}")
            for n in range(1, 300)
        ]
    )
    ExecutionMetadata.objects.bulk_create(
        [ExecutionMetadata(job=many, attempt=n, docker_host=host, container_name="c") for n in range(2, 20)]
    )
    cost(few)
    assert cost(many) <= cost(few) + 2  # the count of what is left out, and the names of the actors
    panel = admin_client.get(url("containerjob", "change", many.pk)).context["panel"]
    assert (len(panel.events), panel.events_left_out) == (200, 103)


def test_a_waiting_job_tells_what_it_waits_for(admin_client: Client, host: ExecutorHost) -> None:
    job = make_job(docker_host=host)
    page = url("containerjob", "change", job.pk)
    verdict = admin_client.get(page).context["panel"].verdict
    assert verdict.sentence == "The job waits for a free slot on host one."
    assert "process_container_jobs" in verdict.next_step
    host.record_up(fake_executor_facts("one"))
    hold("fake-one")
    assert admin_client.get(page).context["panel"].verdict.next_step == ""
    ExecutorHost.objects.update(is_active=False)
    assert "not active" in admin_client.get(page).context["panel"].verdict.sentence


def fake_executor_facts(name: str) -> Any:
    from container_manager.executors.registry import open_executor

    return open_executor("fake", ExecutorHost.objects.get(name=name).as_config()).health()


def test_a_running_job_refreshes_only_when_asked(admin_client: Client, host: ExecutorHost) -> None:
    job = make_job(docker_host=host)
    start_job(job)
    page = url("containerjob", "change", job.pk)
    assert 'http-equiv="refresh"' not in body(admin_client.get(page))
    assert '<meta http-equiv="refresh" content="5">' in body(admin_client.get(page, {"refresh": "1"}))
    ended = make_job(docker_host=make_host("other"))
    finish_job(ended)
    answer = admin_client.get(url("containerjob", "change", ended.pk), {"refresh": "1"})
    assert 'http-equiv="refresh"' not in body(answer)


# ---------------------------------------------------------------------------------- hostile content

HOSTILE = "<script>alert(1)</script>\x1b[2J\x1b]0;owned\x07 a\u202eb\u2066c\ufeff \r\x9b31m</pre>"


def test_hostile_text_is_shown_and_not_obeyed(admin_client: Client, host: ExecutorHost) -> None:
    job = make_job(name=HOSTILE[:150], description=HOSTILE, command=["echo", HOSTILE], docker_host=host)
    finish_job(job, exit_code=1, stdout=HOSTILE.encode(), stderr=HOSTILE.encode(), docker_log=HOSTILE)
    EnvironmentVariableTemplate.objects.create(name=HOSTILE[:150], description=HOSTILE)
    ExecutorHost.objects.filter(pk=host.pk).update(
        name=HOSTILE[:150], health_error=HOSTILE, engine_version="\x1b[1m"
    )
    pages = [url(model, "changelist") for model in MODELS]
    pages += [url("containerjob", view, job.pk) for view in ("change", "history", "delete")]
    pages += [url("executorhost", view, host.pk) for view in ("change", "history", "delete")]
    pages += [reverse("admin:index")]
    for page in pages:
        text = body(admin_client.get(page))
        # The fields of a form hold what will be saved, so they hold it as it is.
        text = re.sub(r"<input [^>]*>|<textarea[^>]*>[^<]*</textarea>", "", text)
        assert "<script>alert" not in text, page
        found = re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]", text)
        assert not found, (page, found)
    text = body(admin_client.get(url("containerjob", "change", job.pk)))
    assert "\u27e8ESC\u27e9[2J" in text
    assert "\u27e8U+202E\u27e9b" in text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain\ttext\n\u00e9 \u4e2d \U0001f600", "plain\ttext\n\u00e9 \u4e2d \U0001f600"),
        ("\x00\x07\x7f", "\u27e8NUL\u27e9\u27e8BEL\u27e9\u27e8U+007F\u27e9"),
        ("a\rb", "a\u27e8CR\u27e9b"),
        (
            "\u202e\u2069\u200b\u2028\ud800",
            "".join(f"\u27e8U+{c}\u27e9" for c in ["202E", "2069", "200B", "2028", "D800"]),
        ),
        ("\U000e0041", "\u27e8U+E0041\u27e9"),
    ],
)
def test_steering_characters_become_signs(raw: str, shown: str) -> None:
    assert inert(raw) == shown
    assert "\n" not in inert_line(raw)
    assert "\t" not in inert_line(raw)


# ----------------------------------------------------------------------------------------- the bytes


def test_the_complete_bytes_are_downloaded_inert(admin_client: Client, host: ExecutorHost) -> None:
    job = make_job(docker_host=host)
    raw = b"\x00\xff<script>" + b"y" * 200_000 + b"\r\n no newline at the end"
    finish_job(job, stdout=raw, stderr=b"other")
    answer = admin_client.get(url("containerjob", "log", job.pk, 1, "stdout"))
    assert b"".join(answer.streaming_content) == raw
    assert answer["Content-Type"] == "application/octet-stream"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Content-Disposition"].startswith("attachment")
    answer = admin_client.get(url("containerjob", "log", job.pk, 1, "stderr"))
    assert b"".join(answer.streaming_content) == b"other"
    for attempt, stream in ((1, "both"), (2, "stdout")):
        assert admin_client.get(url("containerjob", "log", job.pk, attempt, stream)).status_code == 404
    assert admin_client.post(url("containerjob", "log", job.pk, 1, "stdout")).status_code == 405


def test_the_bytes_need_the_right_to_look(as_staff: Callable[..., Client], host: ExecutorHost) -> None:
    job = make_job(docker_host=host)
    finish_job(job, stdout=b"private")
    assert as_staff().get(url("containerjob", "log", job.pk, 1, "stdout")).status_code == 403


# ------------------------------------------------------------------------------------------- secrets


@pytest.fixture
def with_secrets(host: ExecutorHost) -> dict[str, Any]:
    template = EnvironmentVariableTemplate.objects.create(
        name="shop", environment_variables_text=f"API_KEY={SECRET}"
    )
    config = {
        "timeout": 5,
        "registry_auth": {"registry.example.com": {"username": "robot", "password": SECRET}},
        "proxy": f"http://me:{SECRET}@proxy:3128",
        "token": SECRET,
    }
    ExecutorHost.objects.filter(pk=host.pk).update(executor_config=config)
    fields = {"environment_template": template, "environment_vars": {"DB_PASSWORD": SECRET}}
    jobs = [make_job(name=name, docker_host=host, **fields) for name in ("pending", "ended", "running")]
    finish_job(jobs[1], exit_code=1)
    start_job(jobs[2])
    Installation.current()
    return {"template": template, "host": host, "jobs": jobs}


def every_page(rows: dict[str, Any]) -> list[str]:
    """Every address of our admin that a GET reaches."""
    pages = [reverse("admin:index"), reverse("admin:app_list", args=["container_manager"])]
    objects: list[tuple[str, Any]] = [("containerjob", job.pk) for job in rows["jobs"]]
    objects += [("executorhost", rows["host"].pk), ("environmentvariabletemplate", rows["template"].pk)]
    objects += [("executionmetadata", ExecutionMetadata.objects.values_list("pk", flat=True)[0])]
    objects += [("jobevent", JobEvent.objects.values_list("pk", flat=True)[0])]
    objects += [("enginelease", "fake-one"), ("installation", 1)]
    for model in MODELS:
        pages += [url(model, "changelist"), url(model, "add")]
    for model, key in objects:
        pages += [url(model, view, key) for view in ("change", "history", "delete")]
    return pages


def test_no_page_shows_a_secret_to_a_reader(
    as_staff: Callable[..., Client], with_secrets: dict[str, Any]
) -> None:
    client = as_staff("view")
    for page in every_page(with_secrets):
        assert SECRET not in body(client.get(page)), page
    text = body(client.get(url("containerjob", "change", with_secrets["jobs"][1].pk)))
    assert f"DB_PASSWORD={REDACTED}" in text
    text = body(client.get(url("environmentvariabletemplate", "change", with_secrets["template"].pk)))
    assert f"API_KEY={REDACTED}" in text
    assert "robot" in body(client.get(url("executorhost", "change", with_secrets["host"].pk)))


def test_no_page_but_the_templates_own_form_shows_a_secret_at_all(
    admin_client: Client, with_secrets: dict[str, Any]
) -> None:
    form = url("environmentvariabletemplate", "change", with_secrets["template"].pk)
    for page in every_page(with_secrets):
        assert (SECRET in body(admin_client.get(page))) == (page == form), page


def test_masked_values_survive_a_save(admin_client: Client, with_secrets: dict[str, Any]) -> None:
    job = with_secrets["jobs"][0]
    page = url("containerjob", "change", job.pk)
    shown = admin_client.get(page).context["adminform"].form.initial["environment_text"]
    assert shown == f"DB_PASSWORD={REDACTED}"
    data = job_data(docker_host=job.docker_host_id, environment_text=f"{shown}\nNEW='a b'")
    answer = admin_client.post(page, {**data, "environment_template": job.environment_template_id})
    assert answer.status_code == 302
    job.refresh_from_db()
    assert job.environment_vars == {"DB_PASSWORD": SECRET, "NEW": "a b"}
    assert job.environment == {"API_KEY": SECRET, "DB_PASSWORD": SECRET, "NEW": "a b"}


def test_a_masked_value_without_a_stored_one_is_refused(admin_client: Client, host: ExecutorHost) -> None:
    answer = admin_client.post(url("containerjob", "add"), job_data(environment_text=f"X={REDACTED}"))
    assert answer.context["adminform"].form.errors == {
        "environment_text": ["'X' has no stored value to keep; write its value."]
    }


def test_masked_configuration_survives_a_save(admin_client: Client, with_secrets: dict[str, Any]) -> None:
    host = with_secrets["host"]
    page = url("executorhost", "change", host.pk)
    auth = {"username": "robot", "password": SECRET, "serveraddress": "registry.example.com"}
    ExecutorHost.objects.filter(pk=host.pk).update(executor_config={"timeout": 5, "registry_auth": auth})
    shown = admin_client.get(page).context["adminform"].form["configuration"].value()
    assert SECRET not in shown
    before = ExecutorHost.objects.get(pk=host.pk).executor_config
    data = host_data(name="one", connection_string="fake://one", configuration=shown)
    assert admin_client.post(page, data).status_code == 302
    assert ExecutorHost.objects.get(pk=host.pk).executor_config == before


def test_masking_is_undone_by_unmasking() -> None:
    stored = {"registry_auth": {"r": {"username": "u", "password": "p"}}, "keys": ["a", 1], "timeout": 3}
    hidden = mask(stored)
    assert hidden["registry_auth"] == {"r": {"username": "u", "password": REDACTED}}
    assert hidden["timeout"] == 3
    assert unmask(hidden, stored) == stored
    with pytest.raises(ValueError, match=r"a\.b has no stored value"):
        unmask({"a": {"b": REDACTED}}, {})


# --------------------------------------------------------------------------------------- rights


def test_a_reader_reads_everything_and_changes_nothing(
    as_staff: Callable[..., Client], with_secrets: dict[str, Any]
) -> None:
    client = as_staff("view")

    def state() -> list[Any]:
        tables = [ContainerJob, ExecutorHost, EnvironmentVariableTemplate, JobEvent, ExecutionMetadata]
        return [list(table._default_manager.order_by("pk").values()) for table in tables]

    before = state()
    for page in every_page(with_secrets):
        refused = "/add/" in page or "/delete/" in page
        assert client.get(page).status_code == (403 if refused else 200), page
        data = {**job_data(name="changed"), **host_data(name="changed"), "environment_variables_text": "A=1"}
        assert client.post(page, {**data, "post": "yes"}).status_code in (302, 403, 405, 200), page
    for model in MODELS:
        site = client.get(url(model, "changelist")).context["cl"].model_admin
        rows = list(site.model._default_manager.all())
        for action in [*(site.actions or []), "delete_selected"]:
            name = action if isinstance(action, str) else action.__name__
            act(client, model, name, *rows)
            client.post(
                url(model, "changelist"),
                {"action": name, "post": "yes", "_selected_action": [str(row.pk) for row in rows]},
            )
    for job in with_secrets["jobs"]:
        for view in ("cancel", "again"):
            assert client.post(url("containerjob", view, job.pk)).status_code == 403
    assert state() == before
    text = body(client.get(url("containerjob", "change", with_secrets["jobs"][2].pk)))
    assert "Cancel job" not in text
    assert "Run again" not in text


def test_without_rights_there_is_nothing(
    as_staff: Callable[..., Client], with_secrets: dict[str, Any]
) -> None:
    client = as_staff()
    for page in every_page(with_secrets)[1:]:
        assert client.get(page).status_code in (403, 404), page


@pytest.mark.parametrize("model", ["executionmetadata", "jobevent", "enginelease", "installation"])
def test_records_are_for_nobody_to_change(
    admin_client: Client, with_secrets: dict[str, Any], model: str
) -> None:
    key = admin_client.get(url(model, "changelist")).context["cl"].result_list[0].pk
    assert admin_client.get(url(model, "change", key)).status_code == 200
    assert admin_client.post(url(model, "change", key), {"attempt": "9"}).status_code == 403
    assert admin_client.post(url(model, "delete", key), {"post": "yes"}).status_code == 403
    assert admin_client.get(url(model, "add")).status_code == 403


# --------------------------------------------------------------------------------------- adding


def test_a_job_is_added_through_admission(admin_client: Client, admin_user: User, host: ExecutorHost) -> None:
    data = job_data(
        command="echo $HOME | cat",
        environment_text='A=1\n# a comment\nB="two words"',
        networks_text="backend db cache\nfront\n",
    )
    answer = admin_client.post(url("containerjob", "add"), data, follow=True)
    job = ContainerJob.objects.get()
    assert "was added successfully" in said(answer)
    assert (job.docker_host, job.host_pinned, job.created_by) == (host, False, admin_user)
    assert (job.command, job.command_form) == ("echo $HOME | cat", "shell")
    assert job.environment == {"A": "1", "B": "two words"}
    assert job.network_configuration == [
        {"network_name": "backend", "aliases": ["db", "cache"]},
        {"network_name": "front"},
    ]
    event = job.events.get()
    assert (event.transition, event.actor) == ("create", f"user:{admin_user.pk}")


def test_a_chosen_host_is_kept(admin_client: Client, host: ExecutorHost) -> None:
    other = make_host("two", weight=1)
    admin_client.post(url("containerjob", "add"), job_data(docker_host=other.pk))
    job = ContainerJob.objects.get()
    assert (job.docker_host, job.host_pinned) == (other, True)


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("docker_image", "Demo:1", ""),
        ("docker_image", "", "required"),
        ("command", 'echo "unclosed', "Close every quote"),
        ("working_directory", "relative", "relative"),
        ("memory_limit", "0", ""),
        ("memory_limit", "4096", "4096"),
        ("memory_limit", "", "required"),
        ("cpu_limit", "nan", ""),
        ("cpu_limit", "99", "99"),
        ("timeout_seconds", "-1", ""),
        ("networks_text", "host", ""),
        ("networks_text", "a\na", "twice"),
        ("environment_text", f"NOT A LINE {SECRET}", "line 1"),
        ("environment_text", "A=1\nB", "line 2"),
        ("user", "root", ""),
        ("priority", "99999", ""),
    ],
)
def test_what_admission_refuses_is_an_error_on_its_field(
    admin_client: Client, host: ExecutorHost, field: str, value: str, part: str
) -> None:
    answer = admin_client.post(url("containerjob", "add"), job_data(**{field: value}))
    assert answer.status_code == 200
    errors = answer.context["adminform"].form.errors
    assert set(errors) == {field}
    assert part in str(errors[field])
    assert SECRET not in str(errors)
    assert not ContainerJob.objects.exists()
    assert not JobEvent.objects.exists()


def test_without_a_host_the_form_says_how_to_register_one(admin_client: Client) -> None:
    answer = admin_client.post(url("containerjob", "add"), job_data())
    assert "register_local_host" in str(answer.context["adminform"].form.errors["docker_host"])


def test_more_cpus_than_the_host_has_is_a_form_error(admin_client: Client, host: ExecutorHost) -> None:
    ExecutorHost.objects.filter(pk=host.pk).update(cpus=1)
    answer = admin_client.post(url("containerjob", "add"), job_data(cpu_limit="2", docker_host=host.pk))
    assert set(answer.context["adminform"].form.errors) == {"cpu_limit"}


# -------------------------------------------------------------------------------------- changing


def test_a_pending_job_can_be_changed_and_stays_where_it_was_placed(
    admin_client: Client, host: ExecutorHost
) -> None:
    make_host("two", weight=1000)
    job = make_job(name="before", docker_host=host)
    ContainerJob.objects.filter(pk=job.pk).update(host_pinned=False)
    answer = admin_client.post(
        url("containerjob", "change", job.pk), job_data(name="after", command="echo a | cat")
    )
    assert answer.status_code == 302
    job.refresh_from_db()
    assert (job.name, job.command, job.command_form) == ("after", "echo a | cat", "shell")
    assert (job.docker_host, job.host_pinned) == (host, False)


def test_of_a_claimed_job_only_the_notes_change(admin_client: Client, host: ExecutorHost) -> None:
    template = EnvironmentVariableTemplate.objects.create(name="t", environment_variables_text="A=1")
    job = make_job(name="before", command="echo a", docker_host=host, environment_template=template)
    finish_job(job)
    template.environment_variables_text = "A=2"
    template.save()
    page = url("containerjob", "change", job.pk)
    assert list(admin_client.get(page).context["adminform"].form.fields) == [
        "name",
        "description",
        "priority",
    ]
    data = {"name": "after", "description": "d", "priority": "3", "command": "rm", "exit_code": "7"}
    assert admin_client.post(page, data).status_code == 302
    job.refresh_from_db()
    assert (job.name, job.description, job.priority) == ("after", "d", 3)
    assert (job.command, job.exit_code, job.environment) == ("echo a", 0, {"A": "1"})


def test_a_job_that_was_claimed_while_its_form_was_open_is_left_alone(
    admin_client: Client, host: ExecutorHost
) -> None:
    job = make_job(name="before", command="echo a", docker_host=host)
    start_job(job)
    answer = admin_client.post(
        url("containerjob", "change", job.pk), job_data(name="after", docker_host=host.pk), follow=True
    )
    assert "Nothing was saved" in said(answer)
    job.refresh_from_db()
    assert (job.name, job.command, job.status) == ("before", "echo a", "running")


# ----------------------------------------------------------------------------------------- acts


def test_cancel_selected_counts_done_and_skipped(
    admin_client: Client, admin_user: User, host: ExecutorHost
) -> None:
    ended, running, pending = (make_job(docker_host=host) for _ in range(3))
    finish_job(ended)
    start_job(running)
    answer = act(admin_client, "containerjob", "cancel_selected", ended, running, pending)
    assert said(answer) == "2 cancelled, 1 skipped: 1 \u00d7 has ended already."
    for job in (ended, running, pending):
        job.refresh_from_db()
    assert (ended.status, running.status, pending.status) == ("completed", "running", "cancelled")
    assert running.cancel_requested_by == f"user:{admin_user.pk}"
    answer = act(admin_client, "containerjob", "cancel_selected", running)
    assert "is being cancelled already" in said(answer)


def test_run_again_makes_a_job_of_the_same_wishes(
    admin_client: Client, admin_user: User, host: ExecutorHost
) -> None:
    template = EnvironmentVariableTemplate.objects.create(name="t", environment_variables_text="A=1\nB=1")
    job = make_job(
        name="load",
        command=["printf", "a b", "$x"],
        docker_host=host,
        environment_template=template,
        environment_vars={"B": "2"},
        memory_limit=128,
        network_configuration=[{"network_name": "backend", "aliases": ["db"]}],
        priority=4,
    )
    finish_job(job, exit_code=1)
    answer = admin_client.post(url("containerjob", "again", job.pk), follow=True)
    again = ContainerJob.objects.exclude(pk=job.pk).get()
    assert answer.redirect_chain[-1][0] == url("containerjob", "change", again.pk)
    same = ("name", "command", "command_form", "environment", "memory_limit", "network_configuration")
    for name in (*same, "priority", "docker_host", "host_pinned", "environment_template"):
        assert getattr(again, name) == getattr(job, name), name
    assert (again.status, again.created_by, again.attempt) == ("pending", admin_user, 0)
    template.delete()
    act(admin_client, "containerjob", "run_again_selected", ContainerJob.objects.get(pk=job.pk))
    assert ContainerJob.objects.latest("created_at").environment == {"A": "1", "B": "2"}


def test_run_again_says_why_it_was_not_possible(
    admin_client: Client, host: ExecutorHost, settings: Any
) -> None:
    job = make_job(docker_host=host, memory_limit=2048)
    settings.CONTAINER_MANAGER_SETTINGS = fake_settings(MAX_MEMORY_LIMIT=1024)
    answer = act(admin_client, "containerjob", "run_again_selected", job)
    assert said(answer).startswith("0 created, 1 skipped: 1 \u00d7 memory_limit")
    assert ContainerJob.objects.count() == 1


def test_only_ended_jobs_are_deleted(admin_client: Client, host: ExecutorHost) -> None:
    ended, pending = make_job(docker_host=host), make_job(docker_host=host)
    finish_job(ended, stdout=b"x")
    assert admin_client.post(url("containerjob", "delete", pending.pk), {"post": "yes"}).status_code == 403
    answer = act(admin_client, "containerjob", "delete_selected", ended, pending)
    assert "1 skipped: not ended yet" in said(answer)
    assert "Log chunks: 1" in body(answer)
    with CaptureQueriesContext(connection) as seen:
        admin_client.post(
            url("containerjob", "changelist"),
            {
                "action": "delete_selected",
                "post": "yes",
                "_selected_action": [str(ended.pk), str(pending.pk)],
            },
        )
    read = [query["sql"] for query in seen if query["sql"].startswith("SELECT")]
    assert not any('"data"' in sql or "stdout_log" in sql for sql in read), "a log was read to be deleted"
    assert [job.pk for job in ContainerJob.objects.all()] == [pending.pk]
    assert not LogChunk.objects.exists()


def test_an_ended_job_is_deleted_from_its_page(admin_client: Client, host: ExecutorHost) -> None:
    job = make_job(docker_host=host)
    finish_job(job, stdout=b"x")
    page = url("containerjob", "delete", job.pk)
    assert "Log chunks: 1" in body(admin_client.get(page))
    assert admin_client.post(page, {"post": "yes"}).status_code == 302
    assert not ContainerJob.objects.exists()


# ----------------------------------------------------------------------------------------- hosts


@pytest.mark.django_db(transaction=True)
def test_saving_a_host_tests_it(admin_client: Client) -> None:
    answer = admin_client.post(url("executorhost", "add"), host_data(), follow=True)
    assert "two: healthy" in said(answer)
    host = ExecutorHost.objects.get()
    assert (host.health, host.engine_id) == ("healthy", "fake-two")


@pytest.mark.django_db(transaction=True)
def test_a_host_that_is_down_is_saved_all_the_same(admin_client: Client) -> None:
    fake_engine("two").go_down()
    answer = admin_client.post(url("executorhost", "add"), host_data(), follow=True)
    assert "Nothing answers at fake://two" in said(answer)
    assert ExecutorHost.objects.get().health == "unreachable"


@pytest.mark.django_db(transaction=True)
def test_a_host_at_a_new_address_is_bound_anew_unless_jobs_run_there(admin_client: Client) -> None:
    host = make_host("one")
    host.record_up(fake_executor_facts("one"))
    page = url("executorhost", "change", host.pk)
    admin_client.post(page, host_data(name="one", connection_string="fake://two"))
    host.refresh_from_db()
    assert (host.engine_id, host.health) == ("fake-two", "healthy")
    start_job(make_job(docker_host=host), hold("fake-two"))
    answer = admin_client.post(page, host_data(name="one", connection_string="fake://three"), follow=True)
    host.refresh_from_db()
    assert (host.engine_id, host.health) == ("fake-two", "mismatched")
    assert "bound to fake-two" in said(answer)


def test_the_configuration_that_the_form_shows_as_an_example_works(admin_client: Client) -> None:
    page = admin_client.get(url("executorhost", "add"))
    text = page.context["adminform"].form.fields["configuration"].help_text
    example = text[text.index("{") : text.index("}") + 1]
    for kind, address in (("docker", "unix:///nowhere.sock"), ("fake", "fake://two")):
        data = host_data(name=kind, executor_type=kind, connection_string=address, configuration=example)
        assert admin_client.post(url("executorhost", "add"), data).status_code == 302
    for host in ExecutorHost.objects.all():
        assert host.executor_config == json.loads(example)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("connection_string", "ftp://x"),
        ("connection_string", "tcp://me:pw@host:2375"),
        ("configuration", "[1]"),
        ("configuration", '{"timeout": -1}'),
        ("configuration", '{"allowed_registries": ["registry.example.com"]}'),
        ("configuration", '{"tmeout": 1}'),
        ("configuration", "{not json"),
        ("max_concurrent_jobs", "0"),
        ("executor_type", "nonsense"),
    ],
)
def test_what_a_host_cannot_have_is_an_error_on_its_field(
    admin_client: Client, field: str, value: str
) -> None:
    data = host_data(executor_type="docker", connection_string="unix:///var/run/docker.sock")
    answer = admin_client.post(url("executorhost", "add"), {**data, field: value})
    assert field in answer.context["adminform"].form.errors
    assert not ExecutorHost.objects.exists()


def test_hosts_are_tested_and_switched_by_actions(admin_client: Client, host: ExecutorHost) -> None:
    down = make_host("down")
    fake_engine("down").go_down()
    answer = act(admin_client, "executorhost", "check_connection", host, down)
    assert "one: healthy" in said(answer)
    assert "down: Nothing answers" in said(answer)
    host.refresh_from_db()
    assert host.health == "healthy"
    assert "1 deactivated, 0 were so already" in said(act(admin_client, "executorhost", "deactivate", host))
    host.refresh_from_db()
    assert not host.is_active
    assert "1 activated, 1 were so already" in said(act(admin_client, "executorhost", "activate", host, down))


def test_a_host_of_a_type_that_is_gone_is_told_and_not_a_crash(
    admin_client: Client, host: ExecutorHost, settings: Any
) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {}
    assert "not tested" in said(act(admin_client, "executorhost", "check_connection", host))
    assert admin_client.get(url("executorhost", "change", host.pk)).status_code == 200


def test_a_host_with_jobs_stays_and_its_jobs_are_not_read(admin_client: Client, host: ExecutorHost) -> None:
    make_job(docker_host=host)
    page = url("executorhost", "delete", host.pk)
    with CaptureQueriesContext(connection) as seen:
        text = body(admin_client.get(page))
    assert "one has 1 jobs" in text
    assert not any("stdout_log" in query["sql"] for query in seen)
    admin_client.post(page, {"post": "yes"})
    assert ExecutorHost.objects.exists()


# ------------------------------------------------------------------------------------- templates


def test_a_mistake_in_a_template_is_an_error_on_its_field(admin_client: Client) -> None:
    data = {"name": "t", "description": "", "environment_variables_text": f"A=1\nno equals {SECRET}"}
    answer = admin_client.post(url("environmentvariabletemplate", "add"), data)
    errors = answer.context["adminform"].form.errors
    assert list(errors) == ["environment_variables_text"]
    assert "line 2" in str(errors)
    assert SECRET not in str(errors)


def test_a_template_counts_its_jobs(admin_client: Client, host: ExecutorHost) -> None:
    template = EnvironmentVariableTemplate.objects.create(name="t", environment_variables_text="A=1\nB=2")
    make_job(docker_host=host, environment_template=template)
    text = body(admin_client.get(url("environmentvariabletemplate", "changelist")))
    assert re.search(r'field-display_variables">2</td>.*field-display_jobs">1</td>', text, re.DOTALL)


def test_every_outcome_has_its_page(admin_client: Client, host: ExecutorHost) -> None:
    for intent, code in ((Intent.TIMEOUT, 143), (Intent.CANCEL, 143), (Intent.NONE, 0), (Intent.NONE, 127)):
        job = make_job(docker_host=host)
        finish_job(job, exit_code=code, intent=intent)
        assert job.status in body(admin_client.get(url("containerjob", "change", job.pk)))


def test_a_strict_content_security_policy_would_hold(admin_client: Client, host: ExecutorHost) -> None:
    job = make_job(docker_host=host)
    finish_job(job, exit_code=1, stdout=b"x", stderr=b"y")
    for page in (url("containerjob", "changelist"), url("containerjob", "change", job.pk)):
        text = body(admin_client.get(page))
        assert not re.search(r"<[^>]* (style|on[a-z]+)=", text), page
        assert not re.search(r"<script(?![^>]* src=)|<style", text), page
