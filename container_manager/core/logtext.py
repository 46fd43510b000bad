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
#: Characters of a timestamp and the blank behind it.
STAMP_LENGTH = 31
_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z ", re.MULTILINE)
# Escape sequences, and the one-character controls that 8-bit terminals read as such. A string sequence
# (titles, links) ends on its own line, or only its introducer goes: otherwise one stray pair of bytes
# would swallow the rest of the log.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"  # OSC, DCS and kin
    r"|\x1b[ -/]*[0-~]"  # everything shorter
    r"|[\x1b\x80-\x84\x86-\x9f]"  # and what is left of a broken one
)
#: Behind the last line that is kept of a stream.
CAP_MARK = "[... the output ends here at LOG_MAX_BYTES; what the program wrote beyond it was not kept ...]\n"
MARK = "[... {count} bytes of this stream are left out here; job.iter_log({stream!r}) has them all ...]\n"


class _Renderer:
    """Turns payloads of one stream into text with a timestamp at the start of each line."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_line_start = True
        self._stamp = ""
        self._stamp_ns: int | None = None

    def feed(self, frame: LogFrame) -> str:
        if not frame.payload:
            return ""
        if frame.timestamp_ns != self._stamp_ns:
            self._stamp, self._stamp_ns = timestamp(frame.timestamp_ns) + " ", frame.timestamp_ns
        return self._stamped(self._decoder.decode(frame.payload))

    @property
    def pending(self) -> int:
        """Bytes of a character that has not ended yet; `feed` has not shown them."""
        return len(self._decoder.getstate()[0])

    def end(self) -> str:
        return self._stamped(self._decoder.decode(b"", final=True))

    def _stamped(self, text: str) -> str:
        if not text:
            return ""
        text = text.replace("\0", "\u2400")
        body = text[:-1].replace("\n", "\n" + self._stamp) + text[-1]
        if self._at_line_start:
            body = self._stamp + body
        self._at_line_start = text[-1] == "\n"
        return body


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

    `limit` bounds the characters of `text`, timestamps included, half for each end; the line that marks
    what is left out comes on top. Memory stays near `limit` whatever the size of the frames, plus the
    largest frame. Adding costs little: text is made only when it is asked for.
    """

    def __init__(self, limit: int, stream: str = "stdout") -> None:
        self._stream = stream
        self._head: list[LogFrame] = []
        self._head_room = max(limit, 0) // 2
        self._head_open = True
        self._tail: deque[LogFrame] = deque()
        self._tail_limit = max(limit, 0) - self._head_room
        self._tail_cost = 0
        self.total_bytes = 0

    @property
    def head_is_full(self) -> bool:
        """Whether what comes now can only change the tail."""
        return not self._head_open

    def is_tail(self, cost: int) -> bool:
        """Whether last frames of this `line_cost` are all that the tail shows."""
        return cost >= self._tail_limit

    def skip(self, total_bytes: int) -> None:
        """Go on behind a gap: what was added so far is the head, and `total_bytes` of the stream are over."""
        self._head_open = False
        self._tail.clear()
        self._tail_cost = 0
        self.total_bytes = total_bytes

    def add(self, frame: LogFrame) -> None:
        """Take the next frame of the stream."""
        payload = frame.payload
        if not payload:
            return
        self.total_bytes += len(payload)
        cost = line_cost(payload)
        if self._head_open:
            if cost <= self._head_room:
                self._head.append(frame)
                self._head_room -= cost
                return
            self._head_open = False
            cut = _beginning(payload, self._head_room)
            if cut:
                self._head.append(frame._replace(payload=payload[:cut]))
                frame = frame._replace(payload=payload[cut:])
                cost = line_cost(frame.payload)
        tail = self._tail
        tail.append(frame)
        self._tail_cost += cost
        while len(tail) > 1:
            oldest = line_cost(tail[0].payload)
            if self._tail_cost - oldest < self._tail_limit:
                break
            self._tail_cost -= oldest
            tail.popleft()

    @property
    def text(self) -> str:
        """What the column shows: everything, or head, mark and tail."""
        head, tail = list(self._head), list(self._tail)
        if self._tail_cost > self._tail_limit:
            first = tail[0].payload
            room = self._tail_limit - (self._tail_cost - line_cost(first))
            tail[0] = tail[0]._replace(payload=first[_end(first, room) :])
        if _size(head) + _size(tail) == self.total_bytes:
            return render([*head, *tail])
        # A character that the gap cuts in two is left out whole, on either side.
        renderer = _Renderer()
        above = "".join([renderer.feed(frame) for frame in head])
        _drop_cut_character(tail)
        count = self.total_bytes - _size(head) + renderer.pending - _size(tail)
        line_end = "\n" if above and not above.endswith("\n") else ""
        return f"{above}{line_end}{MARK.format(count=count, stream=self._stream)}{render(tail)}"


def line_cost(payload: bytes) -> int:
    """The most characters that a payload can become: each of its lines may get a timestamp."""
    return len(payload) + STAMP_LENGTH * (payload.count(b"\n", 0, -1) + 1)


def _size(frames: list[LogFrame]) -> int:
    return sum([len(frame.payload) for frame in frames])


def _beginning(payload: bytes, room: int) -> int:
    """How many of the first bytes cost no more than `room`."""
    position = 0
    while position < len(payload):
        line_end = payload.find(b"\n", position) + 1 or len(payload)
        cost = line_end - position + STAMP_LENGTH
        if cost > room:
            return position + max(0, room - STAMP_LENGTH)
        room -= cost
        position = line_end
    return position


def _end(payload: bytes, room: int) -> int:
    """Where the last bytes begin that cost no more than `room`."""
    position = len(payload)
    while position > 0:
        line_start = payload.rfind(b"\n", 0, position - 1) + 1
        cost = position - line_start + STAMP_LENGTH
        if cost > room:
            return position - max(0, room - STAMP_LENGTH)
        room -= cost
        position = line_start
    return position


def _drop_cut_character(frames: list[LogFrame]) -> None:
    """Take off the last bytes of a character, at most three, whose first byte is not there."""
    dropped = 0
    while frames and dropped < 3:
        payload = frames[0].payload
        if payload and payload[0] & 0xC0 != 0x80:
            return
        dropped += len(payload[:1])
        if len(payload) > 1:
            frames[0] = frames[0]._replace(payload=payload[1:])
        else:
            del frames[0]


def clean_output(text: str) -> str:
    """The text of a log column without our timestamps and without terminal escapes."""
    return without_escapes(_STAMP.sub("", text))


def without_escapes(text: str) -> str:
    """Text without terminal escapes."""
    return _ESCAPES.sub("", text)


def parse_output(text: str) -> Any:
    """The JSON document that the text is; else its last JSON line; else None.

    The whole text may be any JSON value, `42` and `"done"` included. A single line counts only as an object
    or array, as words and numbers stand in any log, and only without indentation: an indented line is a
    part of something larger. As Python's own writer makes them, NaN and Infinity are read as well.
    """
    stripped = text.lstrip("\ufeff").strip()
    if not stripped:
        return None
    try:
        return json.loads(stripped)
    except (ValueError, RecursionError):
        pass  # not one document: it may end with one
    for line in reversed(stripped.split("\n")):
        if line.startswith(("{", "[")) and line.rstrip().endswith(("}", "]")):
            try:
                return json.loads(line)
            except (ValueError, RecursionError):
                continue  # a log line such as `[INFO] read [3 of 7]`
    return None
