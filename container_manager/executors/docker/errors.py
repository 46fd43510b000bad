"""The one place where what Docker, HTTP and sockets say becomes `core.errors`."""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import docker.errors
import requests
import urllib3.exceptions

from container_manager.core.errors import (
    BadUser,
    CommandNotExecutable,
    CommandNotFound,
    ContainerGone,
    CreateFailed,
    EngineFault,
    ExecutorError,
    HostFault,
    HostTimeout,
    HostUnreachable,
    ImageNotFound,
    ImagePullFailed,
    JobFault,
    NetworkNotFound,
    RegistryTrouble,
    StartFailed,
)
from container_manager.core.spec import ContainerSpec

_DISK_FULL = ("no space left on device", "disk quota exceeded")
_WRONG_USER = ("unable to find user", "unable to find group", "invalid user", "no matching entries in passwd")
_WRONG_DIRECTORY = ("chdir to cwd", "mkdir ", "is not a directory")

# What a registry's refusal contains, in the order in which they are looked for.
_LIMITED = (
    "toomanyrequests",
    "too many requests",
    "rate limit",
    "http 429",
    "status: 429",
)
_ABSENT = (
    "manifest unknown",
    "manifest for",
    "does not exist",
    "name unknown",
    "not found: ",
    "no such image",
)
_FORBIDDEN = (
    "unauthorized",
    "authentication required",
    "no basic auth",
    "incorrect username",
    "denied",
    "forbidden",
)
_UNTRUSTED = ("x509", "certificate", "server gave http response to https client", "tls:")
_PLATFORM = ("no matching manifest", "does not match the specified platform")
_SERVER_ERROR = re.compile(r"(?:http status:|http status code:?|http|status code|status:) 5\d\d\b")
_BROKEN = ("unexpected eof", ": eof", "connection reset", "broken pipe", "connection refused")


class Refused(Exception):
    """The engine answered with an error status; the verb that asked knows what it means."""

    def __init__(self, http_status: int, message: str) -> None:
        self.http_status = http_status
        self.message = message
        super().__init__(f"HTTP {http_status}: {message}")


def message_of(response: requests.Response) -> str:
    """The engine's own words in an error answer."""
    try:
        body = json.loads(response.content)
    except ValueError:
        return response.text.strip()
    return str(body.get("message", "")).strip() if isinstance(body, dict) else str(body)


def engine_fault(refused: Refused) -> HostFault:
    """What an error status means where nothing better is known."""
    text = refused.message.lower()
    if any(words in text for words in _DISK_FULL):
        return EngineFault("the engine's disk is full; free space on the host", detail=refused.message)
    if "http request to an https server" in text:
        return HostUnreachable(
            "the engine wants TLS at this address; set tls_enabled, or use its plain port",
            detail=refused.message,
        )
    if refused.http_status in {401, 403}:
        return EngineFault(
            "the engine's authorization plugin refused us; have it allow this client", detail=refused.message
        )
    return EngineFault(f"the engine answered with HTTP {refused.http_status}", detail=refused.message)


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Turn failures of the way to the engine into `HostFault`s."""
    try:
        yield
    except (
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        docker.errors.DockerException,
        OSError,
    ) as error:
        raise way_fault(address, error) from error


def way_fault(address: str, error: BaseException) -> HostFault:
    """What a failure below HTTP means. requests wraps urllib3, which wraps the socket's own error."""
    causes = list(_causes(error))
    detail = str(causes[-1]) or repr(causes[-1])
    for cause in causes:
        for kinds, text in _WAY_FAULTS:
            if isinstance(cause, kinds):
                return HostUnreachable(text.format(address=address), detail=detail)
    if any(isinstance(cause, ssl.SSLError | requests.exceptions.SSLError) for cause in causes):
        if "WRONG_VERSION_NUMBER" in detail:
            return HostUnreachable(
                f"what answers at {address} speaks no TLS; check the port, or clear tls_enabled",
                detail=detail,
            )
        return HostUnreachable(
            f"no trusted TLS connection to {address}; check tls_ca_cert, tls_client_cert and tls_client_key",
            detail=detail,
        )
    timeouts = (TimeoutError, urllib3.exceptions.TimeoutError, requests.exceptions.Timeout)
    if any(isinstance(cause, timeouts) for cause in causes):
        return HostTimeout(f"the engine at {address} did not answer in time", detail=detail)
    return HostUnreachable(f"the connection to the engine at {address} broke", detail=detail)


