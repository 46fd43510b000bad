"""Build an image on an engine, and hear what it says meanwhile."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from container_manager.core.errors import ExecutorError
from container_manager.executors.docker.client import CONNECT_SECONDS
from container_manager.executors.docker.errors import Refused, engine_fault, message_of, translated
from container_manager.executors.docker.executor import DockerExecutor
from container_manager.executors.docker.streams import json_lines

TAIL_LINES = 20
_STEP = re.compile(r"Step \d+/\d+ : ")
_CACHED = "---> Using cache"
#: Ids of layers and containers that come and go.
_CHATTER = re.compile(r" ---> |Removing intermediate container ")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class BuildFailed(ExecutorError):
    """A step failed, or the Dockerfile is no such thing. Nothing was tagged.

    `step` is the instruction, `tail` the last lines of output before the end.
    """

    def __init__(self, message: str, *, step: str = "", tail: tuple[str, ...] = ()) -> None:
        self.step = step
        self.tail = tail
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """What came out. Sizes in bytes, with the base image's; seconds of the engine's work."""

    image_id: str
    tag: str
    size: int
    seconds: float
    steps: int
    cached_steps: int


def build_image(
    executor: DockerExecutor,
    context: IO[bytes],
    *,
    tag: str,
    dockerfile: str,
    build_args: Mapping[str, str] | None = None,
    use_cache: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> BuiltImage:
    """Send a tar file with the Dockerfile in it, and wait for the image.

    `dockerfile` is its name in the tar file. `progress` hears each line. The tag moves to the new image
    only when every step has succeeded; an exception of the caller, such as Ctrl-C, ends the build. Raises
    BuildFailed, HostFault.
    """
    began = time.monotonic()
    report = _Report(progress)
    client = executor.docker_client()
    try:
        with translated(executor.config.connection_string):
            api = client.api
            url = f"{api.base_url}/v{api.api_version}"
            response = api.post(
                f"{url}/build",
                params={
                    "t": tag,
                    "dockerfile": dockerfile,
                    "rm": "1",
                    "forcerm": "1",
                    "nocache": "0" if use_cache else "1",
                    "buildargs": json.dumps(dict(build_args or {})),
                },
                headers={"Content-Type": "application/x-tar"},
                data=context,
                stream=True,
                timeout=(CONNECT_SECONDS, None),  # a step may be silent for long
            )
            try:
                if response.status_code >= 500:
                    raise engine_fault(Refused(response.status_code, message_of(response)))
                if response.status_code >= 400:
                    raise BuildFailed(message_of(response))
                for line in json_lines(response.iter_content(chunk_size=None)):
                    report.take(line)
            finally:
                response.close()
            facts = api.get(f"{url}/images/{report.image_id}/json").json()
    finally:
        client.close()
    return BuiltImage(
        image_id=str(facts["Id"]),
        tag=tag,
        size=int(facts["Size"]),
        seconds=time.monotonic() - began,
        steps=report.steps,
        cached_steps=report.cached,
    )


class _Report:
    """The engine's stream of messages, followed."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.steps = 0
        self.cached = 0
        self._progress = progress
        self._image_id = ""
        self._step = ""
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._rest = ""

    def take(self, message: Mapping[str, Any]) -> None:
        """One message. Raises BuildFailed for the one that says so."""
        if "error" in message:
            self._line(self._rest)
            raise BuildFailed(str(message["error"]).strip(), step=self._step, tail=tuple(self._tail))
        aux = message.get("aux")
        if isinstance(aux, Mapping) and aux.get("ID"):
            self._image_id = str(aux["ID"])
        if "stream" in message:
            *lines, self._rest = (self._rest + str(message["stream"])).split("\n")
            for line in lines:
                self._line(line)
        elif message.get("status") and "progressDetail" not in message:  # a base image on its way
            place = f"{message['id']}: " if message.get("id") else ""
            self._line(f"{place}{message['status']}")

    @property
    def image_id(self) -> str:
        """The image that was built. Raises BuildFailed when the stream ended without one."""
        if not self._image_id:
            raise BuildFailed(
                "the engine ended the build without an image and without an error",
                step=self._step,
                tail=tuple(self._tail),
            )
        return self._image_id

    def _line(self, text: str) -> None:
        line = _ESCAPES.sub("", text.rpartition("\r")[2] if not text.endswith("\r") else text[:-1]).rstrip()
        if not line:
            return
        if _STEP.match(line):
            self.steps += 1
            self._step = line
            self._tail.clear()
        elif line.strip() == _CACHED:
            self.cached += 1
        elif _CHATTER.match(line):
            return
        else:
            self._tail.append(line)
        self._progress(line)
