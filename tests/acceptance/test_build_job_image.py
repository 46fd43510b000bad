"""`build_job_image` on a real engine: a small Django project becomes an image that its jobs run in."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests import engines
from tools import engine_http

pytestmark = pytest.mark.engine

PROJECT = {
    "manage.py": """
import os, sys
from django.core.management import execute_from_command_line
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
execute_from_command_line(sys.argv)
""",
    "shop/__init__.py": "",
    "shop/settings.py": """
import os
from pathlib import Path
BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = "x"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "container_manager", "stock"]
DATABASES = {"default": {
    "ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("SHOP_DB", BASE_DIR / "data" / "shop.db")
}}
CONTAINER_MANAGER_SETTINGS = {"COMMAND_IMAGE": os.environ.get("SHOP_IMAGE", "")}
""",
    "stock/__init__.py": "",
    "stock/management/__init__.py": "",
    "stock/management/commands/__init__.py": "",
    "stock/management/commands/count.py": """
import json, os, sys
from pathlib import Path
from django.core.management.base import BaseCommand
class Command(BaseCommand):
    def add_arguments(self, parser):
        parser.add_argument("--to", type=int)
    def handle(self, to, **options):
        here = Path("/app")
        paths = (path for path in sorted(here.rglob("*")) if "__pycache__" not in path.parts)
        found = [str(path.relative_to(here)) for path in paths]
        writable = [name for name in found if os.access(here / name, os.W_OK)]
        self.stderr.write("counting")
        print(json.dumps({"sum": sum(range(to)), "uid": os.getuid(), "files": found, "writable": writable}))
        sys.exit(to % 7)
