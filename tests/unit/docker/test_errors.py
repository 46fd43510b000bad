"""What Docker, HTTP and sockets say, and what we make of it."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import pytest
import requests
import urllib3.exceptions

from container_manager.core import errors
from container_manager.executors.docker.errors import (
    Refused,
    create_fault,
    engine_fault,
    pull_fault,
    start_fault,
    way_fault,
)
from tests.unit.docker.test_translate import SPEC

ADDRESS = "tcp://engine.example.com:2376"
RUNC = "failed to create shim task: OCI runtime create failed: runc create failed: "


def wrapped(cause: BaseException) -> requests.exceptions.ConnectionError:
    """As requests hands on what urllib3 hands on."""
    return requests.exceptions.ConnectionError(urllib3.exceptions.ProtocolError("Connection aborted.", cause))


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (wrapped(FileNotFoundError(2, "No such file or directory")), errors.HostUnreachable, "no socket at"),
        (wrapped(PermissionError(13, "Permission denied")), errors.HostUnreachable, "group"),
        (
            wrapped(ConnectionRefusedError(111, "Connection refused")),
            errors.HostUnreachable,
            "nothing answers",
        ),
        (wrapped(socket.gaierror(-2, "Name or service not known")), errors.HostUnreachable, "resolved"),
        (wrapped(ConnectionResetError(104, "Connection reset by peer")), errors.HostUnreachable, "broke"),
        (requests.exceptions.ConnectTimeout("slow"), errors.HostUnreachable, "firewall"),
        (requests.exceptions.ReadTimeout("slow"), errors.HostTimeout, "in time"),
        (wrapped(TimeoutError("timed out")), errors.HostTimeout, "in time"),
        (
            requests.exceptions.SSLError(ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")),
            errors.HostUnreachable,
            "speaks no TLS",
        ),
        (
            requests.exceptions.SSLError(ssl.SSLCertVerificationError(1, "certificate verify failed")),
            errors.HostUnreachable,
            "tls_ca_cert",
        ),
        (
            requests.exceptions.ChunkedEncodingError(urllib3.exceptions.ProtocolError("Connection broken")),
            errors.HostUnreachable,
            "broke",
        ),
        (OSError("Could not find the TLS certificate file"), errors.HostUnreachable, "broke"),
    ],
)
def test_the_way_to_the_engine(error: BaseException, kind: type[errors.HostFault], words: str) -> None:
    fault = way_fault(ADDRESS, error)
    assert type(fault) is kind
    assert words in str(fault)
    assert ADDRESS in str(fault)
    assert fault.detail


@pytest.mark.parametrize(
    ("status", "message", "kind", "words"),
    [
        (500, "write /x: no space left on device", errors.EngineFault, "disk is full"),
        (500, "boom", errors.EngineFault, "HTTP 500"),
        (403, "authorization denied by plugin", errors.EngineFault, "plugin"),
        (400, "Client sent an HTTP request to an HTTPS server.", errors.HostUnreachable, "tls_enabled"),
    ],
)
def test_an_engine_in_trouble(status: int, message: str, kind: type[errors.HostFault], words: str) -> None:
    fault = engine_fault(Refused(status, message))
    assert type(fault) is kind
    assert words in str(fault)
    assert fault.detail == message


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (404, "No such image: app:2", errors.ImageNotFound),
        (404, "network front not found", errors.NetworkNotFound),
        (400, "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available", errors.CreateFailed),
        (400, "Minimum memory limit allowed is 6MB", errors.CreateFailed),
        (500, "mkdir /var/lib/docker/x: no space left on device", errors.EngineFault),
        (500, "driver failed", errors.EngineFault),
    ],
)
def test_a_refused_create(status: int, message: str, kind: type[errors.ExecutorError]) -> None:
    fault = create_fault(SPEC, Refused(status, message))
    assert type(fault) is kind
    assert fault.detail == message


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (
            127,
            RUNC + 'exec: "/no/such": stat /no/such: no such file or directory: unknown',
            errors.CommandNotFound,
        ),
        (127, RUNC + 'exec: "nope": executable file not found in $PATH: unknown', errors.CommandNotFound),
        (126, RUNC + 'exec: "/proc/version": permission denied: unknown', errors.CommandNotExecutable),
        (128, "unable to find user nosuch: no matching entries in passwd file", errors.BadUser),
        (128, "unable to find group nosuch: no matching entries in group file", errors.BadUser),
        (128, "network front not found", errors.NetworkNotFound),
        (
            127,
            RUNC + 'chdir to cwd ("/x") set in config.json failed: no such file or directory: unknown',
            errors.StartFailed,
        ),
        (128, RUNC + "container init was OOM-killed (memory limit too low?): unknown", errors.StartFailed),
        (125, "anything", errors.StartFailed),
        (None, "anything", errors.StartFailed),
    ],
)
def test_a_refused_start(code: int | None, message: str, kind: type[errors.JobFault]) -> None:
    inspected: dict[str, Any] = {
        "Path": "/no/such",
        "Config": {"Image": "app:2", "User": "nosuch", "WorkingDir": "/x"},
        "State": {"ExitCode": code, "Error": message},
    }
    fault = start_fault(inspected, message)
    assert type(fault) is kind
    assert fault.detail == message


@pytest.mark.parametrize(
    ("message", "kind", "words"),
    [
        (
            "pull access denied for app, repository does not exist or may require 'docker login'",
            errors.ImageNotFound,
            "credentials",
        ),
        (
            "manifest for app:9 not found: manifest unknown: manifest unknown",
            errors.ImageNotFound,
            "registry",
        ),
        ("manifest unknown", errors.ImageNotFound, "registry"),
        (
            'Get "https://r.example.com/v2/app/manifests/2": unauthorized: authentication required',
            errors.ImagePullFailed,
            "registry_auth",
        ),
        (
            "Head https://r.example.com/v2/app: no basic auth credentials",
            errors.ImagePullFailed,
            "registry_auth",
        ),
        ("unauthorized: incorrect username or password", errors.ImagePullFailed, "registry_auth"),
        ("toomanyrequests: You have reached your pull rate limit.", errors.RegistryTrouble, "later"),
        (
            'Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io: no such host',
            errors.ImagePullFailed,
            "reached",
        ),
        (
            'Get "http://localhost:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused',
            errors.RegistryTrouble,
            "reached",
        ),
        ('Get "http://r.example.com/v2/": EOF', errors.RegistryTrouble, "reached"),
        ("unexpected EOF", errors.RegistryTrouble, "reached"),
        (
            "read tcp 10.0.0.1:1->10.0.0.2:2: read: connection reset by peer",
            errors.RegistryTrouble,
            "reached",
        ),
        ("received unexpected HTTP status: 503 Service Unavailable", errors.RegistryTrouble, "in trouble"),
        ("error parsing HTTP 500 response body: invalid character", errors.RegistryTrouble, "in trouble"),
        ("error parsing HTTP 429 response body: invalid character", errors.RegistryTrouble, "later"),
        ("error parsing HTTP 418 response body: invalid character", errors.ImagePullFailed, "reached"),
        (
            'Get "https://r.example.com/v2/": x509: certificate signed by unknown authority',
            errors.ImagePullFailed,
            "certs.d",
        ),
        ("http: server gave HTTP response to HTTPS client", errors.ImagePullFailed, "certs.d"),
        (
            "no matching manifest for linux/arm64 in the manifest list entries",
            errors.ImagePullFailed,
            "platform",
        ),
        ("write /var/lib/docker/tmp/x: no space left on device", errors.EngineFault, "disk is full"),
    ],
)
def test_a_refused_pull(message: str, kind: type[errors.ExecutorError], words: str) -> None:
    fault = pull_fault("app:2", message)
    assert type(fault) is kind
    assert words in str(fault)
    assert fault.detail == message
