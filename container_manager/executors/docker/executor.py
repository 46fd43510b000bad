"""The Docker driver: the seam's verbs, each a request or two."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from container_manager.core.errors import (
    BadUser,
    CommandNotExecutable,
    CommandNotFound,
    ContainerGone,
    CreateFailed,
    EngineFault,
    ExecutorError,
    ImageNotFound,
    JobFault,
    NameTaken,
    NetworkNotFound,
    StartFailed,
)
from container_manager.core.observation import (
    ContainerState,
    EngineEvent,
    EventAction,
    HostFacts,
    ImageFacts,
    LogCursor,
    LogFrame,
    Observation,
    OwnedContainer,
    UsageSample,
)
from container_manager.core.spec import LABEL_INSTALLATION, ContainerSpec
from container_manager.executors.base import Capabilities, Executor, HostConfig
from container_manager.executors.docker import translate
from container_manager.executors.docker.client import Connection
from container_manager.executors.docker.errors import Refused, engine_fault
from container_manager.executors.docker.images import ImageStore
from container_manager.executors.docker.streams import ByteStream, json_lines, log_frames, whole_lines

if TYPE_CHECKING:
    from docker import DockerClient

STOP_CHECK_SECONDS = 0.5
#: How long a create by somebody else under the same name may take until its container shows.
NAME_RESERVED_SECONDS = 5.0
_BUILT_IN_NETWORKS = {"bridge", "none"}
_START_FAULTS: dict[int, type[JobFault]] = {126: CommandNotExecutable, 127: CommandNotFound}


class DockerExecutor(Executor):
    """One Docker Engine, by unix socket or TCP."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        isolation=True, networks=True, images=True, cpu_limit=True
    )

    def __init__(self, config: HostConfig) -> None:
        super().__init__(config)
        self._connection = Connection(config)
        self._images = ImageStore(self._connection, config.options, may_pull=config.auto_pull_images)
        self._fresh: set[str] = set()  # made by this object and not yet started: no look before the start
        self._lock = threading.Lock()

    def docker_client(self) -> DockerClient:
        """docker-py's client for the same engine."""
        return self._connection.docker_client()

    def health(self) -> HostFacts:
        """`GET /version` and `GET /info`."""
        began = time.monotonic()
        self._connection.negotiate()
        info = self._call("GET", "/info")
        return translate.host_facts(
            info, api_version=self._connection.version, response_seconds=time.monotonic() - began
        )

    def pull(self, image: str, *, progress: Callable[[str], None] | None = None) -> ImageFacts:
        """See `Executor.pull`."""
        return self._images.ensure(image, progress)

    def create(self, spec: ContainerSpec) -> str:
        """`POST /containers/create`, and one call for each further network."""
        self._require_networks(spec)
        try:
            answer = self._connection.call(
                "POST", "/containers/create", params={"name": spec.name}, body=translate.create_payload(spec)
            )
        except Refused as refused:
            if refused.http_status == 409:
                return self._adopt(spec, refused)
            if refused.http_status == 404:
                self._images.forget(spec.image)
            raise self._create_fault(spec, refused) from refused
        container_id = str(answer["Id"])
        for network in spec.networks[1:]:
            self._connect(container_id, network.network_name, translate.endpoint(network))
        with self._lock:
            self._fresh.add(container_id)
        return container_id

    def start(self, container_id: str) -> None:
        """`POST /containers/{id}/start`, only for what never ran: the engine would run it a second time."""
        with self._lock:
            fresh = container_id in self._fresh
            self._fresh.discard(container_id)
        if not fresh:
            seen = self.inspect(container_id)
            if seen.state is ContainerState.NOT_FOUND:
                raise ContainerGone(f"the container {container_id[:12]} does not exist")
            if seen.ever_started:
                return
            if seen.error:
                raise self._start_fault(container_id, seen.error)
        try:
            self._connection.call("POST", f"/containers/{container_id}/start")
        except Refused as refused:
            if refused.http_status == 404 and "no such container" in refused.message.lower():
                raise ContainerGone(
                    f"the container {container_id[:12]} does not exist", detail=refused.message
                ) from refused
            raise self._start_fault(container_id, refused.message, refused) from refused

    def inspect(self, container_id: str) -> Observation:
        """`GET /containers/{id}/json`."""
        inspected = self._inspect(container_id)
        return (
            Observation(state=ContainerState.NOT_FOUND)
            if inspected is None
            else translate.observation(inspected)
        )

    def list_owned(self, installation: str) -> list[OwnedContainer]:
        """`GET /containers/json` by label."""
        filters = json.dumps({"label": [f"{LABEL_INSTALLATION}={installation}"]})
        listed = self._call("GET", "/containers/json", params={"all": "true", "filters": filters})
        return [translate.owned(item) for item in listed]

    def watch(self, installation: str, stop: threading.Event) -> Iterator[EngineEvent]:
        """`GET /events` by label."""
        filters = {
            "type": ["container"],
            "label": [f"{LABEL_INSTALLATION}={installation}"],
            "event": translate.EVENT_NAMES,
        }
        stream = self._stream("GET", "/events", params={"filters": json.dumps(filters)})
        closer = threading.Thread(target=_close_on, args=(stop, stream), name="watch-closer", daemon=True)
        closer.start()
        yield EngineEvent(action=EventAction.CONNECTED)
        for raw in json_lines(stream):
            event = translate.event(raw)
            if event is not None:
                yield event

    def logs(
        self, container_id: str, *, since: LogCursor | None = None, follow: bool = False
    ) -> Iterator[LogFrame]:
        """`GET /containers/{id}/logs`, its frames read here: docker-py would drop the stream id."""
        params = {"stdout": "true", "stderr": "true", "timestamps": "true", "follow": str(follow).lower()}
        skip = 0
        if since is not None and since.timestamp_ns > 0:
            params["since"] = f"{since.timestamp_ns // 10**9}.{since.timestamp_ns % 10**9:09d}"
        if since is not None:
            skip = since.frames
        try:
            stream = self._connection.stream(
                "GET",
                f"/containers/{container_id}/logs",
                params=params,
                idle_timeout=None if follow else self.config.timeout_seconds,
            )
        except Refused as refused:
            raise self._gone_or_fault(container_id, refused) from refused
        try:
            for number, frame in enumerate(whole_lines(log_frames(stream))):
                if number >= skip:
                    yield frame
        finally:
            stream.close()

    def usage(self, container_id: str) -> UsageSample | None:
        """`GET /containers/{id}/stats`, one sample without the engine's second look."""
        try:
            stats = self._connection.call(
                "GET", f"/containers/{container_id}/stats", params={"stream": "false", "one-shot": "true"}
            )
        except Refused as refused:
            if refused.http_status in {404, 409}:
                return None
            raise engine_fault(refused) from refused
        return translate.usage(stats)

    def stop(self, container_id: str, *, force: bool = False) -> None:
        """`POST /containers/{id}/kill`; a paused container is resumed first."""
        inspected = self._inspect(container_id)
        if inspected is None or not inspected["State"].get("Running"):
            return
        if inspected["State"].get("Paused"):
            self._quietly("POST", f"/containers/{container_id}/unpause")
        signal = "SIGKILL" if force else "SIGTERM"
        self._quietly("POST", f"/containers/{container_id}/kill", params={"signal": signal})

    def remove(self, container_id: str) -> bool:
        """`DELETE /containers/{id}`, by force and with anonymous volumes."""
        try:
            self._connection.call(
                "DELETE", f"/containers/{container_id}", params={"force": "true", "v": "true"}
            )
        except Refused as refused:
            if refused.http_status == 404:
                return False
            if refused.http_status == 409:  # its removal is under way already
                return True
            raise engine_fault(refused) from refused
        return True

    def close(self) -> None:
        """See `Executor.close`."""
        self._connection.close()

    # ------------------------------------------------------------------------------------- insides

    def _call(self, method: str, path: str, **kwargs: Any) -> Any:
        try:
            return self._connection.call(method, path, **kwargs)
        except Refused as refused:
            raise engine_fault(refused) from refused

    def _stream(self, method: str, path: str, **kwargs: Any) -> ByteStream:
        try:
            return self._connection.stream(method, path, **kwargs)
        except Refused as refused:
            raise engine_fault(refused) from refused

    def _quietly(self, method: str, path: str, **kwargs: Any) -> None:
        """A call whose refusal means that there is nothing left to do."""
        try:
            self._connection.call(method, path, **kwargs)
        except Refused as refused:
            if refused.http_status not in {304, 404, 409}:
                raise engine_fault(refused) from refused

    def _inspect(self, container_id: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._connection.call("GET", f"/containers/{container_id}/json")
        except Refused as refused:
            if refused.http_status == 404:
                return None
            raise engine_fault(refused) from refused
        return found

    def _require_networks(self, spec: ContainerSpec) -> None:
        """A network that does not exist would show at the start only, after a container was made."""
        for network in spec.networks:
            if network.network_name in _BUILT_IN_NETWORKS:
                continue
            try:
                self._connection.call("GET", f"/networks/{network.network_name}")
            except Refused as refused:
                if refused.http_status == 404:
                    raise NetworkNotFound(
                        f"the network {network.network_name!r} does not exist on the host",
                        detail=refused.message,
                    ) from refused
                raise engine_fault(refused) from refused

    def _connect(self, container_id: str, network: str, endpoint: dict[str, Any]) -> None:
        try:
            self._connection.call(
                "POST",
                f"/networks/{network}/connect",
                body={"Container": container_id, "EndpointConfig": endpoint},
            )
        except Refused as refused:
            self.remove(container_id)  # never started, and of no use without its network
            if refused.http_status == 404:
                raise NetworkNotFound(
                    f"the network {network!r} does not exist on the host", detail=refused.message
                ) from refused
            raise CreateFailed(
                f"the container could not join the network {network!r}", detail=refused.message
            ) from refused

    def _adopt(self, spec: ContainerSpec, refused: Refused) -> str:
        holder = self._inspect(spec.name)
        deadline = time.monotonic() + NAME_RESERVED_SECONDS
        while holder is None and time.monotonic() < deadline:
            time.sleep(0.02)  # the engine reserves a name before the container can be seen
            holder = self._inspect(spec.name)
        if holder is None:
            raise EngineFault(
                f"the engine holds the name {spec.name!r} for no container", detail=refused.message
            )
        labels = holder.get("Config", {}).get("Labels") or {}
        if all(labels.get(key) == value for key, value in spec.labels().items()):
            return str(holder["Id"])
        raise NameTaken(
            f"a container that is not this job's holds the name {spec.name!r}; it was left alone",
            detail=refused.message,
        )

    def _create_fault(self, spec: ContainerSpec, refused: Refused) -> ExecutorError:
        if refused.http_status == 404:
            return ImageNotFound(f"the image {spec.image!r} is not on the host", detail=refused.message)
        if refused.http_status >= 500:
            return engine_fault(refused)
        return CreateFailed("the engine refused to create the container", detail=refused.message)

    def _start_fault(self, container_id: str, message: str, refused: Refused | None = None) -> ExecutorError:
        """What a failed start means, by the evidence that the container itself keeps."""
        inspected = self._inspect(container_id) or {}
        state = inspected.get("State", {})
        if refused is not None and refused.http_status >= 500 and not state.get("Error"):
            return engine_fault(refused)
        program = inspected.get("Path") or "the program"
        image = inspected.get("Config", {}).get("Image", "its image")
        fault = _START_FAULTS.get(state.get("ExitCode", 0))
        if fault is CommandNotFound:
            return CommandNotFound(f"{program!r} was not found in {image!r}", detail=message)
        if fault is CommandNotExecutable:
            return CommandNotExecutable(f"{program!r} in {image!r} may not be executed", detail=message)
        if "unable to find user" in message or "invalid user" in message.lower():
            user = inspected.get("Config", {}).get("User", "")
            return BadUser(f"the engine cannot run {image!r} as {user!r}", detail=message)
        return StartFailed("the engine could not start the container", detail=message)

    def _gone_or_fault(self, container_id: str, refused: Refused) -> ExecutorError:
        if refused.http_status in {404, 409}:
            return ContainerGone(f"the container {container_id[:12]} does not exist", detail=refused.message)
        return engine_fault(refused)


def _close_on(stop: threading.Event, stream: ByteStream) -> None:
    while not stream.closed:
        if stop.wait(STOP_CHECK_SECONDS):
            stream.close()