""",
    ".dockerignore": "*.md\nscratch\n",
    "notes.md": "not sent",
    "scratch/big": "not sent",
    ".env": "PASSWORD=hidden",
    "stock/.env.local": "PASSWORD=hidden",
    "tls/server.key": "hidden",
    ".git/config": "hidden",
    ".venv/bin/python": "hidden",
    "backup.sqlite3": "hidden",
    "stock/__pycache__/old.pyc": "hidden",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A Django project in a folder, with a database of its own, and the image that it is built into."""

    root: Path
    url: str
    tag: str

    def manage(self, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a management command in the project's folder."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=self.root,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("DJANGO_")},
                "PYTHONPATH": str(engines.PROJECT),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done

    def build(self, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.manage(
            "build_job_image", "--tag", self.tag, "--base-image", engines.BASE_IMAGE, *options, code=code
        )

    def image(self, tag: str = "") -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = engine_http.call_json(
                self.url, "GET", f"/images/{quote(tag or self.tag, safe=':/')}/json"
            )
        except engine_http.EngineAnswer as answer:
            if answer.status == 404:
                return None
            raise
        return found


@pytest.fixture
def project(tmp_path: Path, docker_url: str) -> Iterator[Project]:
    for name, text in PROJECT.items():
        path = tmp_path / "shop project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "shop project/data").mkdir()
    found = Project(root=tmp_path / "shop project", url=docker_url, tag=f"r-shop-{uuid.uuid4().hex[:8]}:test")
    found.manage("migrate", "-v0")
    found.manage("register_local_host", "--url", docker_url)
    yield found
    with contextlib.suppress(engine_http.EngineAnswer):
        engine_http.call(docker_url, "DELETE", f"/images/{found.tag}", query={"force": "1"})


def test_a_project_becomes_an_image_that_its_commands_run_in(project: Project) -> None:
    first = project.build()
    image = project.image()
    assert image is not None
    assert image["Config"]["User"] == "10001:10001"
    assert image["Config"]["WorkingDir"] == "/app"
    assert "DJANGO_SETTINGS_MODULE=shop.settings" in image["Config"]["Env"]
    facts = dict(line.split(maxsplit=1) for line in first.stdout.splitlines())
    assert facts["Image"] == f"{project.tag} on local"
    assert facts["Id"] == image["Id"]
    assert facts["Setting"] == f'CONTAINER_MANAGER_SETTINGS["COMMAND_IMAGE"] = "{project.tag}"'
    assert "Step 1/" in first.stderr

    # The command's arguments, streams and exit code, by the image that the settings name.
    ran = project.manage(
        "run_in_container",
        "--env",
        "SHOP_DB=/tmp/x.db",
        "--",
        "count",
        "--to",
        "10",
        code=3,
        SHOP_IMAGE=project.tag,
    )
    seen = json.loads(ran.stdout)
    assert (seen["sum"], seen["uid"]) == (45, 10001)
    assert ran.stderr.startswith("counting\n")
    assert seen["writable"] == []
    assert seen["files"] == [
        "data",
        "manage.py",
        "shop",
        "shop/__init__.py",
        "shop/settings.py",
        "stock",
        "stock/__init__.py",
        "stock/management",
        "stock/management/__init__.py",
        "stock/management/commands",
        "stock/management/commands/__init__.py",
        "stock/management/commands/count.py",
        "tls",
    ]

    # A second build does nothing; a change of the code leaves the packages alone.
    again = project.build()
    assert image["Id"] in again.stdout
    steps = [line for line in again.stderr.splitlines() if line.startswith("Step ")]
    assert again.stderr.count("---> Using cache") == len(steps) - 1  # but for FROM
    (project.root / "shop/new.py").write_text("new = True\n")
    changed = project.build("--quiet")
    assert changed.stderr == ""
    assert changed.stdout.strip().startswith("sha256:")
    assert changed.stdout.strip() != image["Id"]
    new_image = project.image()
    assert new_image is not None
    before, after = image["RootFS"]["Layers"], new_image["RootFS"]["Layers"]
    assert before[:-2] == after[:-2]  # all but the code and its compilation
    assert before[-2] != after[-2]


def test_the_projects_own_dockerfile_is_used_with_arguments(project: Project) -> None:
    (project.root / "Dockerfile").write_text(
        f"ARG WORD\nFROM {engines.BASE_IMAGE}\nARG WORD\nLABEL word=$WORD\nCOPY . /srv\nWORKDIR /srv\n"
        'RUN ["sh", "-c", "ls -A > /listing; cat /listing"]\n'
    )
    done = project.manage("build_job_image", "--tag", project.tag, "--build-arg", "WORD=heard")
    image = project.image()
    assert image is not None
    assert image["Config"]["Labels"]["word"] == "heard"
    listed = {"Dockerfile", "data", "manage.py", "shop", "stock", "tls"}
    assert listed <= set(done.stderr.split())
    assert not {".dockerignore", ".env", ".git", ".venv", "notes.md"} & set(done.stderr.split())
    assert ".build-job-image.Dockerfile" not in done.stderr


def test_a_step_that_fails_is_shown_and_nothing_is_tagged(project: Project) -> None:
    (project.root / "Dockerfile").write_text(
        f"FROM {engines.BASE_IMAGE}\nRUN echo before\nRUN echo the cause >&2; exit 9\nRUN echo after\n"
    )
    done = project.manage("build_job_image", "--tag", project.tag, "--quiet", code=1)
    assert done.stdout == ""
    assert "nothing was tagged" in done.stderr
    assert "Step 3/4 : RUN echo the cause" in done.stderr
    assert "    the cause" in done.stderr
    assert "before" not in done.stderr.replace("RUN echo before", "")
    assert "non-zero code: 9" in done.stderr
    assert project.image() is None

    (project.root / "Dockerfile").write_text("FORM nothing\n")
    done = project.manage("build_job_image", "--tag", project.tag, code=1)
    assert "unknown instruction: FORM" in done.stderr


def test_a_base_image_without_the_dependencies_is_found_out(project: Project) -> None:
    done = project.build("--dependencies", "none", code=1)
    assert "No module named 'django'" in done.stderr
    assert project.image() is None


def test_a_base_image_that_cannot_be_had_is_told(project: Project) -> None:
    code = "from container_manager.models import ExecutorHost as H; H.objects.update(auto_pull_images=False)"
    project.manage("shell", "-c", code)
    done = project.manage("build_job_image", "--base-image", "r-no-such-base:1", code=1)
    assert "--base-image: " in done.stderr
    assert "r-no-such-base:1" in done.stderr


def test_bad_input_names_the_option(project: Project) -> None:
    for options, text in (
        (["--host", "nowhere"], "--host: there is no host named 'nowhere'. Known: local."),
        (["--tag", "Bad Tag"], "--tag: 'Bad Tag' has a space"),
        (["--build-arg", "NOVALUE"], "--build-arg: 'NOVALUE' is not KEY=VALUE"),
    ):
        assert text in project.manage("build_job_image", *options, code=1).stderr


def test_the_dockerfile_can_be_seen_without_an_engine(project: Project) -> None:
    done = project.manage("build_job_image", "--print-dockerfile")
    assert f"FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim" in done.stdout
    assert done.stderr == ""
