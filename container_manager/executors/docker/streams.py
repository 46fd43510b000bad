"""Bytes that arrive over time: raw streams that any thread may close, and the frames of a log."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import requests

from container_manager.core.observation import LogFrame
from container_manager.executors.docker.errors import translated

_BLOCK = 64 * 1024
_HEADER = 8
_KEEPALIVE_IDLE_SECONDS = 30
_DEAD_PEER_MS = 60_000
_NANO = 1_000_000_000
#: How the engine cuts lines: into pieces of this size, and a rest.
PIECE_BYTES = 16 * 1024


class ByteStream:
    """The body of one answer, block by block as it comes."""

    def __init__(
        self, response: requests.Response, address: str, forget: Callable[[ByteStream], None]
    ) -> None:
        self._response = response
        self._address = address
        self._forget = forget
        self._closed = False
        # A second descriptor of the same connection: `shutdown` on it wakes a reader in another thread.
        self._socket = socket.socket(fileno=os.dup(response.raw.fileno()))
        _notice_dead_peers(self._socket)

    def __iter__(self) -> Iterator[bytes]:
        """Blocks until the engine ends the stream or somebody closes it. Raises HostFault if it breaks."""
        try:
            while not self._closed:
                try:
                    with translated(self._address):
                        block = self._response.raw.read1(_BLOCK)
                except Exception:
                    if self._closed:
                        return
                    raise
                if not block:
                    return
                yield block
        finally:
            self.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called, or the end was reached."""
        return self._closed

    def close(self) -> None:
        """End the stream, from any thread."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):  # the engine may have closed it first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._response.close()
        self._forget(self)


def raw_frames(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Split a multiplexed log into (stream id, content): 8 bytes of header, the last four the length."""
    buffer = b""
    for block in blocks:
        buffer = buffer + block if buffer else block
        position, end = 0, len(buffer)
        while end - position >= _HEADER:
            start = position + _HEADER
            stop = start + int.from_bytes(buffer[position + 4 : start], "big")
            if stop > end:
                break
            yield buffer[position], buffer[start:stop]
            position = stop
        buffer = buffer[position:]


def log_frames(blocks: Iterable[bytes]) -> Iterator[LogFrame]:
    """The frames of a log that was asked for with timestamps, these taken off."""
    known_text, known_ns = b"", 0
    for stream, content in raw_frames(blocks):
        space = content.index(b" ")
        text = content[:19]
        if text != known_text:
            known_text, known_ns = text, _seconds(text) * _NANO
        fraction = content[20 : space - 1]  # between the dot and the Z
        nanos = int(fraction.ljust(9, b"0")) if fraction else 0
        yield LogFrame(stream, known_ns + nanos, content[space + 1 :])


def whole_lines(frames: Iterable[LogFrame]) -> Iterator[LogFrame]:
    """Give long lines the newline back that the engine's `local` driver takes from them.

    That driver cuts a line into full pieces and a shorter last one, and forgets the newline of the last.
    What remains unknown is whether a stream whose last line is longer than a piece ended with a newline:
    nearly every program writes one, so it is assumed.
    """
    inside_long_line: dict[int, bool] = {}
    for frame in frames:
        ended = frame.payload.endswith(b"\n")
        full = len(frame.payload) == PIECE_BYTES
        if not ended and not full and inside_long_line.get(frame.stream):
            yield frame._replace(payload=frame.payload + b"\n")
            ended = True
        else:
            yield frame
        inside_long_line[frame.stream] = full and not ended


def json_lines(blocks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Objects of a stream that holds one JSON document after another."""
    decoder = json.JSONDecoder()
    buffer = ""
    pending = b""
    for block in blocks:
        pending += block
        try:
            buffer += pending.decode()
        except UnicodeDecodeError:
            continue  # a character is cut between blocks
        pending = b""
        while buffer := buffer.lstrip():
            try:
                document, end = decoder.raw_decode(buffer)
            except ValueError:
                break
            yield document
            buffer = buffer[end:]


def _seconds(text: bytes) -> int:
    return int(datetime.strptime(text.decode(), "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC).timestamp())


def _notice_dead_peers(sock: socket.socket) -> None:
    """A TCP stream that is silent by nature must still find out that the other side is gone."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_PEER_MS)
