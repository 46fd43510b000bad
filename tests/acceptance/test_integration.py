"""Guide: Management Command Integration, API Integration, Webhook Integration, Log Aggregation."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from typing import Any

import pytest
import requests
from django.conf import settings as django_settings
from django.core.management import CommandError, call_command
from django.db.models.signals import post_save
from pytest_django import Settings

from container_manager.management.commands.process_container_jobs import JsonFormatter
from container_manager.models import ContainerJob, ExecutorHost
from tests.acceptance.running import drain, finished, stored, until

pytestmark = pytest.mark.engine


@pytest.fixture
def guide_app(settings: Settings) -> None:
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "tests.acceptance.guide_app"]


# ------------------------------------------------------------------------------- management command


def test_a_users_command_creates_jobs_and_waits_for_them(local_host: ExecutorHost, guide_app: None) -> None:
    out = StringIO()
    call_command("process_files", input_file="books.csv", workers=3, stdout=out)
    assert out.getvalue().splitlines() == [
        "Created 3 processing jobs",
        "Results: 2 completed, 1 failed",
    ]
    first = ContainerJob.objects.get(name="data-worker-0")
    assert (first.clean_output, first.memory_limit) == ("worker 0 has read books.csv\n", 512)


def test_a_users_command_says_that_there_is_no_host(transactional_db: None, guide_app: None) -> None:
    with pytest.raises(CommandError, match="No active Docker hosts"):
        call_command("process_files", input_file="books.csv")


def test_an_instance_from_before_the_run_has_to_be_read_again(local_host: ExecutorHost) -> None:
    job = ContainerJob.objects.create_job(image="alpine:3.18", command="true")
    drain()
    assert job.status == "pending"  # a worker writes rows, it cannot reach into the caller's objects
    job.refresh_from_db()
    assert job.status == "completed"


def test_a_stale_instance_does_not_undo_a_result(local_host: ExecutorHost) -> None:
    job = ContainerJob.objects.create_job(image="alpine:3.18", command="echo done")
    drain()
    job.description = "written later"
    job.save()
    assert (stored(job).status, stored(job).description, stored(job).clean_output) == (
        "completed",
        "written later",
        "done\n",
    )


# ------------------------------------------------------------------------------------------------ API


def test_a_batch_of_requests_becomes_a_batch_of_jobs(local_host: ExecutorHost) -> None:
    body = json.loads(
        """{"jobs": [
            {"image": "alpine:3.18", "command": "echo one", "name": "one"},
            {"image": "python:3.11", "command": "printenv WHO || echo nobody", "memory_limit": 128,
             "cpu_limit": 0.5, "environment_vars": {"WHO": "batch"}},
            {"image": "alpine:3.18", "command": ["sh", "-c", "echo $WHO"], "environment_vars": {"WHO": "me"}}
        ]}"""
    )
    jobs = ContainerJob.objects.create_jobs(body["jobs"])
    drain()
    assert [stored(job).status for job in jobs] == ["completed"] * 3
    answer = {
        "stdout": stored(jobs[2]).stdout_log,
        "stderr": stored(jobs[2]).stderr_log,
        "clean_output": stored(jobs[2]).clean_output,
        "parsed_output": stored(jobs[2]).parsed_output,
    }
    assert json.loads(json.dumps(answer))["clean_output"] == "me\n"


# -------------------------------------------------------------------------------------------- webhook


class Receiver:
    """A web server on the loopback that keeps every JSON document posted to it."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        posts = self.posts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.headers["Content-Type"] == "application/json"
                posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


