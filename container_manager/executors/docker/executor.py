"""The Docker driver: the seam's verbs, each a request or two."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from container_manager.core.errors import (
    EngineFault,
    HostFault,
    HostUnreachable,
    ImageNotFound,
    JobFault,
    NameTaken,
)
from container_manager.core.observation import (
    ALIVE,
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
from container_manager.executors.docker.errors import Refused, create_fault, engine_fault, gone, start_fault
from container_manager.executors.docker.images import ImageStore
from container_manager.executors.docker.networks import Networks
from container_manager.executors.docker.options import OPTION_CHECKS
from container_manager.executors.docker.streams import ByteStream, json_lines, log_frames, whole_lines
from container_manager.executors.options import Check

if TYPE_CHECKING:
    from docker import DockerClient

#: How often a watch looks whether it is to stop: a `threading.Event` cannot be waited for with a socket.
STOP_CHECK_SECONDS = 0.5
#: How long a create by somebody else under the same name may take until its container shows.
NAME_RESERVED_SECONDS = 5.0
#: For how long after its creation a container is started without a look whether somebody else did.
UNTOUCHED_SECONDS = 5.0
#: An engine remembers its last 256 events; with about as many, older ones may have been pushed out.
FULL_MEMORY_EVENTS = 250


class DockerExecutor(Executor):
    """One Docker Engine, by unix socket or TCP. Raises ConfigurationError for an address that cannot work."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        isolation=True, networks=True, images=True, cpu_limit=True
    )
    option_checks: ClassVar[Mapping[str, Check]] = OPTION_CHECKS

    def __init__(self, config: HostConfig) -> None:
        super().__init__(config)
        self._connection = Connection(config)
        self._images = ImageStore(self._connection, config.options, may_pull=config.auto_pull_images)
        self._networks = Networks(self._connection)
        self._made: dict[str, float] = {}  # ids of containers that this object made, and when
        self._lock = threading.Lock()

    def docker_client(self) -> DockerClient:
        """docker-py's client for the same engine; whoever asks for it closes it."""
        return self._connection.docker_client()

    def health(self) -> HostFacts:
        """`GET /version` and `GET /info`."""
        began = time.monotonic()
        self._connection.negotiate()
        info = self._call("GET", "/info")
        facts = translate.host_facts(
            info, api_version=self._connection.version, response_seconds=time.monotonic() - began
        )
        if not facts.engine_id:
            raise EngineFault(f"the engine at {self._connection.address} does not tell its id")
        return facts

    def pull(self, image: str, *, progress: Callable[[str], None] | None = None) -> ImageFacts:
        """`GET /images/{name}/json`, and `POST /images/create` where that finds none."""
        return self._images.ensure(image, progress)

    def create(self, spec: ContainerSpec) -> str:
        """`POST /containers/create`; named networks are looked up before and joined after."""
        self._networks.require(spec.networks)
        try:
            return self._create(spec)
        except ImageNotFound:
            self._images.forget(spec.image)  # removed since we saw it: the next pull looks again
            raise

    def start(self, container_id: str) -> None:
        """`POST /containers/{id}/start`, only for what never ran: the engine would run it a second time."""
        if not self._is_untouched(container_id):
            inspected = self._inspect(container_id)
            if inspected is None:
                raise gone(container_id)
            seen = translate.observation(inspected)
            if seen.ever_started:
                return
            if seen.error:
                raise start_fault(inspected, seen.error)
        try:
            self._connection.call("POST", _path(container_id, "start"))
        except Refused as refused:
            inspected = self._inspect(container_id)
            if inspected is None:
                raise gone(container_id, refused.message) from refused
            if refused.http_status >= 500 and not inspected["State"].get("Error"):
                raise engine_fault(refused) from refused
            raise start_fault(inspected, refused.message) from refused

    def inspect(self, container_id: str) -> Observation:
        """`GET /containers/{id}/json`."""
        inspected = self._inspect(container_id)
        if inspected is None:
            return Observation(state=ContainerState.NOT_FOUND)
        return translate.observation(inspected)

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
        self._connection.renew()  # whoever watches anew has lost sight of the engine
        try:
            stream = self._connection.stream("GET", "/events", params={"filters": json.dumps(filters)})
        except Refused as refused:
            raise engine_fault(refused) from refused
        closer = threading.Thread(target=_cut_on, args=(stop, stream), name="watch-closer", daemon=True)
        closer.start()
        with stream:
            try:
                yield EngineEvent(action=EventAction.CONNECTED)
                for raw in json_lines(stream):
                    event = translate.event(raw)
                    if event is not None:
                        yield event
            except HostFault:
                if stream.is_cut:
                    return
                raise
        raise HostUnreachable(f"the engine at {self._connection.address} ended its events; is it stopping?")

    def logs(
        self, container_id: str, *, since: LogCursor | None = None, follow: bool = False
    ) -> Iterator[LogFrame]:
        """`GET /containers/{id}/logs`, its frames read here: docker-py would drop the stream id."""
        params = {"stdout": "true", "stderr": "true", "timestamps": "true", "follow": str(follow).lower()}
        skip = 0
        if since is not None:
            skip = since.frames
            if since.timestamp_ns > 0:
                params["since"] = f"{since.timestamp_ns // 10**9}.{since.timestamp_ns % 10**9:09d}"
        try:
            stream = self._connection.stream(
                "GET",
                _path(container_id, "logs"),
                params=params,
                idle_timeout=None if follow else self.config.timeout_seconds,
            )
        except Refused as refused:
            if refused.http_status in {404, 409}:  # 409: its removal is under way
                raise gone(container_id, refused.message) from refused
            raise engine_fault(refused) from refused
        with stream:
            try:
                for number, frame in enumerate(whole_lines(log_frames(stream))):
                    if number >= skip:
                        yield frame
            except HostFault:
                # A reader who follows knows that there is more; another one must not take this for the end.
                if not (follow and stream.is_cut):
                    raise

    def usage(self, container_id: str) -> UsageSample | None:
        """`GET /containers/{id}/stats`, one sample without the engine's second look."""
        try:
            stats = self._connection.call(
                "GET", _path(container_id, "stats"), params={"stream": "false", "one-shot": "true"}
            )
        except Refused as refused:
            if refused.http_status in {404, 409}:
                return None
            raise engine_fault(refused) from refused
        return translate.usage(stats)

    def stop(self, container_id: str, *, force: bool = False) -> None:
        """`POST /containers/{id}/kill`; a paused container is resumed first."""
        seen = self.inspect(container_id)
        if seen.state is ContainerState.PAUSED:
            self._signal(container_id, "unpause", unless={ContainerState.PAUSED})
        if seen.state in ALIVE:
            signal = "SIGKILL" if force else "SIGTERM"
            self._signal(container_id, "kill", unless=ALIVE, signal=signal)

    def remove(self, container_id: str) -> bool:
        """`DELETE /containers/{id}`, by force and with anonymous volumes."""
        try:
            self._connection.call("DELETE", _path(container_id), params={"force": "true", "v": "true"})
        except Refused as refused:
            if refused.http_status == 404:
                return False
            if refused.http_status != 409:  # 409: its removal is under way already
                raise engine_fault(refused) from refused
        return True

    def withdraw(self, container_id: str) -> bool:
        """`DELETE /containers/{id}` without force, which the engine refuses for what runs.

        It removes what ran and has ended by then, though: whether that was so, its events tell afterwards.
        """
        seen = self.inspect(container_id)  # waits for a start that the engine is carrying out just now
        if seen.ever_started:
            return False
        if seen.state is not ContainerState.NOT_FOUND:
            try:
                self._connection.call("DELETE", _path(container_id), params={"v": "true"})
            except Refused as refused:
                if refused.http_status == 409 and self.inspect(container_id).ever_started:
                    return False
                if refused.http_status not in {404, 409}:  # 409: its removal is under way, no start comes
                    raise engine_fault(refused) from refused
        return not self._remembered({"container": [container_id], "event": ["start"]})

    def remembered_starts(self, container_id: str) -> int | None:
        """By its events. It keeps only the last ones: others may have pushed some of a container's out."""
        starts = self._remembered({"container": [container_id], "event": ["start"]})
        return None if starts < 2 and self._remembered({}) >= FULL_MEMORY_EVENTS else starts

    @contextmanager
    def anew(self) -> Iterator[Executor]:
        """See `Executor.anew`."""
        with closing(DockerExecutor(self.config)) as other:
            yield other

    def close(self) -> None:
        """See `Executor.close`."""
        self._images.close()
        self._connection.close()

    # ------------------------------------------------------------------------------------- insides

    def _create(self, spec: ContainerSpec) -> str:
        payload = translate.create_payload(spec)
        try:
            answer = self._connection.call(
                "POST", "/containers/create", params={"name": spec.name}, body=payload
            )
        except Refused as refused:
            if refused.http_status == 409:
                return self._adopt(spec, refused)
            raise create_fault(spec, refused) from refused
        container_id = str(answer["Id"])
        self._join(container_id, spec, joined=frozenset())
        now = time.monotonic()
        with self._lock:
            self._made = {key: at for key, at in self._made.items() if now - at < UNTOUCHED_SECONDS}
            self._made[container_id] = now
        return container_id

    def _adopt(self, spec: ContainerSpec, refused: Refused) -> str:
        """The holder of the name, if it is what we would have made. A half-made one is completed."""
        holder = self._inspect(spec.name)
        deadline = time.monotonic() + NAME_RESERVED_SECONDS
        while holder is None and time.monotonic() < deadline:
            time.sleep(0.02)  # the engine reserves a name before the container can be seen
            holder = self._inspect(spec.name)
        if holder is None:
            raise EngineFault(
                f"the engine holds the name {spec.name!r} for no container", detail=refused.message
            )
        seen = translate.observation(holder)
        if not spec.labels().items() <= seen.labels.items():
            raise NameTaken(
                f"a container that is not this job's holds the name {spec.name!r}; it was left alone",
                detail=refused.message,
            )
        if holder["State"].get("Status") in {"removing", "dead"}:
            raise EngineFault(f"the container {spec.name!r} is being removed just now")
        if seen.state is ContainerState.CREATED and not seen.error:
            joined = frozenset((holder.get("NetworkSettings") or {}).get("Networks") or ())
            self._join(seen.container_id, spec, joined=joined)
        return seen.container_id

    def _join(self, container_id: str, spec: ContainerSpec, *, joined: frozenset[str]) -> None:
        missing = [network for network in spec.networks[1:] if network.network_name not in joined]
        try:
            self._networks.join(container_id, missing)
        except JobFault:
            self.remove(container_id)  # never started, and of no use without its network
            raise

    def _remembered(self, filters: dict[str, list[str]]) -> int:
        """How many such events the engine still knows; a restart makes it forget all."""
        # The engine's own time: the answer to a question about the future would wait for it.
        until = translate.moment(self._call("GET", "/info").get("SystemTime"))
        if until is None:
            raise EngineFault("the engine tells no time, so that its events cannot be asked for")
        params = {"since": "1", "until": f"{until.timestamp():.6f}", "filters": json.dumps(filters)}
        patience = self.config.timeout_seconds
        try:
            with self._connection.stream("GET", "/events", params=params, idle_timeout=patience) as stream:
                return sum(1 for _ in json_lines(stream))
        except Refused as refused:
            raise engine_fault(refused) from refused

    def _is_untouched(self, container_id: str) -> bool:
        """Whether this object made the container just now. Asked once: a second start looks first."""
        with self._lock:
            made_at = self._made.pop(container_id, None)
        return made_at is not None and time.monotonic() - made_at < UNTOUCHED_SECONDS

    def _call(self, method: str, path: str, **kwargs: Any) -> Any:
        try:
            return self._connection.call(method, path, **kwargs)
        except Refused as refused:
            raise engine_fault(refused) from refused

    def _signal(
        self, container_id: str, action: str, *, unless: Collection[ContainerState], **params: str
    ) -> None:
        """Act on a container; a refusal matters only if it is still in a state that the act should end."""
        try:
            self._connection.call("POST", _path(container_id, action), params=params)
        except Refused as refused:
            if refused.http_status not in {404, 409} and self.inspect(container_id).state in unless:
                raise engine_fault(refused) from refused

    def _inspect(self, container_id: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._connection.call("GET", _path(container_id, "json"))
        except Refused as refused:
            if refused.http_status == 404:
                return None
            raise engine_fault(refused) from refused
        return found


def _path(container_id: str, action: str = "") -> str:
    """The path of one container. An empty id would be the path of the listing; "-" is nobody's name."""
    path = f"/containers/{quote(container_id, safe='') or '-'}"
    return f"{path}/{action}" if action else path


def _cut_on(stop: threading.Event, stream: ByteStream) -> None:
    while not stream.over:
        if stop.wait(STOP_CHECK_SECONDS):
            stream.cut()
            return
