"""What the foreground commands share: exact bytes on the standard streams, and one line of progress."""

from __future__ import annotations

import codecs
import os
import select
import shutil
import threading
from collections.abc import Callable
from typing import TextIO

#: A pipe that `select` calls writable takes this many bytes without blocking, by POSIX.
_PIECE = select.PIPE_BUF
_SELECT_SECONDS = 0.2
_WIDTH = 80


def _nothing() -> None:
    """Between two writes, nothing is to be done."""


class ByteSink:
    """Writes bytes to a text stream as they are: to its descriptor, or decoded where it has none."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.is_terminal = stream.isatty()
        self.at_line_start = True
        try:
            self._descriptor: int | None = stream.fileno()
        except (OSError, AttributeError):  # io.UnsupportedOperation is an OSError
            self._descriptor = None

    def write(self, data: bytes, *, meanwhile: Callable[[], None] = _nothing) -> None:
        """Write all of it. While the reader stalls `meanwhile` is called a few times a second.

        Raises OSError when the reader is gone.
        """
        if not data:
            return
        self.at_line_start = data.endswith(b"\n")
        if self._descriptor is None:
            self._stream.write(self._decoder.decode(data))
            return
        self._stream.flush()
        view = memoryview(data)
        while view:
            if not select.select([], [self._descriptor], [], _SELECT_SECONDS)[1]:
                meanwhile()
                continue
            try:
                view = view[os.write(self._descriptor, view[:_PIECE]) :]
            except BlockingIOError:  # somebody made the descriptor non-blocking, and was faster than us
                meanwhile()


class Console:
    """Both streams of a command, with a progress line that never mixes with what they carry.

    The line is drawn on a terminal alone, and only while no unfinished line of output stands there.
    """

    def __init__(self, out: TextIO, err: TextIO, *, quiet: bool = False) -> None:
        self.out = ByteSink(out)
        self.err = ByteSink(err)
        self.quiet = quiet
        self.has_progress = not quiet and self.err.is_terminal and os.environ.get("TERM") != "dumb"
        self._is_coloured = self.has_progress and not os.environ.get("NO_COLOR")
        self._drawn = ""
        self._lock = threading.RLock()

    def write_out(self, data: bytes, *, meanwhile: Callable[[], None] = _nothing) -> None:
        """Pass bytes on to stdout. Raises OSError."""
        if self.out.is_terminal:
            self.clear()
        self.out.write(data, meanwhile=meanwhile)  # without the lock: a stalled reader stalls nobody else

    def write_err(self, data: bytes, *, meanwhile: Callable[[], None] = _nothing) -> None:
        """Pass bytes on to stderr. Raises OSError."""
        self.clear()
        self.err.write(data, meanwhile=meanwhile)

    def say(self, text: str) -> None:
        """A sentence of our own on stderr, on a line of its own."""
        with self._lock:
            self.clear()
            ends = self.err.at_line_start and (self.out.at_line_start or not self.out.is_terminal)
            try:
                self.err.write(f"{'' if ends else os.linesep}{text}{os.linesep}".encode())
                self.out.at_line_start = self.out.at_line_start or self.out.is_terminal
            except OSError:
                self.has_progress = False  # nobody is there to be told

    def draw(self, text: str) -> None:
        """Show `text` as the progress line, cut to the terminal's width and at most 80 columns."""
        with self._lock:
            waits = not self.err.at_line_start or (self.out.is_terminal and not self.out.at_line_start)
            if not self.has_progress or waits:
                return
            width = min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH) - 1
            line = text if len(text) <= width else text[: width - 3] + "..."
            if line == self._drawn:
                return
            shown = f"\x1b[2m{line}\x1b[0m" if self._is_coloured else line
            self._put(f"\r{shown}{' ' * max(0, len(self._drawn) - len(line))}")
            self._drawn = line

    def clear(self) -> None:
        """Take the progress line away."""
        with self._lock:
            if self._drawn:
                self._put(f"\r{' ' * len(self._drawn)}\r")
                self._drawn = ""

    def _put(self, text: str) -> None:
        try:
            self.err.write(text.encode())
            self.err.at_line_start = True  # the line is ours to overwrite
        except OSError:
            self.has_progress = False  # the terminal is gone