@pytest.fixture
def web() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def job_status_webhook(sender: type[ContainerJob], instance: ContainerJob, **kwargs: Any) -> None:
    """What the guide's receiver does, for every change of status."""
    if kwargs.get("update_fields") and "status" not in kwargs["update_fields"]:
        return
    url = getattr(django_settings, "CONTAINER_JOB_WEBHOOK_URL", None)
    if not url:
        return
    answer = requests.post(
        url,
        json={
            "job_id": str(instance.id),
            "job_name": instance.name,
            "status": instance.status,
            "image": instance.docker_image,
            "docker_host": instance.docker_host.name,
            "created_at": instance.created_at.isoformat(),
            "started_at": instance.started_at.isoformat() if instance.started_at else None,
            "completed_at": instance.completed_at.isoformat() if instance.completed_at else None,
            "exit_code": instance.exit_code,
            "duration": str(instance.duration) if instance.duration else None,
        },
        timeout=10,
    )
    answer.raise_for_status()


@pytest.fixture
def webhook(web: Receiver, settings: Settings) -> Iterator[Receiver]:
    settings.CONTAINER_JOB_WEBHOOK_URL = web.url
    post_save.connect(job_status_webhook, sender=ContainerJob)
    yield web
    post_save.disconnect(job_status_webhook, sender=ContainerJob)


def test_a_receiver_of_post_save_hears_of_each_status(local_host: ExecutorHost, webhook: Receiver) -> None:
    job = ContainerJob.objects.create_job(image="alpine:3.18", command="sleep 0.2; exit 4", name="announced")
    job.description = "saving something else is not a change of status"
    job.save(update_fields=["description"])
    drain()
    until(lambda: webhook.posts[-1]["status"] == "failed", "the last post")
    assert [post["status"] for post in webhook.posts] == ["pending", "launching", "running", "failed"]
    first, last = webhook.posts[0], webhook.posts[-1]
    assert (first["started_at"], first["exit_code"]) == (None, None)
    assert (last["job_id"], last["docker_host"], last["exit_code"]) == (str(job.id), local_host.name, 4)
    assert last["started_at"] < last["completed_at"]
    assert last["duration"]


def test_a_webhook_that_cannot_be_reached_does_not_stop_the_worker(
    local_host: ExecutorHost, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    job = ContainerJob.objects.create_job(image="alpine:3.18", command="true", name="unannounced")
    settings.CONTAINER_JOB_WEBHOOK_URL = "http://127.0.0.1:1/hook"
    post_save.connect(job_status_webhook, sender=ContainerJob)
    try:
        assert finished(job).status == "completed"
    finally:
        post_save.disconnect(job_status_webhook, sender=ContainerJob)
    assert str(job.pk) in caplog.text


# ------------------------------------------------------------------------------------------- logging


def test_a_log_event_carries_the_job_into_json(local_host: ExecutorHost) -> None:
    job = finished(ContainerJob.objects.create_job(image="alpine:3.18", command="true", name="logged"))
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("container_manager.jobs")
    logger.addHandler(handler)
    try:
        logger.error(
            "Job finished: %s",
            job.name,
            extra={
                "job_id": str(job.id),
                "execution_id": job.get_execution_identifier(),
                "docker_host": job.docker_host.name,
            },
        )
    finally:
        logger.removeHandler(handler)
    line = json.loads(stream.getvalue())
    assert (line["level"], line["message"], line["job_id"]) == ("ERROR", "Job finished: logged", str(job.id))
    assert (line["execution_id"], line["docker_host"]) == (job.get_execution_identifier(), local_host.name)


def test_the_worker_itself_logs_json_lines(
    local_host: ExecutorHost, child_environment: dict[str, str]
) -> None:
    job = ContainerJob.objects.create_job(image="alpine:3.18", command="true", name="logged")
    answer = subprocess.run(
        [sys.executable, "-m", "django", "process_container_jobs", "--once", "--log-format", "json"],
        env=child_environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = [json.loads(line) for line in answer.stderr.splitlines()]
    assert stored(job).status == "completed"
    about = [line for line in lines if line.get("job_id") == str(job.id)]
    assert about
    assert {"timestamp", "level", "message", "logger"} <= about[-1].keys()
