"""The engines that tests and demo start: apart from each other, and gone without a trace."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines import BASE_IMAGE
from tools import base_image, engine_http
from tools.engine import Engine

pytestmark = pytest.mark.engine


def engine_id(url: str) -> str:
    return str(engine_http.call_json(url, "GET", "/info")["ID"])


def run(url: str, command: list[str]) -> str:
    """Run a command in a locked-down container and return its output without frame headers."""
    body = json.dumps(
        {
            "Image": BASE_IMAGE,
            "Cmd": command,
            "User": "10001:10001",
            "Tty": True,  # no frames: this is not a test of logs
            "HostConfig": {"ReadonlyRootfs": True, "NetworkMode": "none", "Tmpfs": {"/tmp": ""}},
        }
    )
    connection = engine_http.connect(url)
    connection.request("POST", "/containers/create", body=body, headers={"Content-Type": "application/json"})
    created = json.loads(connection.getresponse().read())["Id"]
    connection.close()
    engine_http.call(url, "POST", f"/containers/{created}/start")
    engine_http.call(url, "POST", f"/containers/{created}/wait", timeout=60)
    output = engine_http.call(url, "GET", f"/containers/{created}/logs", query={"stdout": "1", "stderr": "1"})
    engine_http.call(url, "DELETE", f"/containers/{created}", query={"force": "1"})
    return output


def test_the_base_image_runs_python_as_an_unprivileged_user(docker_url: str) -> None:
    imports = "import os, ssl, sqlite3, sys, zoneinfo; "
    program = imports + "zoneinfo.ZoneInfo('Europe/Berlin'); print(sys.prefix, os.getuid())"
    assert run(docker_url, ["python3", "-c", program]).split() == ["/usr/local", "10001"]


def test_the_base_image_has_a_shell_with_the_usual_tools(docker_url: str) -> None:
    assert run(docker_url, ["sh", "-c", "seq 5 | sort -r | head -n 2 | tr '\\n' ' '"]).split() == ["5", "4"]


def test_the_base_image_is_made_once(docker_url: str) -> None:
    assert base_image.ensure(docker_url, [BASE_IMAGE], say=False) is False


def test_the_base_image_holds_nothing_of_this_machines_home(docker_url: str) -> None:
    listing = run(
        docker_url, ["find", "/root", "/home", "/etc/pip.conf", "/usr/local/lib", "-name", "*.conf"]
    )
    assert ".conf\r\n" not in listing
    assert "site-packages" not in run(docker_url, ["sh", "-c", "ls /usr/local/lib/python*"])


def test_two_engines_are_two(docker_url: str, tcp_engine_url: str) -> None:
    assert engine_http.answers(tcp_engine_url)
    assert engine_id(docker_url) != engine_id(tcp_engine_url)


def test_a_killed_daemon_comes_back_with_its_containers(engine_of_my_own: Callable[..., Engine]) -> None:
    engine = engine_of_my_own()
    before, daemon = engine_id(engine.url), engine.daemon
    assert daemon is not None
    daemon.signal(signal.SIGKILL)
    assert daemon.wait(10)
    assert not engine.running()
    assert engine.resume() == engine.url
    assert engine_id(engine.url) == before


def test_start_clears_what_a_crash_left_and_keeps_the_images(engine_of_my_own: Callable[..., Engine]) -> None:
    engine = engine_of_my_own()
    daemon = engine.daemon
    assert daemon is not None
    daemon.signal(signal.SIGKILL)
    assert daemon.wait(10)
    (engine.run / "state.json").unlink()  # as if the run that started it had died in the middle
    engine.start()
    assert base_image.ensure(engine.url, [BASE_IMAGE], say=False) is False


def test_stop_leaves_nothing(engine_of_my_own: Callable[..., Engine]) -> None:
    engine = engine_of_my_own(tcp=True)
    engine.stop()
    assert not engine.home.exists()
    assert not engine.run.exists()
    assert engine.id not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert not [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(engine.home) in line
    ]
    engine.stop()
