"""Images on the host: looked up, and pulled once however many jobs wait for them."""

from __future__ import annotations

import base64
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from container_manager.core.errors import (
    EngineFault,
    HostTimeout,
    ImageNotFound,
    ImagePullFailed,
    InvalidJob,
    RegistryTrouble,
)
from container_manager.core.images import DEFAULT_REGISTRY, ImageReference, parse_image
from container_manager.core.observation import ImageFacts
from container_manager.executors.docker.client import Connection
from container_manager.executors.docker.errors import Refused, engine_fault, pull_fault
from container_manager.executors.docker.options import AUTH_FIELDS
from container_manager.executors.docker.streams import json_lines

#: How long a look at the host's images stays good; a create that finds none asks again.
FRESH_SECONDS = 5.0
#: A pull without any progress for this long is given up; a host's `pull_silence_seconds` wins.
SILENCE_SECONDS = 120.0
#: Pauses before the next try when the registry is in trouble; up to half as long again, so that hosts which
#: were turned away together do not come back together.
RETRY_SECONDS = (1.0, 3.0, 9.0)
_HUB = {DEFAULT_REGISTRY, "index.docker.io", "registry-1.docker.io"}

Progress = Callable[[str], None] | None


class ImageStore:
    """The images of one host. Safe for many threads."""

    def __init__(self, connection: Connection, options: Mapping[str, Any], *, may_pull: bool) -> None:
        self._connection = connection
        self._options = options
        self._may_pull = may_pull
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, ImageFacts]] = {}
        self._pulls: dict[str, Future[ImageFacts]] = {}
        self._closed = threading.Event()

    def close(self) -> None:
        """Try nothing again: whoever waits for a registry in trouble gets its last answer."""
        self._closed.set()

    def ensure(self, image: str, progress: Progress = None) -> ImageFacts:
        """The image's facts, after a pull where it is missing and may be pulled.

        Whoever asks while it is being pulled waits for that pull and shares its end.
        """
        reference = _parsed(image)
        facts = self._cached(image) or self._look(image, reference)
        if facts is not None:
            return facts
        if not self._may_pull:
            raise ImageNotFound(
                f"the image {image!r} is not on the host, and pulling is off there (auto_pull_images)"
            )
        with self._lock:
            pull = self._pulls.get(image)
            mine = pull is None
            if pull is None:
                pull = self._pulls[image] = Future()
        if not mine:
            if progress is not None:
                progress("waiting for another job's pull of the same image")
            return replace(pull.result(), pulled=False)
        try:
            pull.set_result(self._pull_patiently(image, reference, progress))
        except BaseException as error:  # noqa: BLE001 - every waiter gets it, and we with them
            pull.set_exception(error)
        finally:
            with self._lock:
                del self._pulls[image]
        return pull.result()

    def forget(self, image: str) -> None:
        """The host turned out not to have it."""
        with self._lock:
            self._seen.pop(image, None)

    def _cached(self, image: str) -> ImageFacts | None:
        with self._lock:
            seen_at, facts = self._seen.get(image, (0.0, None))
        return facts if time.monotonic() - seen_at < FRESH_SECONDS else None

    def _look(self, image: str, reference: ImageReference) -> ImageFacts | None:
        try:
            found = self._connection.call("GET", f"/images/{quote(image, safe='/:@')}/json")
        except Refused as refused:
            if refused.http_status == 404:
                return None
            raise engine_fault(refused) from refused
        image_id = str(found["Id"])
        if image_id.removeprefix("sha256:").startswith(image):
            return None  # the engine took the name for the beginning of some image's id
        facts = ImageFacts(image_id=image_id, digest=_digest(reference, found.get("RepoDigests") or []))
        with self._lock:
            self._seen[image] = (time.monotonic(), facts)
        return facts

    def _pull_patiently(self, image: str, reference: ImageReference, progress: Progress) -> ImageFacts:
        """Pull, and again after a while where the registry's answer may change by itself."""
        for pause in RETRY_SECONDS:
            try:
                return self._pull(image, reference, progress)
            except RegistryTrouble as error:
                wait = pause * random.uniform(1.0, 1.5)  # noqa: S311 - no secret
                if progress is not None:
                    progress(f"{error.detail or error}; trying again in {wait:.1f} s")
                if self._closed.wait(wait):
                    raise
        return self._pull(image, reference, progress)

    def _pull(self, image: str, reference: ImageReference, progress: Progress) -> ImageFacts:
        silence = float(self._options.get("pull_silence_seconds", SILENCE_SECONDS))
        heard: dict[str, str] = {}
        try:
            with self._connection.stream(
                "POST",
                "/images/create",
                params={
                    "fromImage": f"{reference.registry}/{reference.repository}",
                    "tag": reference.digest or reference.tag,
                },
                headers=self._credentials(reference),
                idle_timeout=silence,
            ) as stream:
                for line in json_lines(stream):
                    if line.get("error"):
                        raise pull_fault(image, str(line["error"]))
                    _tell(line, heard, progress)
        except Refused as refused:
            raise pull_fault(image, refused.message) from refused
        except HostTimeout as error:
            raise ImagePullFailed(
                f"the pull of {image!r} made no progress for {silence:g} s and was given up; "
                "check the registry from the host",
                detail=error.detail,
            ) from error
        facts = self._look(image, reference)
        if facts is None:
            raise EngineFault(f"the engine pulled {image!r} and does not have it")
        return replace(facts, pulled=True)

    def _credentials(self, reference: ImageReference) -> dict[str, str]:
        """The host's `registry_auth`, for its own registry and for no other."""
        auth = self._options.get("registry_auth")
        if not isinstance(auth, Mapping):
            return {}
        address = str(auth.get("serveraddress") or DEFAULT_REGISTRY)
        server = address.partition("://")[2] or address
        server = server.partition("/")[0]
        if (DEFAULT_REGISTRY if server in _HUB else server) != reference.registry:
            return {}
        known = {field: str(auth[field]) for field in AUTH_FIELDS if auth.get(field)}
        return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(known).encode()).decode()}


def _parsed(image: str) -> ImageReference:
    try:
        return parse_image(image)
    except InvalidJob as error:
        raise ImageNotFound(error.message) from error


def _tell(line: Mapping[str, Any], heard: dict[str, str], progress: Progress) -> None:
    """Pass on what is new: each layer's next step, and not each tick of its bar."""
    status, layer = str(line.get("status", "")), str(line.get("id", ""))
    if progress is None or not status or heard.get(layer) == status:
        return
    heard[layer] = status
    progress(f"{layer}: {status}" if layer else status)


def _digest(reference: ImageReference, repo_digests: list[str]) -> str:
    """The repository digest that belongs to the reference's own repository, if there is one."""
    for repo_digest in repo_digests:
        try:
            parsed = parse_image(repo_digest)
        except InvalidJob:  # `<none>@<none>`
            continue
        if (parsed.registry, parsed.repository) == (reference.registry, reference.repository):
            return repo_digest
    return ""
