"""Writing the log: lines become records with a time, long ones are cut, nothing else is touched.

Standard library only: the shim imports this.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from container_manager.executors.process import bells, statedir

#: Beyond this much output the rest is counted and left out, so that a runaway job does not fill the disk.
MAX_BYTES = 1024**3


class Recorder:
    """Both streams of one program on their way into one file, in the order of arrival."""

    def __init__(self, directory: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._file = os.open(directory / statedir.LOG, os.O_WRONLY | os.O_APPEND)
        self._bells = directory / statedir.BELLS
        self._rest: dict[int, bytes] = {}  # of each stream: the line that has no end yet
        self._newest_ns = 0
        self._room = max_bytes
        self.left_out_bytes = 0

    def feed(self, stream: int, data: bytes) -> None:
        """Take what a stream's pipe gave; whole lines are written, the rest waits for its end."""
        text = self._rest.pop(stream, b"") + data
        pieces = []
        start = 0
        while True:
            limit = start + statedir.FRAME_BYTES
            newline = text.find(b"\n", start, limit)
            if newline < 0 and len(text) < limit:
                break
            end = limit if newline < 0 else newline + 1
            pieces.append(text[start:end])
            start = end
        if start < len(text):
            self._rest[stream] = text[start:]
        self._write(stream, pieces)

    def finish(self) -> None:
        """Both streams have ended: write what had no newline, and say what is left out."""
        for stream, text in sorted(self._rest.items()):
            self._write(stream, [text])
        self._rest.clear()
        if self.left_out_bytes:
            self._room = 1024
            left_out = self.left_out_bytes
            self._write(2, [f"[{left_out} bytes of output are left out here: the log is full]\n".encode()])
        os.close(self._file)

    def _write(self, stream: int, pieces: list[bytes]) -> None:
        if not pieces:
            return
        # Never backwards, whatever the clock does: a reader resumes by these.
        self._newest_ns = max(time.time_ns(), self._newest_ns)
        size = sum(map(len, pieces))
        if size > self._room or not self._append(b"".join(self._records(stream, pieces))):
            self.left_out_bytes += size
            self._room = 0  # what follows a gap would look as if there were none
            return
        self._room -= size
        bells.ring(self._bells)

    def _records(self, stream: int, pieces: list[bytes]) -> list[bytes]:
        return [statedir.pack(stream, self._newest_ns, piece) for piece in pieces]

    def _append(self, data: bytes) -> bool:
        """All or nothing: a full disk must not leave half a record behind."""
        before = os.fstat(self._file).st_size
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            os.ftruncate(self._file, before)
            return False
        return True
