"""`register_local_host`: one command from nothing to a host, or a word about what is missing."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from container_manager.models import ContainerJob, ExecutorHost
from tests.db.factories import hold, start_job

pytestmark = pytest.mark.django_db

NAMES = ("DOCKER_HOST", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "HOME")


@pytest.fixture(autouse=True)
def _lonely(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: Any) -> None:
    """No engine is to be found but where a test puts one."""
    settings.CONTAINER_MANAGER_SETTINGS = {"ALLOW_PROCESS_EXECUTOR": True, "DOCKER_TIMEOUT": 5}
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    from container_manager.management.commands import register_local_host

    monkeypatch.setattr(
        register_local_host, "_SOCKETS", ("{runtime}/docker.sock", "{home}/.docker/run/docker.sock")
    )


def register(*arguments: str) -> str:
    out = io.StringIO()
    call_command("register_local_host", *arguments, stdout=out)
    return out.getvalue()


# ------------------------------------------------------------------------------------- without Docker


def test_the_process_executor_is_registered_and_works_at_once(tmp_path: Path) -> None:
    said = register("--process")
    host = ExecutorHost.objects.get()
    assert (host.name, host.executor_type) == ("local", "process")
    assert host.connection_string == f"process://{tmp_path}/.local/state/container-jobs"
    assert host.health == "healthy"
    assert host.engine_id
    assert host.cpus == os.cpu_count()
    assert "Registered host 'local'" in said
    assert "process_container_jobs" in said
    assert ContainerJob.objects.create_job("any:1", "true").docker_host == host


def test_registering_again_updates_and_makes_no_second(tmp_path: Path) -> None:
    register("--process")
    ExecutorHost.objects.update(is_active=False)
    first = ExecutorHost.objects.get()
    said = register("--process", "--max-jobs", "3")
    host = ExecutorHost.objects.get()
    assert "Updated host 'local'" in said
    assert (host.pk, host.engine_id) == (first.pk, first.engine_id)
    assert (host.is_active, host.max_concurrent_jobs) == (True, 3)
    assert "It was inactive and gets new jobs again." in said
    assert "inactive" not in register("--process")
    register("--process", "--name", "second", "--url", f"process://{tmp_path}/elsewhere")
    assert ExecutorHost.objects.count() == 2


def test_another_address_is_bound_anew(tmp_path: Path) -> None:
    register("--process")
    first = ExecutorHost.objects.get()
    register("--process", "--url", f"process://{tmp_path}/elsewhere")
    host = ExecutorHost.objects.get()
    assert host.connection_string.endswith("/elsewhere")
    assert host.health == "healthy"
    assert host.engine_id != first.engine_id


def test_the_process_executor_needs_permission(settings: Any) -> None:
    settings.CONTAINER_MANAGER_SETTINGS = {}
    with pytest.raises(CommandError, match=r"--process: .*ALLOW_PROCESS_EXECUTOR"):
        register("--process")
    assert not ExecutorHost.objects.exists()


# -------------------------------------------------------------------------------- what cannot be reached


def test_without_an_engine_it_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as caught:
        register()
    text = str(caught.value)
    for word in ("DOCKER_HOST", f"{tmp_path}/run/docker.sock", "--url", "--process"):
        assert word in text
    assert not ExecutorHost.objects.exists()


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("nonsense", "--url: .*'nonsense'"),
        ("tcp://localhost", "--url: .*port"),
        ("unix:///nowhere/docker.sock", "nothing was registered: .*/nowhere/docker.sock"),
        ("tcp://127.0.0.1:9", "nothing was registered: .*127.0.0.1:9"),
    ],
)
def test_an_engine_that_does_not_answer_is_not_registered(url: str, word: str) -> None:
    with pytest.raises(CommandError, match=word):
        register("--url", url)
    assert not ExecutorHost.objects.exists()


def test_a_bad_number_of_jobs_is_refused() -> None:
    for number in ("0", "-1", str(2**31)):
        with pytest.raises(CommandError, match="--max-jobs: Use 1 or more"):
            register("--process", "--max-jobs", number)
    assert not ExecutorHost.objects.exists()


@pytest.mark.parametrize("name", ["", "   ", "n" * 201])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(CommandError, match="--name: Give the host a name of at most 200 characters"):
        register("--process", "--name", name)
    assert not ExecutorHost.objects.exists()


def test_an_address_from_the_environment_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://somewhere")
    with pytest.raises(CommandError, match=r"^DOCKER_HOST: 'ssh://somewhere' does not start with"):
        register()


# ------------------------------------------------------------------------------- a host that is there


def test_a_host_is_given_another_kind_of_address_both_ways(tmp_path: Path) -> None:
    tcp = ExecutorHost.objects.create(name="local", connection_string="tcp://127.0.0.1:9")
    assert tcp.host_type == "tcp"
    with pytest.raises(CommandError, match=r"nothing was registered: .*nowhere\.sock"):
        register("--url", "unix:///nowhere.sock")  # nobody answers there, which is all that is wrong
    register("--process")
    host = ExecutorHost.objects.get()
    assert (host.pk, host.executor_type, host.host_type) == (tcp.pk, "process", "")
    with pytest.raises(CommandError, match=r"nothing was registered: .*127\.0\.0\.1:9"):
        register("--url", "tcp://127.0.0.1:9")
    assert ExecutorHost.objects.get().executor_type == "process"


def test_what_others_set_on_the_host_stays() -> None:
    register("--process")
    ExecutorHost.objects.update(weight=7, auto_pull_images=False, executor_config={"timeout": 9})
    register("--process")
    host = ExecutorHost.objects.get()
    assert (host.weight, host.auto_pull_images, host.executor_config) == (7, False, {"timeout": 9})


def test_a_host_with_jobs_under_way_is_not_sent_to_another_engine(tmp_path: Path) -> None:
    register("--process")
    host = ExecutorHost.objects.get()
    start_job(ContainerJob.objects.create_job("any:1", "true"), hold(host.engine_id))
    with pytest.raises(CommandError, match=r"nothing was registered: .* 1 of its jobs .* --name"):
        register("--process", "--url", f"process://{tmp_path}/elsewhere")
    host = ExecutorHost.objects.get()
    assert host.connection_string.endswith("/container-jobs")
    assert host.engine_id
    register("--process", "--max-jobs", "3")  # its own engine is no other


def test_another_engine_at_the_same_address_changes_nothing(tmp_path: Path) -> None:
    register("--process")
    ExecutorHost.objects.update(engine_id="process-other", max_concurrent_jobs=1)
    with pytest.raises(CommandError, match=r"nothing was registered: .* bound to process-other"):
        register("--process", "--max-jobs", "9")
    host = ExecutorHost.objects.get()
    assert (host.engine_id, host.max_concurrent_jobs) == ("process-other", 1)


# ------------------------------------------------------------------------- a socket that is not an engine


@pytest.fixture
def silent_socket(tmp_path: Path) -> Iterator[Path]:
    """Something answers HTTP there, and it is no engine."""

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.end_headers()

        def address_string(self) -> str:  # a unix socket has no address to log
            return "unix"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            return

    path = tmp_path / "run" / "docker.sock"
    path.parent.mkdir()
    with ThreadingUnixStreamServer(str(path), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield path
        server.shutdown()
        thread.join(10)


def test_a_socket_in_the_usual_place_is_found_and_asked(silent_socket: Path) -> None:
    with pytest.raises(CommandError, match="nothing was registered: "):
        register()
    assert not ExecutorHost.objects.exists()


# --------------------------------------------------------------------------------------- a real engine


@pytest.mark.engine
def test_the_engine_at_docker_host_is_registered(docker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker_url)
    said = register()
    host = ExecutorHost.objects.get()
    assert (host.name, host.executor_type, host.connection_string) == ("local", "docker", docker_url)
    assert host.host_type == docker_url.partition("://")[0]
    assert host.health == "healthy"
    assert host.engine_version in said
    assert host.cpus
    assert host.memory_bytes
    assert host.facts["api_version"]


@pytest.mark.engine
def test_a_socket_in_the_usual_place_is_the_engine(docker_url: str, tmp_path: Path) -> None:
    scheme, _, path = docker_url.partition("://")
    if scheme != "unix":
        return  # the engine that was named has no socket to link to
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "docker.sock").symlink_to(path)
    register("--name", "here")
    host = ExecutorHost.objects.get()
    assert (host.name, host.connection_string) == ("here", f"unix://{tmp_path}/run/docker.sock")