_WAY_FAULTS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (FileNotFoundError, "there is no socket at {address}; is the Docker Engine installed and running?"),
    (
        PermissionError,
        "this user may not use {address}; add the worker's user to the socket's group (often 'docker')",
    ),
    (ConnectionRefusedError, "nothing answers at {address}; is the Docker Engine running there?"),
    (socket.gaierror, "the host name in {address} cannot be resolved; check its spelling and the DNS"),
    (
        (requests.exceptions.ConnectTimeout, urllib3.exceptions.ConnectTimeoutError),
        "no connection to {address} came about in time; check the address, the route and the firewall",
    ),
)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that it wraps, outermost first."""
    seen: list[BaseException] = []
    queue = [error]
    while queue:
        current = queue.pop(0)
        if any(current is other for other in seen):
            continue
        seen.append(current)
        yield current
        inner = (*current.args, getattr(current, "reason", None), current.__cause__, current.__context__)
        queue.extend(found for found in inner if isinstance(found, BaseException))


# ------------------------------------------------------------------------------- what a verb was refused


def gone(container_id: str, message: str = "") -> ContainerGone:
    """The container of that id or name is not there."""
    return ContainerGone(f"there is no container {container_id[:64]} (any more)", detail=message)


def no_network(name: str, message: str) -> NetworkNotFound:
    """A named network is missing."""
    return NetworkNotFound(
        f"the network {name!r} does not exist on the host; create it with `docker network create {name}`",
        detail=message,
    )


def create_fault(spec: ContainerSpec, refused: Refused) -> ExecutorError:
    """Why a container was not created."""
    text = refused.message.lower()
    if refused.http_status == 404 and "network" in text and "image" not in text:
        return NetworkNotFound("a network of the job does not exist on the host", detail=refused.message)
    if refused.http_status == 404:
        return ImageNotFound(f"the image {spec.image!r} is not on the host", detail=refused.message)
    if refused.http_status >= 500 or any(words in text for words in _DISK_FULL):
        return engine_fault(refused)
    return CreateFailed("the engine refused to create the container", detail=refused.message)


def start_fault(inspected: Mapping[str, Any], message: str) -> JobFault:
    """Why a container did not start, by the code and the error that the engine keeps with it."""
    state = inspected.get("State") or {}
    config = inspected.get("Config") or {}
    program = inspected.get("Path") or "the program"
    image = config.get("Image") or "its image"
    text = message.lower()
    if any(words in text for words in _WRONG_USER):
        return BadUser(f"the engine cannot run {image!r} as {config.get('User', '')!r}", detail=message)
    if text.startswith("network ") and "not found" in text:
        return NetworkNotFound("a network of the job does not exist on the host any more", detail=message)
    if any(words in text for words in _WRONG_DIRECTORY):
        return StartFailed(
            f"the working directory {config.get('WorkingDir', '')!r} cannot be entered in {image!r}",
            detail=message,
        )
    code = state.get("ExitCode")
    if code == 127:
        return CommandNotFound(f"{program!r} was not found in {image!r}", detail=message)
    if code == 126:
        return CommandNotExecutable(f"{program!r} in {image!r} may not be executed", detail=message)
    return StartFailed("the engine could not start the container", detail=message)


def pull_fault(image: str, message: str) -> ExecutorError:
    """What a registry's refusal, passed on by the engine, means."""
    text = message.lower()

    def says(phrases: tuple[str, ...]) -> bool:
        return any(phrase in text for phrase in phrases)

    if says(_DISK_FULL):
        return EngineFault("the engine's disk is full; free space on the host", detail=message)
    if says(_LIMITED):
        return RegistryTrouble(
            f"the registry of {image!r} limits our requests; try later, or give the host a registry_auth",
            detail=message,
        )
    if _SERVER_ERROR.search(text):
        return RegistryTrouble(f"the registry of {image!r} is in trouble itself; try later", detail=message)
    if says(_PLATFORM):
        return ImagePullFailed(f"{image!r} is not there for the host's platform", detail=message)
    if says(_ABSENT):
        return ImageNotFound(
            f"the image {image!r} is neither on the host nor in its registry, or it needs credentials "
            "(registry_auth of the host)",
            detail=message,
        )
    if says(_FORBIDDEN):
        return ImagePullFailed(
            f"the registry of {image!r} refused us; check registry_auth of the host", detail=message
        )
    if says(_UNTRUSTED):
        return ImagePullFailed(
            f"the engine does not trust the registry of {image!r}; its CA belongs into /etc/docker/certs.d "
            "on the host",
            detail=message,
        )
    kind = RegistryTrouble if says(_BROKEN) or text.endswith("eof") else ImagePullFailed
    return kind(
        f"the registry of {image!r} could not be reached from the host; check the image's name, the host's "
        "DNS, proxy and firewall",
        detail=message,
    )
