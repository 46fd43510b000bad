"""The README's first job, by the README's own words: what a new user copies and pastes has to work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests import engines
from tools import engine_http

pytestmark = pytest.mark.engine

SECTION = re.search(
    r"^## Your first job\n(.*?)^## ", (engines.PROJECT / "README.md").read_text(), re.MULTILINE | re.DOTALL
)
assert SECTION is not None
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", SECTION[1], re.MULTILINE | re.DOTALL)
SHELL = [block for language, block in BLOCKS if language == "sh"]
PYTHON = [block for language, block in BLOCKS if language == "python"]
IMAGE = "my-project-jobs:latest"


@pytest.fixture
def image(docker_url: str) -> Iterator[str]:
    """A name for the image that no other run on this engine uses."""
    name = f"r-readme-{uuid.uuid4().hex[:8]}:latest"
    yield name
    engine_http.call(docker_url, "DELETE", f"/images/{quote(name, safe=':')}", query={"force": "1"})


def test_the_first_job_of_the_readme_runs_as_it_is_written(
    tmp_path: Path, docker_url: str, image: str
) -> None:
    tools = str(Path(sys.executable).parent)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DJANGO_")},
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(engines.PROJECT),  # in place of the first block, which installs the package
        "DOCKER_HOST": docker_url,
    }

    def run(*command: str, cwd: Path) -> str:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
        return done.stdout

    (start,) = re.findall(r"`(django-admin startproject my_project)", SECTION[1])
    run(*start.split(), cwd=tmp_path)
    project = tmp_path / "my_project"
    settings, create, read = PYTHON
    assert IMAGE in settings
    with (project / "my_project" / "settings.py").open("a") as file:
        file.write(settings.replace(IMAGE, image))

    install, first, worker = SHELL
    assert install.startswith("pip install ")
    for line in first.splitlines():
        command = line.partition("#")[0].split()
        if "build_job_image" in command:
            command += ["--base-image", engines.BASE_IMAGE]  # the usual one is in a registry
        out = run(*command, cwd=project)
    assert out == "System check identified no issues (0 silenced).\n"  # the job's own output, and no more

    run(sys.executable, "manage.py", "shell", "-c", create, cwd=project)
    run(*worker.split(), "--once", cwd=project)
    look = (
        "from container_manager.models import ContainerJob\n"
        "job = ContainerJob.objects.latest('created_at')\n"
        f"{read}\nprint('=', job.status, job.exit_reason, job.exit_code, job.clean_output)"
    )
    out = run(sys.executable, "manage.py", "shell", "-c", look, cwd=project)
    assert "= completed success 0 System check identified no issues" in out
