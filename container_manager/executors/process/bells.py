"""Waking those who wait: a bell is a datagram socket in a directory; ringing writes to every one in it.

Nobody polls a file. A bell whose owner died is taken away by the next ring. A full one is left alone:
its owner is about to wake anyway, and events are hints. Standard library only: the shim imports this.
"""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

_MESSAGE_BYTES = 8192


class Bell:
    """One waiter's socket; usable with `select`."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / uuid.uuid4().hex
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(0)
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._socket.bind(_short(descriptor, self._path.name))
            finally:
                os.close(descriptor)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Readable when it was rung."""
        return self._socket.fileno()

    def take(self) -> list[bytes]:
        """What was rung since the last call; never waits."""
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(_MESSAGE_BYTES))
            except BlockingIOError:
                return messages

    def close(self) -> None:
        """Take the bell away."""
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ring(directory: Path, message: bytes = b"") -> None:
    """Wake everyone who has a bell in the directory."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return  # the container was removed: its followers see that themselves
    try:
        names = os.listdir(descriptor)  # noqa: PTH208  # a Path cannot be made of a descriptor
        if not names:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(0)
            for name in names:
                try:
                    sender.sendto(message, _short(descriptor, name))
                except ConnectionRefusedError:
                    (directory / name).unlink(missing_ok=True)
                except (BlockingIOError, FileNotFoundError):
                    continue
    finally:
        os.close(descriptor)


def _short(descriptor: int, name: str) -> str:
    # An address of a socket holds 107 bytes, which a state directory's own path may exceed.
    return f"/proc/self/fd/{descriptor}/{name}"
