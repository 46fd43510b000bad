"""The few HTTP calls to a Docker Engine that the tools need before anything is installed.

Knows `unix://` and `tcp://` addresses; TLS where DOCKER_TLS_VERIFY is set, with the certificates of
DOCKER_CERT_PATH, as the docker command has it.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit


class EngineAnswer(RuntimeError):
    """The engine answered with an error; `status` is the HTTP code."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(f"the engine answered {status}: {message}")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def connect(url: str, timeout: float = 30.0) -> http.client.HTTPConnection:
    """A connection to the engine at `url`; raises ValueError for an address of another kind."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return _UnixConnection(parts.path, timeout)
    if parts.scheme in {"tcp", "http"} and parts.hostname:
        if os.environ.get("DOCKER_TLS_VERIFY"):
            folder = Path(os.environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
            context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
            context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
            return http.client.HTTPSConnection(
                parts.hostname, parts.port or 2376, timeout=timeout, context=context
            )
        return http.client.HTTPConnection(parts.hostname, parts.port or 2375, timeout=timeout)
    raise ValueError(f"engine address {url!r}: use unix:///path/to/docker.sock or tcp://host:port")


def call(
    url: str,
    method: str,
    path: str,
    *,
    query: dict[str, str] | list[tuple[str, str]] | None = None,
    body: Iterable[bytes] | None = None,
    timeout: float = 30.0,
) -> str:
    """One call; the text of the answer. Raises `EngineAnswer` for an error, OSError for no engine."""
    connection = connect(url, timeout)
    # Without a version prefix the engine uses its newest: the calls here look the same in all of them.
    target = path + ("?" + urlencode(query, quote_via=quote) if query else "")
    try:
        headers = {"Content-Type": "application/x-tar"} if body is not None else {}
        connection.request(method, target, body=body, headers=headers, encode_chunked=body is not None)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except http.client.HTTPException as error:
        raise ConnectionError(f"no Docker Engine speaks at {url}: {error}") from error
    finally:
        connection.close()
    if answer.status >= 400:
        raise EngineAnswer(answer.status, text.strip())
    return text


def call_json(url: str, method: str, path: str, **options: Any) -> Any:
    """As `call`, with the answer parsed; None where it is empty."""
    text = call(url, method, path, **options)
    return json.loads(text) if text.strip() else None


def answers(url: str, timeout: float = 2.0) -> bool:
    """Whether an engine answers at `url` right now."""
    try:
        return call(url, "GET", "/_ping", timeout=timeout).strip() == "OK"
    except (OSError, EngineAnswer):
        return False
