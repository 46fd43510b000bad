"""The admin pages in a real browser: nothing on the console, nothing wider than the screen, both themes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from playwright.sync_api import BrowserContext, ConsoleMessage, Error, Page, Request, sync_playwright

from container_manager.core.outcome import Intent
from container_manager.models import ContainerJob, EnvironmentVariableTemplate, ExecutorHost
from container_manager.records import Usage
from tests.db.factories import fake_settings, finish_job, make_host, make_job, start_job

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

INTERFACES_CHANGED = "ERR_NETWORK_CHANGED"
SIZES = {"desktop": (1280, 900), "phone": (360, 740)}
HOSTILE = b"\x1b[31mred\x1b[0m \xe2\x80\xaegnp.exe \x07\r<script>document.title='owned'</script>\n"
STDERR = b"Traceback (most recent call last):\n" + b'  File "load.py", line 7, in <module>\n' * 9
STDERR += b"ValueError: line 3 has 4 columns, not 5\n" + HOSTILE


@pytest.fixture(autouse=True)
def rows(settings: Any, transactional_db: None) -> dict[str, ContainerJob]:
    settings.CONTAINER_MANAGER_SETTINGS = fake_settings()
    make_host("one", max_concurrent_jobs=4)
    make_host("two", is_active=False)
    template = EnvironmentVariableTemplate.objects.create(
        name="shop",
        description="For every job of the shop",
        environment_variables_text="API_KEY=s3cret\n# x\nA=1",
    )
    one = ExecutorHost.objects.get(name="one")

    def job(name: str, command: str, **fields: Any) -> ContainerJob:
        return make_job(name=name, command=command, docker_host=one, environment_template=template, **fields)

    usage = Usage(max_memory_bytes=123_400_000, memory_source="peak", cpu_percent=47.3, samples=9)
    found = {
        "completed": job("import_books", "python manage.py import_books --file books.csv"),
        "failed": job(
            "load prices",
            "python load.py | tee /tmp/out",
            environment_vars={"TOKEN": "s3cret"},
            network_configuration=[{"network_name": "backend", "aliases": ["loader"]}],
        ),
        "oom": job("a-very-long-name-" * 6, "python eat.py"),
        "timeout": job("nightly report", "sleep 4000"),
        "cancelled": job("rebuild index", "sleep 4000"),
        "running": job("follow me", "sleep 4000"),
        "pending": job("waiting", "echo later"),
    }
    log = "2026-01-01T00:00:00Z pull demo:1: on the host already\n2026-01-01T00:00:01Z exited with 2\n"
    finish_job(found["completed"], stdout=b'{"books": 42}\n', usage=usage, docker_log=log)
    finish_job(
        found["failed"], exit_code=2, stdout=b"reading\n" * 40, stderr=STDERR, usage=usage, docker_log=log
    )
    finish_job(found["oom"], exit_code=137, oom_killed=True, usage=usage)
    finish_job(found["timeout"], exit_code=143, intent=Intent.TIMEOUT)
    found["cancelled"].cancel(by="user:1")
    start_job(found["running"])
    return found


@pytest.fixture
def context(
    request: pytest.FixtureRequest, live_server: Any, chromium: str, rows: dict[str, ContainerJob]
) -> Iterator[BrowserContext]:
    """A logged-in browser. Rows and login are made before it starts: Django refuses its loop's thread."""
    size, scheme = request.param
    client = Client()
    client.force_login(User.objects.create_superuser("ada", password="x"))
    cookie = client.cookies["sessionid"].value
    width, height = SIZES[size]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        made = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        made.add_cookies([{"name": "sessionid", "value": cookie, "url": live_server.url}])
        yield made
        browser.close()


def watched(context: BrowserContext) -> tuple[Page, list[str]]:
    """A new page, and the list that its errors go into."""
    page = context.new_page()
    page.route("**/favicon.ico", lambda route: route.fulfill(status=204))  # the browser's own wish
    errors: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            errors.append(message.text)

    def failed(request: Request) -> None:
        errors.append(f"{request.url}: {request.failure}")

    page.on("console", heard)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", failed)
    return page, errors


def visit(page: Page, errors: list[str], address: str) -> None:
    """Open a page. Engines beside us come and go with their interfaces, at which Chromium drops requests."""
    for _ in range(10):
        before = len(errors)
        try:
            answer = page.goto(address)
        except Error as error:
            if INTERFACES_CHANGED not in str(error):
                raise
            del errors[before:]
            continue
        page.wait_for_load_state("networkidle")
        if any(INTERFACES_CHANGED in text for text in errors[before:]):
            del errors[before:]
            continue
        assert answer is not None
        assert answer.status == 200, address
        return
    pytest.fail(f"{address}: the machine's interfaces changed in every one of 10 tries")


@pytest.mark.parametrize(
    "context",
    [("desktop", "light"), ("desktop", "dark"), ("phone", "light"), ("phone", "dark")],
    indirect=True,
)
def test_pages_are_whole(
    context: BrowserContext,
    live_server: Any,
    rows: dict[str, ContainerJob],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    name = "-".join(request.node.callspec.params["context"])
    pictures = Path(os.environ.get("CM_SCREENSHOTS") or tmp_path)
    pictures.mkdir(parents=True, exist_ok=True)
    page, errors = watched(context)
    base = live_server.url + reverse("admin:app_list", args=["container_manager"])
    for title, path in {
        "list": "containerjob/",
        "failed": f"containerjob/{rows['failed'].pk}/change/",
        "oom": f"containerjob/{rows['oom'].pk}/change/",
        "running": f"containerjob/{rows['running'].pk}/change/",
        "pending": f"containerjob/{rows['pending'].pk}/change/",
        "add": "containerjob/add/",
        "hosts": "executorhost/",
        "host": "executorhost/1/change/",
        "templates": "environmentvariabletemplate/",
        "events": "jobevent/",
        "executions": "executionmetadata/",
    }.items():
        visit(page, errors, base + path)
        page.screenshot(path=str(pictures / f"{name}-{title}.png"), full_page=True)
        assert "owned" not in page.title()
        assert "s3cret" not in page.content()
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{path} is {wide} px wider than the screen"
    assert errors == []
