"""The words of engines and registries, as a record can hold them: harmless and bounded.

They are written by others, like output, but kept as text beside the job: PostgreSQL refuses a NUL in it and
no encoding accepts a lone surrogate; a registry may answer with a page of a megabyte, an engine with an event
a second for weeks. A record that cannot be stored would end worker after worker.
"""

from __future__ import annotations

import re
from collections import deque

from container_manager.core.inert import inert

#: Characters of a sentence that says why something happened.
MESSAGE_LENGTH = 8 * 1024
#: Characters of all that the engine did and said in one attempt.
LOG_LENGTH = 128 * 1024
_CUT = "[... {count} characters are left out here ...]"
_MARK = "[... {count} lines are left out here ...]"
_MARK_LINE = re.compile(r"\[\.\.\. (\d+) lines are left out here \.\.\.\]")


def message_text(text: str) -> str:
    """Why something happened, for a column of messages."""
    return shorten(inert(text), MESSAGE_LENGTH)


def log_text(text: str) -> str:
    """What an engine did and said, for a column of logs."""
    return shorten(inert(text), LOG_LENGTH)


def shorten(text: str, length: int) -> str:
    """The text, or its beginning and its end with a mark between; the mark comes on top of `length`."""
    if len(text) <= length:
        return text
    head = length // 2
    tail = length - head
    return f"{text[:head]}{_CUT.format(count=len(text) - length)}{text[len(text) - tail :]}"


class BoundedLines:
    """The first and the last entries of a log that may go on for ever, in constant memory."""

    def __init__(self, length: int = LOG_LENGTH // 2, entry_length: int = MESSAGE_LENGTH) -> None:
        self._entry_length = entry_length
        self._head: list[str] = []
        self._head_room = length // 2
        self._head_open = True
        self._tail: deque[str] = deque()
        self._tail_room = length - self._head_room
        self._left_out = 0  # lines

    def add(self, entry: str) -> None:
        """Take one entry more; most are one line."""
        entry = shorten(entry, self._entry_length)
        if self._head_open and len(entry) < self._head_room:
            self._head_room -= len(entry) + 1
            self._head.append(entry)
            return
        self._head_open = False
        self._tail.append(entry)
        self._tail_room -= len(entry) + 1
        while self._tail_room < 0 and len(self._tail) > 1:
            oldest = self._tail.popleft()
            self._tail_room += len(oldest) + 1
            self._left_out += oldest.count("\n") + 1

    def restore(self, text: str) -> None:
        """Go on behind a text that another one has written."""
        for line in text.removesuffix("\n").split("\n") if text else []:
            mark = _MARK_LINE.fullmatch(line)
            if mark is None:
                self.add(line)
            else:
                self._left_out += int(mark[1])
                self._head_open = False

    @property
    def text(self) -> str:
        """All entries, or the first and the last with a line between that counts what is left out."""
        mark = [_MARK.format(count=self._left_out)] if self._left_out else []
        return "".join([f"{entry}\n" for entry in (*self._head, *mark, *self._tail)])
