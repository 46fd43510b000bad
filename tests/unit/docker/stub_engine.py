"""A server that speaks HTTP and says what a test wants: for answers that no engine gives on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

VERSION = {"Version": "20.10.24", "ApiVersion": "1.41", "MinAPIVersion": "1.12"}


class Answer:
    """What a route does with one request."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._handler = handler
        url = urlsplit(handler.path)
        self.path = url.path
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.headers = handler.headers
        self.body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))

    def json(self, status: int, document: object) -> None:
        self.raw(status, json.dumps(document).encode())

    def raw(self, status: int, body: bytes, *, location: str = "") -> None:
        self._handler.send_response(status)
        self._handler.send_header("Content-Length", str(len(body)))
        if location:
            self._handler.send_header("Location", location)
        self._handler.end_headers()
        self._handler.wfile.write(body)

    def begin(self) -> None:
        """The head of a chunked answer."""
        self._handler.send_response(200)
        self._handler.send_header("Transfer-Encoding", "chunked")
        self._handler.end_headers()

    def chunk(self, data: bytes) -> None:
        """A piece of it; an empty one is its end."""
        self._handler.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def break_off(self) -> None:
        """Close the connection where it stands."""
        self._handler.close_connection = True


Route = Callable[[Answer], None]


class StubEngine:
    """Routes by method and path without the version; everything that was asked, in order."""

    def __init__(self, port: int = 0) -> None:
        self.routes: dict[str, Route] = {"GET /version": lambda answer: answer.json(200, VERSION)}
        self.asked: list[str] = []
        self.released = threading.Event()  # for routes that keep a client waiting
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                answer = Answer(self)
                prefix, _, rest = answer.path.removeprefix("/").partition("/")
                path = f"/{rest}" if prefix.startswith("v1.") else answer.path
                stub.asked.append(f"{self.command} {answer.path}")
                route = stub.routes.get(f"{self.command} {path}")
                if route is None:
                    answer.json(404, {"message": f"no such thing: {path}"})
                else:
                    route(answer)

            do_GET = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Nothing on stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.address = f"tcp://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def lose_address(self) -> None:
        """Whoever connects from now on does not come here; connections that were kept are answered."""
        self._server.shutdown()
        self._server.socket.close()

    @contextmanager
    def serving(self) -> Iterator[StubEngine]:
        self._thread.start()
        try:
            yield self
        finally:
            self.released.set()
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(5)
