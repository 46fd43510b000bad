"""How requests travel: docker-py's client on adapters of ours.

docker-py keeps a pool of connections per URL on unix sockets, so that each container's first call opens
a new one; here one pool serves them all. On TCP, a peer that vanished without a word is noticed.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
import requests.adapters
from docker.errors import DockerException
from docker.tls import TLSConfig
from docker.transport import UnixHTTPAdapter

from container_manager.core.errors import ConfigurationError
from container_manager.executors.base import HostConfig

_KEEPALIVE_IDLE_SECONDS = 30
_KEEPALIVE_PROBE_SECONDS = 10
_KEEPALIVE_PROBES = 3
_UNACKNOWLEDGED_MS = 60_000


def make_client(config: HostConfig, *, version: str) -> docker.APIClient:
    """A client for one host; nothing is sent yet. Raises ConfigurationError."""
    url = base_url(config)
    try:
        client = docker.APIClient(
            base_url=url, version=version, timeout=timeout(config), tls=tls_config(config) or False
        )
    except (DockerException, ValueError) as error:
        raise ConfigurationError(
            f"connection_string: {config.connection_string!r} cannot be used: {error}"
        ) from error
    client.trust_env = False  # neither proxies nor another CA from the worker's environment
    client.headers["Accept-Encoding"] = "identity"  # a stream must not wait in a decompressor
    if url.startswith("unix://"):
        path = config.connection_string.removeprefix("unix://")
        client.mount("http+docker://", _UnixAdapter(path, max_pool_size=config.max_parallel_calls))
    else:
        adapter = _TcpAdapter(pool_maxsize=config.max_parallel_calls)
        client.mount("http://", adapter)
        client.mount("https://", adapter)
    return client


def base_url(config: HostConfig) -> str:
    """The address as docker-py wants it. Raises ConfigurationError for what is neither unix nor TCP."""
    address = config.connection_string
    parts = urlsplit(address)
    if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
        return address
    if parts.scheme == "tcp" and parts.netloc:
        return f"{'https' if config.tls_enabled else 'http'}://{parts.netloc}"
    raise ConfigurationError(
        f"connection_string: {address!r} cannot be used; write unix:///path/of/the/socket or tcp://host:port"
        " (with tls_enabled for TLS)."
    )


def timeout(config: HostConfig) -> int:
    """The host's timeout for docker-py, which wants whole seconds."""
    return max(1, round(config.timeout_seconds))


def tls_config(config: HostConfig) -> TLSConfig | None:
    """The TLS settings of a host, None where it has none. Raises ConfigurationError for a missing file."""
    if not config.tls_enabled:
        return None
    for field in ("tls_ca_cert", "tls_client_cert", "tls_client_key"):
        path = getattr(config, field)
        if path and not Path(path).is_file():
            raise ConfigurationError(f"{field}: there is no file {path!r} on this machine.")
    if bool(config.tls_client_cert) != bool(config.tls_client_key):
        missing = "tls_client_key" if config.tls_client_cert else "tls_client_cert"
        raise ConfigurationError(f"{missing}: it is empty; a client certificate and its key go together.")
    pair = (config.tls_client_cert, config.tls_client_key) if config.tls_client_cert else None
    return TLSConfig(client_cert=pair, ca_cert=config.tls_ca_cert or None, verify=config.tls_verify)


class _UnixAdapter(UnixHTTPAdapter):
    """docker-py's adapter with one pool for all URLs of the socket."""

    def __init__(self, path: str, *, max_pool_size: int) -> None:
        super().__init__(f"http+unix://{path}", max_pool_size=max_pool_size)

    def get_connection(self, url: str | bytes, proxies: Any = None) -> Any:  # noqa: ARG002
        return super().get_connection("http+docker://localhost", None)


class _TcpAdapter(requests.adapters.HTTPAdapter):
    """Ends a connection whose other side is gone: a silent stream would wait for it for ever."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, socket_options=_tcp_options())


def _tcp_options() -> list[tuple[int, int, int]]:
    options = [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ]
    for name, value in (  # not on every platform
        ("TCP_KEEPIDLE", _KEEPALIVE_IDLE_SECONDS),
        ("TCP_KEEPINTVL", _KEEPALIVE_PROBE_SECONDS),
        ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
        ("TCP_USER_TIMEOUT", _UNACKNOWLEDGED_MS),
    ):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
