"""The connection to one engine: addresses, TLS, API version, one client for calls and one for streams."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

import docker
import requests
from docker.tls import TLSConfig

from container_manager.core.errors import ConfigurationError
from container_manager.executors.base import HostConfig
from container_manager.executors.docker.errors import Refused, engine_fault, message_of, translated
from container_manager.executors.docker.streams import ByteStream

#: Engine 20.10, the oldest that we support, and the newest API that we have tested.
OLDEST_API = (1, 41)
NEWEST_API = (1, 51)
CONNECT_SECONDS = 10.0


class Connection:
    """Makes requests to one engine. Safe for many threads; nothing is sent before the first call."""

    def __init__(self, config: HostConfig) -> None:
        self.address = config.connection_string
        self._config = config
        self._lock = threading.Lock()
        self._version = ""
        self._calls: docker.APIClient | None = None
        self._long: docker.APIClient | None = None
        self._streams: set[ByteStream] = set()
        self._closed = False

    @property
    def version(self) -> str:
        """The API version in use, once negotiated."""
        return self._version

    def negotiate(self) -> dict[str, Any]:
        """Ask the engine for its versions and settle on one. Raises HostFault, ConfigurationError."""
        with translated(self.address):
            client = self._client()
            response = client.get(
                f"{client.base_url}/version", timeout=(CONNECT_SECONDS, self._config.timeout_seconds)
            )
        if response.status_code >= 400:
            raise engine_fault(Refused(response.status_code, message_of(response)))
        facts: dict[str, Any] = response.json()
        theirs = _parsed(facts.get("ApiVersion", ""))
        least = _parsed(facts.get("MinAPIVersion", "")) or OLDEST_API
        chosen = min(theirs, NEWEST_API)
        if chosen < OLDEST_API or chosen < least:
            raise ConfigurationError(
                f"the engine at {self.address} speaks API {_text(least)} to {_text(theirs)}, this package "
                f"{_text(OLDEST_API)} to {_text(NEWEST_API)}; use Docker Engine 20.10 or newer."
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
        response = self._request(method, path, params=params, body=body, timeout=timeout)
        if response.status_code >= 400:
            raise Refused(response.status_code, message_of(response))
        if not response.content:
            return None
        try:
            return json.loads(response.content)
        except ValueError:
            return None  # "OK" and the like

    def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        idle_timeout: float | None = None,
    ) -> ByteStream:
        """A request whose answer is read as it comes. `idle_timeout`: longest silence, None for any."""
        self._settle()
        with translated(self.address):
            client = self._client(long=True)
            response = client.request(
                method,
                f"{client.base_url}/v{self._version}{path}",
                params=dict(params or {}),
                headers=dict(headers or {}),
                stream=True,
                timeout=(CONNECT_SECONDS, idle_timeout),
            )
        if response.status_code >= 400:
            with translated(self.address):
                message = message_of(response)
            raise Refused(response.status_code, message)
        stream = ByteStream(response, self.address, self._forget)
        with self._lock:
            closed = self._closed
            self._streams.add(stream)
        if closed:
            stream.close()
        return stream

    def docker_client(self) -> docker.DockerClient:
        """docker-py's own client for the same engine, for users."""
        self._settle()
        with translated(self.address):
            client = docker.DockerClient(
                base_url=self._base_url(),
                version=self._version,
                timeout=int(self._config.timeout_seconds),
                tls=self._tls() or False,
            )
        client.api.trust_env = False
        return client

    def close(self) -> None:
        """End every open stream, and free the connections."""
        with self._lock:
            self._closed = True
            streams, self._streams = list(self._streams), set()
            clients = [client for client in (self._calls, self._long) if client is not None]
        for stream in streams:
            stream.close()
        for client in clients:
            client.close()

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None,
        body: object,
        timeout: float | None,
    ) -> requests.Response:
        self._settle()
        with translated(self.address):
            client = self._client()
            return client.request(
                method,
                f"{client.base_url}/v{self._version}{path}",
                params=dict(params or {}),
                json=body,
                timeout=(CONNECT_SECONDS, timeout or self._config.timeout_seconds),
            )

    def _settle(self) -> None:
        if not self._version:
            self.negotiate()

    def _client(self, *, long: bool = False) -> docker.APIClient:
        with self._lock:
            if self._calls is None or self._long is None:
                self._calls, self._long = self._make(), self._make()
            return self._long if long else self._calls

    def _make(self) -> docker.APIClient:
        client = docker.APIClient(
            base_url=self._base_url(),
            version=_text(OLDEST_API),  # ours is in each path; this keeps docker-py from asking
            timeout=int(self._config.timeout_seconds),
            tls=self._tls() or False,
            max_pool_size=self._config.max_parallel_calls,
        )
        client.trust_env = False  # neither proxies nor another CA from the worker's environment
        if self.address.startswith("tcp://") and not self._config.tls_enabled:
            adapter = requests.adapters.HTTPAdapter(pool_maxsize=self._config.max_parallel_calls)
            client.mount("http://", adapter)
        return client

    def _base_url(self) -> str:
        scheme, separator, rest = self.address.partition("://")
        if not separator or scheme not in {"unix", "tcp"}:
            raise ConfigurationError(f"connection_string: {self.address!r} is neither unix:// nor tcp://.")
        if scheme == "unix":
            return self.address
        return f"{'https' if self._config.tls_enabled else 'http'}://{rest}"

    def _tls(self) -> TLSConfig | None:
        config = self._config
        if not config.tls_enabled:
            return None
        pair = None
        if config.tls_client_cert or config.tls_client_key:
            pair = (config.tls_client_cert, config.tls_client_key)
        return TLSConfig(client_cert=pair, ca_cert=config.tls_ca_cert or None, verify=config.tls_verify)

    def _forget(self, stream: ByteStream) -> None:
        with self._lock:
            self._streams.discard(stream)


def _parsed(version: str) -> tuple[int, int]:
    major, _, minor = version.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
