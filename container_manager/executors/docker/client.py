"""The connection to one engine: API version, one client for calls and one for streams."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

import docker
import requests

from container_manager.core.errors import EngineFault, HostFault
from container_manager.executors.base import HostConfig
from container_manager.executors.docker import transport
from container_manager.executors.docker.errors import Refused, engine_fault, message_of, translated
from container_manager.executors.docker.streams import ByteStream

#: Engine 20.10, the oldest that we support, and the newest API that we have tested.
OLDEST_API = (1, 41)
NEWEST_API = (1, 51)
CONNECT_SECONDS = 10.0
_NOT_MODIFIED = 304


class Connection:
    """Makes requests to one engine. Safe for many threads; nothing is sent before the first call.

    Raises ConfigurationError for an address or TLS files that cannot work.
    """

    def __init__(self, config: HostConfig) -> None:
        self.address = config.connection_string
        self._config = config
        self._lock = threading.Lock()
        self._version = ""
        self._calls = transport.make_client(config, version=_text(OLDEST_API))
        self._long = transport.make_client(config, version=_text(OLDEST_API))
        self._streams: set[ByteStream] = set()
        self._closed = False

    @property
    def version(self) -> str:
        """The API version in use, once negotiated."""
        return self._version

    def negotiate(self) -> dict[str, Any]:
        """Ask the engine for its versions and settle on one. Raises HostFault."""
        url = f"{self._calls.base_url}/version"
        try:
            response = self._send(self._calls, "GET", url, timeout=self._config.timeout_seconds)
        except Refused as refused:
            raise engine_fault(refused) from refused
        facts: dict[str, Any] = self._decoded(response)
        theirs = _parsed(facts.get("ApiVersion"))
        least = _parsed(facts.get("MinAPIVersion"))
        chosen = min(theirs, NEWEST_API)
        if chosen < OLDEST_API or chosen < least:
            remedy = "upgrade this package" if chosen < least else "use Docker Engine 20.10 or newer"
            raise HostFault(
                f"the engine at {self.address} speaks API {_text(least)} to {_text(theirs)}, this package "
                f"{_text(OLDEST_API)} to {_text(NEWEST_API)}; {remedy}."
            )
        self._version = _text(chosen)
        return facts

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: object = None,
        timeout: float | None = None,
    ) -> Any:
        """One request with a bounded wait. Returns the decoded JSON, or None for an empty answer.

        Raises Refused for an error status, HostFault for anything on the way.
        """
        url = self._url(self._calls, path)
        wait = timeout or self._config.timeout_seconds
        response = self._send(self._calls, method, url, params=params, body=body, timeout=wait)
        return self._decoded(response) if response.content else None

    def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        idle_timeout: float | None = None,
    ) -> ByteStream:
        """A request whose answer is read as it comes. `idle_timeout`: longest silence, None for any.

        The start of the answer is waited for no longer than a call's. Raises as `call` does.
        """
        response = self._send(
            self._long,
            method,
            self._url(self._long, path),
            params=params,
            headers=headers,
            timeout=idle_timeout or self._config.timeout_seconds,
            stream=True,
        )
        stream = ByteStream(response, self.address, self._forget, endless=idle_timeout is None)
        with self._lock:
            closed = self._closed
            self._streams.add(stream)
        if closed:
            stream.cut()
        return stream

    def docker_client(self) -> docker.DockerClient:
        """docker-py's own client for the same engine, for users. Raises HostFault, ConfigurationError."""
        if not self._version:
            self.negotiate()
        client = docker.DockerClient(
            base_url=transport.base_url(self._config),
            version=self._version,
            timeout=transport.timeout(self._config),
            tls=transport.tls_config(self._config) or False,
        )
        client.api.trust_env = False
        return client

    def renew(self) -> None:
        """Keep no connection from before: the address may lead to another engine by now."""
        self._calls.close()
        self._long.close()

    def close(self) -> None:
        """End every open stream, and free the connections."""
        with self._lock:
            self._closed = True
            streams = list(self._streams)
        for stream in streams:
            stream.cut()
        self._calls.close()
        self._long.close()

    def _url(self, client: docker.APIClient, path: str) -> str:
        if not self._version:
            self.negotiate()
        return f"{client.base_url}/v{self._version}{path}"

    def _send(
        self,
        client: docker.APIClient,
        method: str,
        url: str,
        *,
        timeout: float,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        body: object = None,
        stream: bool = False,
    ) -> requests.Response:
        with translated(self.address):
            response = client.request(
                method,
                url,
                params=params,
                headers=headers,
                json=body,
                timeout=(min(CONNECT_SECONDS, timeout), timeout),
                stream=stream,
                allow_redirects=False,
            )
            if response.ok and (response.status_code < 300 or response.status_code == _NOT_MODIFIED):
                return response
            raise Refused(response.status_code, message_of(response))

    def _decoded(self, response: requests.Response) -> Any:
        try:
            decoded = json.loads(response.content)
        except ValueError:
            decoded = None
        if not isinstance(decoded, dict | list):
            raise EngineFault(
                f"what answers at {self.address} is no Docker Engine", detail=response.text[:200].strip()
            )
        return decoded

    def _forget(self, stream: ByteStream) -> None:
        with self._lock:
            self._streams.discard(stream)


def _parsed(version: object) -> tuple[int, int]:
    major, _, minor = str(version or "").partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
