"""Frames of output as they are stored: a flat run of (stream, time, payload), both streams in one order.

A stored chunk is a sequence of records: one byte stream id, eight bytes nanoseconds, four bytes length,
then the payload. Nothing of the payload is touched: NUL, bad UTF-8 and missing newlines survive.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from container_manager.core.observation import LogFrame

_RECORD = struct.Struct(">BQI")
#: What a frame takes on top of its payload.
RECORD_BYTES = _RECORD.size


def append(packed: bytearray, frame: LogFrame) -> None:
    """Pack one frame more into the stored form."""
    stream, timestamp_ns, payload = frame
    packed += _RECORD.pack(stream, timestamp_ns, len(payload))
    packed += payload


def encode(frames: Iterable[LogFrame]) -> bytes:
    """Pack frames into the stored form."""
    packed = bytearray()
    for frame in frames:
        append(packed, frame)
    return bytes(packed)


def decode(data: bytes) -> Iterator[LogFrame]:
    """Unpack what `encode` packed. Raises ValueError on bytes that it did not."""
    view = memoryview(data)
    position = 0
    while position < len(view):
        if position + _RECORD.size > len(view):
            raise ValueError("a stored log chunk ends in the middle of a record")
        stream, timestamp_ns, length = _RECORD.unpack_from(view, position)
        position += _RECORD.size
        if position + length > len(view):
            raise ValueError("a stored log chunk ends in the middle of a payload")
        yield LogFrame(stream, timestamp_ns, bytes(view[position : position + length]))
        position += length
