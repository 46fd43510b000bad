"""Log frames as text for people: timestamps, bounded columns, clean and parsed output."""

from __future__ import annotations

import codecs
import json
import re
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from container_manager.core.observation import LogFrame

_NANO = 1_000_000_000
_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z ", re.MULTILINE)
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|\Z)"  # OSC, DCS, SOS, PM, APC: titles, links
    r"|\x1b[ -/]*[0-~]"  # two-character escapes
    r"|[\x9b][0-?]*[ -/]*[@-~]",
    re.DOTALL,
)
MARK = "[... {count} bytes of this stream are left out here; job.iter_log({stream!r}) has them all ...]\n"


class _Renderer:
    """Turns payloads of one stream into text with a timestamp at the start of each line."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_line_start = True

    def feed(self, frame: LogFrame) -> str:
        text = self._decoder.decode(frame.payload).replace("\0", "\u2400")
        if not text:
            return ""
        stamp = timestamp(frame.timestamp_ns) + " "
        body = text[:-1].replace("\n", "\n" + stamp) + text[-1]
        if self._at_line_start:
            body = stamp + body
        self._at_line_start = text[-1] == "\n"
        return body

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


def timestamp(timestamp_ns: int) -> str:
    """RFC 3339 in UTC with all nine digits, as engines write it."""
    seconds, nanos = divmod(timestamp_ns, _NANO)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanos:09d}Z"


def render(frames: Iterable[LogFrame]) -> str:
    """Frames of one stream as text: a timestamp at the start of each line, bad UTF-8 replaced.

    NUL becomes U+2400, since PostgreSQL's text refuses it. A character cut between frames stays whole.
    """
    renderer = _Renderer()
    return "".join([renderer.feed(frame) for frame in frames]) + renderer.end()


class BoundedLog:
    """The head and the tail of one stream in constant memory, for a column on the job's row.

    `limit` bounds the payload bytes that are shown, half for each end. What lies between is counted and
    marked. Adding costs little: text is made only when `text` is asked for.
    """

    def __init__(self, limit: int, stream: str = "stdout") -> None:
        self._half = max(limit // 2, 1)
        self._stream = stream
        self._head: list[LogFrame] = []
        self._head_bytes = 0
        self._head_full = False
        self._tail: deque[LogFrame] = deque()
        self._tail_bytes = 0
        self.total_bytes = 0

    def add(self, frame: LogFrame) -> None:
        """Take the next frame of the stream."""
        size = len(frame.payload)
        self.total_bytes += size
        if not self._head_full:
            room = self._half - self._head_bytes
            if size <= room:
                self._head.append(frame)
                self._head_bytes += size
                return
            self._head_full = True
            self._head.append(frame._replace(payload=frame.payload[:room]))
            self._head_bytes += room
            frame = frame._replace(payload=frame.payload[room:])
            size -= room
        self._tail.append(frame)
        self._tail_bytes += size
        while self._tail_bytes - len(self._tail[0].payload) >= self._half:
            self._tail_bytes -= len(self._tail.popleft().payload)

    @property
    def text(self) -> str:
        """What the column shows: everything, or head, mark and tail."""
        tail = list(self._tail)
        excess = self._tail_bytes - self._half
        if excess > 0:
            tail[0] = tail[0]._replace(payload=tail[0].payload[excess:])
        left_out = self.total_bytes - self._head_bytes - min(self._tail_bytes, self._half)
        if not left_out:
            return render([*self._head, *tail])
        head = render(self._head)
        mark = MARK.format(count=left_out, stream=self._stream)
        return f"{head}{'' if head.endswith(chr(10)) or not head else chr(10)}{mark}{render(tail)}"


def clean_output(text: str) -> str:
    """The text of a log column without our timestamps and without terminal escapes."""
    return _ESCAPES.sub("", _STAMP.sub("", text))


def parse_output(text: str) -> Any:
    """The JSON document that the text is; else the object or array on its last line; else None."""
    stripped = text.strip()
    if not stripped:
        return None
    try:
        return json.loads(stripped)
    except (ValueError, RecursionError):
        pass
    last = stripped.rpartition("\n")[2].strip()
    if not last.startswith(("{", "[")):
        return None
    try:
        return json.loads(last)
    except (ValueError, RecursionError):
        return None
