"""A real registry, and an HTTP proxy before it that goes wrong in the ways in which registries do."""

from __future__ import annotations

import http.client
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from tests import engines
from tests.fault.parts import until
from tools import apt

Kind = Literal["base", "manifest", "blob"]
PIECE = 64 * 1024


@contextmanager
def registry(address: str, home: Path) -> Iterator[int]:
    """Debian's docker-registry on a free port of `address`; the port."""
    program = shutil.which("docker-registry")
    if program is None:
        try:
            apt.install(["docker-registry"])
        except apt.CannotInstallError as error:
            engines.missing("docker-registry", str(error))
        program = shutil.which("docker-registry") or engines.missing("docker-registry", "not in its package")
    port = _free_port(address)
    configuration = home / "registry.yml"
    configuration.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {home}/registry}}}}\n"
        f"http: {{addr: '{address}:{port}'}}\n"
    )
    with (home / "registry.log").open("w") as log:
        process = subprocess.Popen([program, "serve", str(configuration)], stdout=log, stderr=log)
    try:
        until(lambda: _answers(address, port), lambda: (home / "registry.log").read_text(), seconds=30)
        yield port
    finally:
        process.terminate()
        process.wait(10)


@dataclass(slots=True, kw_only=True)
class Fault:
    """What goes wrong with the next `times` requests of a kind; None for every one."""

    on: Kind
    act: Literal["answer", "cut", "stall", "down"]
    status: int = 500
    after_bytes: int = 0  # of the body, for all but `answer`; a shorter body passes
    times: int | None = None


class RegistryProxy:
    """Passes GET and HEAD on to the registry, unless a fault says otherwise; counts what was asked."""

    def __init__(self, address: str, registry_port: int) -> None:
        self._address, self._registry_port = address, registry_port
        self._lock = threading.Lock()
        self._fault: Fault | None = None
        self._asked: list[tuple[str, str]] = []
        self.port = _free_port(address)
        self._closing = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    def image(self, name: str) -> str:
        """The reference of an image of the registry, by way of this proxy."""
        return f"{self._address}:{self.port}/{name}"

    def go_wrong(self, fault: Fault | None) -> None:
        """From now on this goes wrong, and nothing else; counts begin anew."""
        with self._lock:
            self._fault, self._asked = fault, []

    def asked(self, kind: Kind) -> int:
        """How many requests of a kind came since `go_wrong`."""
        with self._lock:
            return sum(1 for _, path in self._asked if _kind(path) == kind)

    def blobs(self) -> dict[str, int]:
        """How often each blob was asked for."""
        with self._lock:
            paths = [path for method, path in self._asked if method == "GET" and _kind(path) == "blob"]
        return {path.rpartition("/")[2][:19]: paths.count(path) for path in paths}

    def up(self) -> None:
        """Listen."""
        if self._server is None:
            self._server = _Server((self._address, self.port), _handler(self))
            self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
            self._thread.start()

    def down(self) -> None:
        """Refuse connections; those that are open go on."""
        server, thread = self._server, self._thread
        if server is not None and thread is not None:
            self._server = None
            server.shutdown()
            server.server_close()
            thread.join(10)

    @contextmanager
    def serving(self) -> Iterator[RegistryProxy]:
        """Listen within the block."""
        self.up()
        try:
            yield self
        finally:
            self._closing.set()
            self.down()

    def _next(self, method: str, path: str, length: int) -> Fault | None:
        with self._lock:
            self._asked.append((method, path))
            fault = self._fault
            if fault is None or fault.on != _kind(path) or fault.times == 0:
                return None
            if fault.act != "answer" and (method == "HEAD" or length <= fault.after_bytes):
                return None
            if fault.times is not None:
                fault.times -= 1
            return fault

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        upstream = http.client.HTTPConnection(self._address, self._registry_port, timeout=30)
        try:
            names = ("Accept", "Range", "Authorization")
            headers = [(name, value) for name in names for value in request.headers.get_all(name, [])]
            upstream.putrequest(request.command, request.path)
            for name, value in headers:
                upstream.putheader(name, value)
            upstream.endheaders()
            answer = upstream.getresponse()
            fault = self._next(request.command, request.path, answer.length or 0)
            if fault is not None and fault.act == "answer":
                _refuse(request, fault.status)
                return
            request.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {"connection", "transfer-encoding", "date", "server"}:
                    request.send_header(name, value)
            request.end_headers()
            if request.command == "HEAD":
                return
            self._pass_on(request, answer, fault)
        finally:
            upstream.close()

    def _pass_on(
        self, request: BaseHTTPRequestHandler, answer: http.client.HTTPResponse, fault: Fault | None
    ) -> None:
        left = None if fault is None else fault.after_bytes
        while data := answer.read(PIECE if left is None else min(PIECE, left)):
            request.wfile.write(data)
            if left is not None:
                left -= len(data)
        if fault is None:
            return
        request.wfile.flush()
        if fault.act == "stall":
            self._stall(request.connection)
        elif fault.act == "down":
            threading.Thread(target=self.down, daemon=True).start()
        _reset(request)

    def _stall(self, connection: socket.socket) -> None:
        """Say nothing until the client or the test has had enough."""
        connection.settimeout(0.2)
        while not self._closing.is_set():
            try:
                if not connection.recv(1):
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is what these tests are about."""


def _handler(proxy: RegistryProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            proxy._serve(self)

        do_GET = do_HEAD = answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Nothing on stderr."""

    return Handler


def _kind(path: str) -> Kind:
    if "/manifests/" in path:
        return "manifest"
    return "blob" if "/blobs/" in path else "base"


def _refuse(request: BaseHTTPRequestHandler, status: int) -> None:
    """As the registries of the distribution project put it."""
    codes = {401: "UNAUTHORIZED", 404: "MANIFEST_UNKNOWN", 429: "TOOMANYREQUESTS"}
    messages = {401: "authentication required", 404: "manifest unknown", 429: "too many requests"}
    body = b"<html>Bad luck</html>"
    if status in codes:
        text = f'{{"errors": [{{"code": "{codes[status]}", "message": "{messages[status]}"}}]}}'
        body = text.encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json" if status in codes else "text/html")
    request.send_header("Content-Length", str(len(body)))
    if status == 401:
        request.send_header("WWW-Authenticate", 'Basic realm="faults"')
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def _reset(request: BaseHTTPRequestHandler) -> None:
    """Break the connection off as a machine does that goes down: without a farewell."""
    request.close_connection = True
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()


def _answers(address: str, port: int) -> bool:
    connection = http.client.HTTPConnection(address, port, timeout=2)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
