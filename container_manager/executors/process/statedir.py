"""The directory that is a container, as the shim writes it and the executor reads it.

    spec.json      what to run; written at creation, never changed
    lock           held (flock) by the shim as long as it lives: the proof that the container runs
    run.json       written before the program is started; from then on it is never started again
    refused.json   the program could not be started: exit code and text
    exit.json      how it ended; written after the last byte of the log
    log            the output, record after record
    shim.err       what the shim itself complains of
    bells/         sockets of those who follow the log

JSON files appear whole or not at all. Standard library only: the shim imports this.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

SPEC = "spec.json"
LOCK = "lock"
RUN = "run.json"
REFUSED = "refused.json"
EXIT = "exit.json"
LOG = "log"
BELLS = "bells"
SHIM_ERRORS = "shim.err"

#: Longest payload of one record; a longer line is cut, as Docker does.
FRAME_BYTES = 16 * 1024

_RECORD = struct.Struct(">BQI")  # stream, Unix time in nanoseconds, length of the payload


class BrokenStateError(OSError):
    """A state file cannot be read as what it should be."""


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Put a file in place in one step; only its owner may read it, as it may hold secrets."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(value, file)
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """What the file holds; None where there is none. Raises BrokenStateError."""
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise BrokenStateError(f"{path} is damaged ({error}); remove that container's directory") from error
    if not isinstance(value, dict):
        raise BrokenStateError(f"{path} holds no JSON object; remove that container's directory")
    return value


def take_lock(directory: Path) -> int | None:
    """Take the container's lock for this process; its descriptor, or None while another one holds it.

    Raises FileNotFoundError when the container is removed, also while we were at it.
    """
    path = directory / LOCK
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    raise FileNotFoundError(path)


def is_locked(directory: Path) -> bool:
    """Whether a shim lives. Ask only once run.json is there: the question takes the lock for a moment."""
    try:
        descriptor = os.open(directory / LOCK, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def pack(stream: int, timestamp_ns: int, payload: bytes) -> bytes:
    """One record of the log."""
    return _RECORD.pack(stream, timestamp_ns, len(payload)) + payload


def records(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """The whole records from the file's position on; a half one at the end is left for the next call."""
    while True:
        head = file.read(_RECORD.size)
        if len(head) == _RECORD.size:
            stream, timestamp_ns, length = _RECORD.unpack(head)
            payload = file.read(length)
            if len(payload) == length:
                yield stream, timestamp_ns, payload
                continue
            head += payload
        if head:
            file.seek(-len(head), os.SEEK_CUR)
        return
