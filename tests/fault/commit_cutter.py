"""A way to PostgreSQL on which the answer to one chosen COMMIT gets lost, and the connection with it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

_COMMIT = b"COMMIT"


class CommitCutter:
    """Passes bytes on, until a transaction in which `marker` was said is committed.

    That COMMIT goes to the server, its answer is awaited and thrown away, and both ends are closed. Once;
    everything later passes. Understands as much of the protocol as that takes: typed messages of the client.
    """

    def __init__(self, url: str, marker: str) -> None:
        self._server = urlsplit(url)
        self._marker = marker.encode()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self.cut = threading.Event()

    @property
    def url(self) -> str:
        """The address to give to a client."""
        account = self._server.netloc.rpartition("@")[0]
        port = self._listener.getsockname()[1]
        return urlunsplit(self._server._replace(netloc=f"{account}@127.0.0.1:{port}"))

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="cutter", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        _shut(self._listener)
        with self._lock:
            for one in self._open:
                _shut(one)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            server = socket.create_connection((self._server.hostname, self._server.port))
            with self._lock:
                self._open += [client, server]
            for work in (_Session(self, client, server).from_client, _Copy(server, client).run):
                threading.Thread(target=work, daemon=True).start()


class _Copy:
    """The server's answers, as they come."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self._source, self._sink = source, sink

    def run(self) -> None:
        try:
            while data := self._source.recv(65536):
                self._sink.sendall(data)
        except OSError:
            pass
        finally:
            _shut(self._sink)


class _Session:
    """What one client says."""

    def __init__(self, cutter: CommitCutter, client: socket.socket, server: socket.socket) -> None:
        self._cutter, self._client, self._server = cutter, client, server
        self._marked = False

    def from_client(self) -> None:
        try:
            self._startup()
            while True:
                kind = self._exactly(1)
                length = self._exactly(4)
                body = self._exactly(struct.unpack("!I", length)[0] - 4)
                if self._is_the_one(kind, body):
                    # The client hears nothing more. The server finishes what it was told before it looks
                    # at its connection again.
                    _shut(self._client)
                    self._server.sendall(kind + length + body)
                    self._cutter.cut.set()
                    return
                self._server.sendall(kind + length + body)
        except (OSError, EOFError):
            return
        finally:
            _shut(self._client)
            with contextlib.suppress(OSError):
                self._server.shutdown(socket.SHUT_WR)

    def _startup(self) -> None:
        """Messages without a type: requests for encryption, which this server has not, and the start."""
        while True:
            length = self._exactly(4)
            body = self._exactly(struct.unpack("!I", length)[0] - 4)
            self._server.sendall(length + body)
            if struct.unpack("!I", body[:4])[0] == 196608:  # protocol 3.0
                return

    def _is_the_one(self, kind: bytes, body: bytes) -> bool:
        if kind not in {b"Q", b"P"} or self._cutter.cut.is_set():
            return False
        text = body.strip(b"\0")
        if self._cutter._marker in text:
            self._marked = True
        ends = text.startswith((_COMMIT, b"ROLLBACK")) and b"SAVEPOINT" not in text
        chosen = self._marked and text.startswith(_COMMIT)
        if ends:
            self._marked = False
        return chosen

    def _exactly(self, number: int) -> bytes:
        data = b""
        while len(data) < number:
            more = self._client.recv(number - len(data))
            if not more:
                raise EOFError
            data += more
        return data


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
