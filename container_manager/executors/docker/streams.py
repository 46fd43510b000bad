"""Bytes that arrive over time: raw streams that any thread may end, and the frames of a log."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Self

import requests

from container_manager.core.errors import EngineFault, HostFault, HostUnreachable
from container_manager.core.observation import STDERR, STDOUT, LogFrame
from container_manager.executors.docker.errors import translated

_BLOCK = 64 * 1024
_HEADER = 8
_NANO = 1_000_000_000
#: How the engine cuts lines: into pieces of this size, and a rest.
PIECE_BYTES = 16 * 1024
_TIMESTAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z ")


class ByteStream:
    """The body of one answer, block by block as it comes. One thread reads and closes it, any may cut it."""

    def __init__(
        self,
        response: requests.Response,
        address: str,
        forget: Callable[[ByteStream], None],
        *,
        endless: bool = False,
    ) -> None:
        """`endless`: silence of any length is fine from here on."""
        self.is_cut = False
        self.over = False
        self._response = response
        self._address = address
        self._forget = forget
        connection = getattr(response.raw, "connection", None)  # None once all of a short answer is here
        self._socket: socket.socket | None = getattr(connection, "sock", None)
        if endless and self._socket is not None:
            self._socket.settimeout(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        """Blocks until the engine ends the stream. Raises HostFault if it breaks or is cut."""
        chunked = _chunked_body(self._response)
        blocks = self._response.iter_content(_BLOCK) if chunked is None else iter(chunked)
        while True:
            try:
                with translated(self._address):
                    block = next(blocks, b"")
            except HostFault:
                if not self.is_cut:
                    raise
                block = b""
            if self.is_cut:
                raise HostUnreachable(f"the stream from {self._address} was ended on this side")
            if not block:
                # Read past the layers, the connection cannot be used again: `close` ends it.
                self.over = chunked is None
                return
            yield block

    def cut(self) -> None:
        """End the stream from any thread: whoever reads it is woken."""
        self.is_cut = True
        if self._socket is not None and not self.over:
            with contextlib.suppress(OSError):  # the engine may have closed it first
                # Not the TLS socket's own method, which takes the TLS state away from under the reader.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the connection; it is used again only where the answer was read to its end."""
        if not self.over:
            self.over = True
            self._response.close()
        self._forget(self)


class ChunkedBody:
    """The payload of a chunked HTTP body, as much at a time as the socket has.

    The engine sends each line of a log as a chunk of its own; the usual readers hand out one chunk a call,
    at several times the price of everything else that happens to a line.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._rest = b""  # the beginning of a chunk that has not come whole
        self._ended = False

    def __iter__(self) -> Iterator[bytes]:
        """Whole chunks, joined as they came, to the end of the body.

        Raises ConnectionError when the connection ends before the body does, or it is not chunked.
        """
        while not self._ended:
            data = self._read(_BLOCK)
            if not data:
                raise ConnectionError("the engine closed the connection in the middle of an answer")
            payload = self._payload(self._rest + data)
            if payload:
                yield payload

    def _payload(self, data: bytes) -> bytes:
        parts = []
        position = 0
        while (line_end := data.find(b"\r\n", position)) >= 0:
            try:
                size = int(data[position:line_end].partition(b";")[0], 16)
            except ValueError:
                raise ConnectionError("the engine's answer is not a chunked body") from None
            if size == 0:
                self._ended = True
                break
            start = line_end + 2
            stop = start + size
            if stop + 2 > len(data):
                break
            parts.append(data[start:stop])
            position = stop + 2
        self._rest = data[position:]
        return b"".join(parts)


def _chunked_body(response: requests.Response) -> ChunkedBody | None:
    """The body past urllib3, where it comes in chunks and can be had so."""
    raw: Any = response.raw
    # http.client's own buffer: it may hold what came with the headers.
    buffered = getattr(getattr(raw, "_fp", None), "fp", None)
    if buffered is None or not getattr(raw, "chunked", False):
        return None
    return ChunkedBody(buffered.read1)


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
    if buffer:
        raise EngineFault("the log broke off in the middle of a frame")


def log_frames(blocks: Iterable[bytes]) -> Iterator[LogFrame]:
    """The frames of a log that was asked for with timestamps, these taken off.

    Raises EngineFault for what the engine itself has to say in between: it could not read its log.
    """
    known_text, known_ns = b"", 0
    for stream, content in raw_frames(blocks):
        stamp = _TIMESTAMP.match(content)
        if stamp is None or stream not in (STDOUT, STDERR):
            words = content[:500].decode(errors="replace").strip()
            raise EngineFault("the engine could not read the container's log", detail=words)
        text = stamp[1]
        if text != known_text:
            known_text, known_ns = text, _seconds(text) * _NANO
        fraction = stamp[2] or b""
        yield LogFrame(stream, known_ns + int(fraction.ljust(9, b"0")), content[stamp.end() :])


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
    """The objects of a stream that holds one JSON document per line."""
    buffer = b""
    for block in blocks:
        *lines, buffer = (buffer + block).split(b"\n")
        for line in lines:
            if line.strip():
                yield _document(line)
    if buffer.strip():
        yield _document(buffer)


def _document(line: bytes) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError as error:
        raise EngineFault("the engine's answer broke off or is no JSON", detail=repr(line[:200])) from error
    if not isinstance(document, dict):
        raise EngineFault("the engine's answer is no JSON object", detail=repr(line[:200]))
    return document


def _seconds(text: bytes) -> int:
    moment = datetime.fromisoformat(text.decode()).replace(tzinfo=UTC)
    return int(moment.timestamp())
