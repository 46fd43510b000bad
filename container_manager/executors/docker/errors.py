"""The one place where what Docker, HTTP and sockets say becomes `core.errors`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import docker.errors
import requests
import urllib3.exceptions

from container_manager.core.errors import (
    ConfigurationError,
    EngineFault,
    ExecutorError,
    HostTimeout,
    HostUnreachable,
    ImageNotFound,
    ImagePullFailed,
)

_DISK_FULL = ("no space left on device", "disk quota exceeded")


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


def engine_fault(refused: Refused) -> EngineFault:
    """What an error status means where nothing better is known."""
    if any(text in refused.message.lower() for text in _DISK_FULL):
        return EngineFault("the engine's disk is full; free space on the host", detail=refused.message)
    return EngineFault(f"the engine answered with HTTP {refused.http_status}", detail=refused.message)


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Turn failures of the way to the engine into `HostFault`s."""
    try:
        yield
    except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        raise _connection(address, error) from error
    except requests.exceptions.Timeout as error:
        raise HostTimeout(f"the engine at {address} did not answer in time", detail=str(error)) from error
    except urllib3.exceptions.HTTPError as error:
        raise _broken(address, error) from error
    except OSError as error:
        raise _broken(address, error) from error
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise ConfigurationError(f"connection_string: {address!r} cannot be used: {error}") from error


def pull_failure(image: str, message: str) -> ExecutorError:
    """What a registry's refusal, passed on by the engine, means."""
    text = message.lower()
    if any(words in text for words in _DISK_FULL):
        return EngineFault("the engine's disk is full; free space on the host", detail=message)
    if "unauthorized" in text or "authentication required" in text or "no basic auth" in text:
        return ImagePullFailed(
            f"the registry refused our credentials for {image!r}; check registry_auth of the host",
            detail=message,
        )
    if "toomanyrequests" in text or "too many requests" in text:
        return ImagePullFailed(f"the registry limits our requests for {image!r}; try later", detail=message)
    if any(words in text for words in ("not found", "manifest unknown", "does not exist", "name unknown")):
        return ImageNotFound(
            f"the image {image!r} is neither on the host nor in its registry, or it needs credentials",
            detail=message,
        )
    return ImagePullFailed(f"the registry of {image!r} could not be reached from the host", detail=message)


def _connection(address: str, error: requests.exceptions.RequestException) -> ExecutorError:
    cause = _root(error)
    if isinstance(cause, FileNotFoundError):
        return HostUnreachable(
            f"there is no socket at {address}; is the Docker Engine installed and running?", detail=str(cause)
        )
    if isinstance(cause, PermissionError):
        return HostUnreachable(
            f"this user may not use {address}; add it to the socket's group (often 'docker')",
            detail=str(cause),
        )
    if isinstance(cause, ConnectionRefusedError):
        return HostUnreachable(
            f"nothing answers at {address}; is the Docker Engine running?", detail=str(cause)
        )
    if isinstance(cause, TimeoutError | urllib3.exceptions.TimeoutError):
        return HostTimeout(f"the engine at {address} did not answer in time", detail=str(cause))
    if isinstance(error, requests.exceptions.SSLError):
        return HostUnreachable(f"no TLS connection to {address}; check the certificates", detail=str(cause))
    return _broken(address, cause)


def _broken(address: str, error: BaseException) -> HostUnreachable:
    return HostUnreachable(
        f"the connection to the engine at {address} broke", detail=f"{error}" or repr(error)
    )


def _root(error: BaseException) -> BaseException:
    """The innermost cause: requests wraps urllib3, which wraps the socket's error."""
    seen = error
    while True:
        inner = next((arg for arg in seen.args if isinstance(arg, BaseException)), None)
        inner = inner or getattr(seen, "reason", None) or seen.__cause__ or seen.__context__
        if not isinstance(inner, BaseException) or inner is seen:
            return seen
        seen = inner
