"""Where the demo's jobs run: the engine at hand, a private one, or plain processes; and how to undo it.

The choice is remembered in .state/demo.json, so that a second run and `--clean` find the same place.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import base_image, engine_http
from tools.engine import Engine, EngineError, refusal

DEMO = Path(__file__).resolve().parent
PROJECT = DEMO.parent
STATE = PROJECT / ".state" / "demo.json"
ENGINE = Engine(name="demo", root=PROJECT / ".state" / "engines")
IMAGE = "container-jobs-demo:latest"
INSTALLATION_LABEL = "io.django-container-jobs.installation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An engine's address and the base image that is on it; no address means plain processes."""

    url: str
    base: str
    base_is_ours: bool = False  # made here, hence ours to remove

    @property
    def is_docker(self) -> bool:
        """Whether jobs run in containers."""
        return bool(self.url)

    @property
    def is_private(self) -> bool:
        """Whether its engine was started for the demo."""
        return self.url == ENGINE.url


def find() -> Place:
    """Choose the place, prepare it, and say what was chosen and why."""
    url = _engine_at_hand() or _private_engine()
    place = Place(url=url, base="local-processes:none")
    if url:
        base = _from_registry(url)
        if base is None:
            base = base_image.default_tag()
            base_image.ensure(url, [base])
        place = Place(url=url, base=base, base_is_ours=base == base_image.default_tag())
    STATE.parent.mkdir(exist_ok=True)
    STATE.write_text(json.dumps(asdict(place)))
    return place


def say(line: str) -> None:
    """One line of progress."""
    print(f"demo: {line}", file=sys.stderr, flush=True)


def clean(installation: str) -> None:
    """Remove what the demo made, on the engine that it used and on disk."""
    if STATE.exists():
        place = Place(**json.loads(STATE.read_text()))
        if place.url and place.url != ENGINE.url:
            _clean_engine(place, installation)
    ENGINE.stop()
    for path in [*DEMO.glob("db.sqlite3*"), DEMO / "data" / "packages.txt", STATE]:
        path.unlink(missing_ok=True)
    for folder in (DEMO / "static", PROJECT / ".state" / "demo-processes"):
        shutil.rmtree(folder, ignore_errors=True)
    say("removed")


def _engine_at_hand() -> str:
    for url in (os.environ.get("DOCKER_HOST", ""), "unix:///var/run/docker.sock"):
        if url and engine_http.answers(url):
            say(f"using the Docker Engine at {url}")
            return url
    return ""


def _private_engine() -> str:
    reason = refusal()
    if not reason:
        say("no Docker Engine answers here; starting a private one, which `make demo-clean` removes")
        try:
            return ENGINE.start()
        except EngineError as error:
            reason = str(error)
    say(f"no Docker Engine answers here, and there can be no private one: {reason}")
    say("the jobs run as plain processes instead, WITHOUT isolation and without images")
    return ""


def _from_registry(url: str) -> str | None:
    """The usual base image, where this engine can have it; None where its registry is out of reach."""
    tag = f"{sys.version_info.major}.{sys.version_info.minor}-slim"
    name = f"python:{tag}"
    try:
        engine_http.call(url, "GET", f"/images/{quote(name)}/json")
    except engine_http.EngineAnswer:
        if url == ENGINE.url:
            return None  # its network leads to this machine and no further
        say(f"fetching {name} (a minute at the first time)")
        try:
            query = {"fromImage": "python", "tag": tag}
            told = engine_http.call(url, "POST", "/images/create", query=query, timeout=60)
        except (engine_http.EngineAnswer, OSError) as error:
            told = f'"error": {error}'
        if '"error"' in told:
            say("no registry can be reached: the base image is made from this machine's own Python")
            return None
    return name


def _clean_engine(place: Place, installation: str) -> None:
    if not engine_http.answers(place.url):
        say(f"the engine at {place.url} does not answer: its containers and images of the demo stay there")
        return
    filters = json.dumps({"label": [f"{INSTALLATION_LABEL}={installation}"]})
    query = {"all": "1", "filters": filters}
    for container in engine_http.call_json(place.url, "GET", "/containers/json", query=query):
        _delete(place.url, f"/containers/{container['Id']}")
    for image in [IMAGE, *([place.base] if place.base_is_ours else [])]:
        _delete(place.url, f"/images/{image}")


def _delete(url: str, path: str) -> None:
    try:
        engine_http.call(url, "DELETE", path, query={"force": "1", "v": "1"})
    except engine_http.EngineAnswer as answer:
        if answer.status != 404:
            raise
