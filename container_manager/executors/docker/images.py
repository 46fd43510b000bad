"""Images on the host: looked up, and pulled once however many jobs wait for them."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from container_manager.core.errors import EngineFault, ImageNotFound
from container_manager.core.images import DEFAULT_REGISTRY, ImageReference, parse_image
from container_manager.core.observation import ImageFacts
from container_manager.executors.docker.client import Connection
from container_manager.executors.docker.errors import Refused, engine_fault, pull_failure
from container_manager.executors.docker.streams import json_lines

#: How long a look at the host's images stays good; a create that finds none asks again.
FRESH_SECONDS = 5.0
#: A registry that says nothing for this long is given up.
SILENCE_SECONDS = 120.0
_HUB = {DEFAULT_REGISTRY, "index.docker.io", "https://index.docker.io/v1/", "registry-1.docker.io"}

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

    def ensure(self, image: str, progress: Progress = None) -> ImageFacts:
        """The image's facts, after a pull where it is missing and may be pulled.

        Whoever asks while it is being pulled waits for that pull and shares its end.
        """
        facts = self._cached(image) or self._look(image)
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
            return pull.result()
        try:
            pull.set_result(self._pull(image, progress))
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

    def _look(self, image: str, *, pulled: bool = False) -> ImageFacts | None:
        try:
            found = self._connection.call("GET", f"/images/{image}/json")
        except Refused as refused:
            if refused.http_status == 404:
                return None
            raise engine_fault(refused) from refused
        reference = parse_image(image)
        facts = ImageFacts(
            image_id=found["Id"], digest=_digest(reference, found.get("RepoDigests") or []), pulled=pulled
        )
        with self._lock:
            self._seen[image] = (time.monotonic(), ImageFacts(image_id=facts.image_id, digest=facts.digest))
        return facts

    def _pull(self, image: str, progress: Progress) -> ImageFacts:
        reference = parse_image(image)
        name = f"{reference.registry}/{reference.repository}"
        try:
            stream = self._connection.stream(
                "POST",
                "/images/create",
                params={"fromImage": name, "tag": reference.digest or reference.tag},
                headers=self._credentials(reference),
                idle_timeout=SILENCE_SECONDS,
            )
            for line in json_lines(stream):
                self._heed(image, line, progress)
        except Refused as refused:
            raise pull_failure(image, refused.message) from refused
        facts = self._look(image, pulled=True)
        if facts is None:
            raise EngineFault(f"the engine pulled {image!r} and does not have it")
        return facts

    def _heed(self, image: str, line: Mapping[str, Any], progress: Progress) -> None:
        error = line.get("error")
        if error:
            raise pull_failure(image, str(error))
        status = str(line.get("status", ""))
        if progress is not None and status and "progressDetail" not in line:
            progress(f"{line['id']}: {status}" if line.get("id") else status)

    def _credentials(self, reference: ImageReference) -> dict[str, str]:
        """The host's `registry_auth`, for its own registry and for no other."""
        auth = self._options.get("registry_auth")
        if not isinstance(auth, Mapping):
            return {}
        server = str(auth.get("serveraddress", DEFAULT_REGISTRY)).removeprefix("https://").rstrip("/")
        ours = server in _HUB or server.startswith("index.docker.io")
        if not (server == reference.registry or (ours and reference.registry == DEFAULT_REGISTRY)):
            return {}
        text = json.dumps({str(key): str(value) for key, value in auth.items()})
        return {"X-Registry-Auth": base64.urlsafe_b64encode(text.encode()).decode()}


def _digest(reference: ImageReference, repo_digests: list[str]) -> str:
    """The repository digest that belongs to the reference's own repository, if there is one."""
    wanted = f"{reference.registry}/{reference.repository}"
    for repo_digest in repo_digests:
        parsed = parse_image(repo_digest)
        if f"{parsed.registry}/{parsed.repository}" == wanted:
            return repo_digest
    return ""
